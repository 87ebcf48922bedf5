"""Observe what reaches each Linear on calibration images, and how much an error there moves the features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dinoquant.errors import UserError
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.linears import copy_with_targets
from dinoquant.recipes.output import give_features

BATCH = 8
TOKENS = 64  # kept of each image, besides the first
PROBES = 2


@dataclass(frozen=True)
class Observed:
    """The inputs of one Linear."""

    inputs: Tensor  # [rows, in], a sample
    rows: Tensor  # [rows], weight of an error in this row
    outputs: Tensor  # [out], weight of an error in this output
    minimum: Tensor  # [in], over all tokens of all images
    maximum: Tensor  # [in]

    def error(self, difference: Tensor) -> float:
        """Return what ``difference`` ``[rows, out]`` at the outputs does to the features, squared, to second order."""
        return float(self.rows @ (difference.square() @ self.outputs))


def observe(model: nn.Module, images: Tensor) -> dict[str, Observed]:
    """Run ``images`` ``[N, 3, S, S]`` through the float model; return what each quantizable Linear saw.

    The weights are the diagonal of the Gauss-Newton approximation of the features' squared error, as a product of rows
    and outputs, from the gradients of random projections of the features. (PTQ4ViT, arXiv:2111.12293, weighs by
    gradients too.) They matter: a feature is read from one token of hundreds, and rows differ by orders of magnitude.
    """
    quantizable = set(targets(model))  # a Linear of attention pooling may see no image, only a learned query
    rewritten, names = copy_with_targets(model, ["Linear", "Conv2d"])
    names = [name for name in names if name.removesuffix(".linear") in quantizable]
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, _Sums] = {name: _Sums() for name in names}
    outputs: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [rewritten.get_submodule(name).register_forward_hook(_keep(name, outputs)) for name in names]
    try:
        for batch in tqdm(torch.split(images, BATCH), desc="calibrating", unit="batch", disable=None):
            with torch.enable_grad():
                features = give_features(rewritten, batch.clone().requires_grad_(True))
            squared = {name: torch.zeros(()) for name in names}
            for probe in range(PROBES):
                direction = torch.randn(features.shape, generator=generator)
                direction /= features.detach().norm(dim=1, keepdim=True)
                gradients = torch.autograd.grad(
                    features, [outputs[name][1] for name in names], direction, retain_graph=probe + 1 < PROBES
                )
                for name, gradient in zip(names, gradients, strict=True):
                    squared[name] = squared[name] + gradient.square()
            for name in names:
                seen[name].add(outputs[name][0], squared[name], generator)
    finally:
        for hook in hooks:
            hook.remove()
    return {name.removesuffix(".linear"): sums.observed() for name, sums in seen.items()}


def require_images(recipe: str, calibration: Tensor | None) -> Tensor:
    """Return the calibration images; raise UserError if there are none."""
    if calibration is None or not len(calibration):
        raise UserError(
            f"{recipe} needs calibration images, and there are none: set dataset.calibration_images to 1 or more."
        )
    return calibration


def _keep(name: str, outputs: dict[str, tuple[Tensor, Tensor]]) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        outputs[name] = inputs[0].detach(), output

    return hook


class _Sums:
    """Samples of one Linear, batch by batch."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.minimum: list[Tensor] = []
        self.maximum: list[Tensor] = []

    def add(self, inputs: Tensor, squared: Tensor, generator: torch.Generator) -> None:
        # Patches come as [B, rows, columns, in]; tokens as [B, tokens, in].
        inputs, squared = inputs.flatten(1, -2), squared.flatten(1, -2)
        others = torch.randperm(inputs.shape[1] - 1, generator=generator)[:TOKENS] + 1
        kept = torch.cat([torch.zeros(1, dtype=torch.int64), others])
        represents = torch.ones(len(kept))
        represents[1:] = (inputs.shape[1] - 1) / max(1, len(others))
        self.inputs.append(inputs[:, kept].flatten(0, 1))
        self.rows.append((squared[:, kept].mean(2) * represents).flatten())
        self.outputs.append(squared.mean((0, 1)))
        self.minimum.append(inputs.amin((0, 1)))
        self.maximum.append(inputs.amax((0, 1)))

    def observed(self) -> Observed:
        outputs = torch.stack(self.outputs).mean(0)
        return Observed(
            inputs=torch.cat(self.inputs),
            rows=torch.cat(self.rows),
            outputs=outputs / outputs.mean().clamp_min(torch.finfo(torch.float32).tiny),
            minimum=torch.stack(self.minimum).amin(0),
            maximum=torch.stack(self.maximum).amax(0),
        )
