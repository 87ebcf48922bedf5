"""Search on calibration images how the inputs of a Linear become 8-bit integers with the least harm to the features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.int8 import layers
from dinoquant.recipes.int8.calibration import Observed

# SmoothQuant's exponent (arXiv:2211.10438): 1 moves all of an input channel's range into the weights, 0 none.
EXPONENTS = (0.4, 0.5, 0.6, 0.7, 0.8)
CLIPS = torch.linspace(0.3, 1.0, 15).tolist()  # of the third largest channel's maximum
SPLIT_ABOVE = (1.5, 2.5)  # a channel is split where its maximum exceeds the clip this many times
EXTRA = 64  # channels at most; a multiple of what the product's inner loop takes


@dataclass(frozen=True)
class Steps:
    """How a Linear's inputs become u8: ``x / (smooth * step) + zero_point``."""

    smooth: Tensor  # [in]
    step: float
    zero_point: int

    def round(self, inputs: Tensor) -> Tensor:
        """Return smoothed inputs rounded to the steps and clipped."""
        integers = torch.round(inputs / (self.smooth * self.step)) + self.zero_point
        return (integers.clamp_(0, 255) - self.zero_point) * self.step


@dataclass(frozen=True)
class Split:
    """How the outputs of a GELU become u8: clipped, what exceeds the clip going into copies of the channel."""

    clip: float
    copies: Tensor  # [in], int64, 0 for most

    @property
    def step(self) -> float:
        """Return the width of a step."""
        return (self.clip + layers.GELU_MINIMUM) / 255

    @property
    def zero_point(self) -> int:
        """Return the u8 value of 0."""
        return round(layers.GELU_MINIMUM / self.step)

    def round(self, inputs: Tensor) -> Tensor:
        """Return ``[..., in]`` rounded, clipped, and with the copies' channels behind: ``[..., in + copies]``."""
        return self._round(torch.cat([inputs, functional.gelu(inputs[..., self.source] - self.shift)], -1))

    def _round(self, values: Tensor) -> Tensor:
        integers = torch.round(values / self.step) + self.zero_point
        return (integers.clamp_(0, 255) - self.zero_point) * self.step

    @property
    def source(self) -> Tensor:
        """Return the channel that each copy is of."""
        return torch.repeat_interleave(self.copies)

    @property
    def shift(self) -> Tensor:
        """Return how much lower than its source each copy begins."""
        first = torch.cumsum(self.copies, 0) - self.copies
        number = torch.arange(int(self.copies.sum())) - first[self.source]
        return (number + 1) * self.clip


def static_steps(linear: nn.Linear, seen: Observed, margin: float = 1.0, portable: bool = False) -> Steps:
    """Return the smoothing of SmoothQuant and the range that move the features least on the calibration images."""
    low, high = seen.minimum * margin, seen.maximum * margin
    largest = torch.maximum(high, -low).clamp_min(1e-5)
    columns = linear.weight.abs().amax(0).clamp_min(1e-5)
    expected = functional.linear(seen.inputs, linear.weight)
    candidates = []
    for exponent in EXPONENTS:
        smooth = largest**exponent / columns ** (1 - exponent)
        smooth /= smooth.log().mean().exp()
        steps = _between((low / smooth).min(), (high / smooth).max(), smooth)
        integers, scale = layers.quantize_weight(linear.weight * smooth, portable)
        found = functional.linear(steps.round(seen.inputs), integers * scale[:, None])
        candidates.append((seen.error(found - expected), exponent, steps))
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def colour_steps(seen: Observed, colours: int) -> tuple[Tensor, Tensor]:
    """Return the lowest value of each colour ``[colours]`` and the width of its 255 steps.

    A photograph's colours had 256 values before they were normalised, and the steps hit them all: nothing is rounded.
    """
    low = seen.minimum.view(colours, -1).amin(1)
    high = seen.maximum.view(colours, -1).amax(1)
    return low, ((high - low) / 255).clamp_min(1e-12)


def split_range(linear: nn.Linear, seen: Observed) -> Split:
    """Return the clip and the channels to split that move the features least on the calibration images.

    Trained transformers have a few channels behind the GELU that reach tens of times as far as all others ("massive
    activations", arXiv:2402.17762). Their copies have the same weights and a lower bias: the GELU of each begins where
    the one before is clipped, and together they reach as far, in the same fine steps.
    """
    expected = functional.linear(seen.inputs, linear.weight)
    maximum = seen.maximum.clamp_min(layers.GELU_MINIMUM)
    top = maximum.sort(descending=True).values
    candidates = []
    for clip in [float(top[0]), *(share * float(top[min(2, len(top) - 1)]) for share in CLIPS)]:
        for threshold in SPLIT_ABOVE:
            copies = torch.where(maximum > threshold * clip, torch.ceil(maximum / clip) - 1, 0).long()
            split = Split(clip, copies)
            if int(copies.sum()) <= EXTRA:
                weight = torch.cat([linear.weight, linear.weight[:, split.source]], 1)
                error = seen.error(functional.linear(split.round(seen.inputs), weight) - expected)
                candidates.append((error, int(copies.sum()), clip, split))
    return min(candidates, key=lambda candidate: candidate[:3])[3]


def _between(low: Tensor, high: Tensor, smooth: Tensor) -> Steps:
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    step = max(float(high - low) / 255, 1e-12)
    return Steps(smooth, step, round(-float(low) / step))
