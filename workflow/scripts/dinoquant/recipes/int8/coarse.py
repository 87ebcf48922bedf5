"""Round weights in steps as wide as the features bear, for files that keep them in few bits.

The steps are wide where an error moves the features little, so that a rounding does about as much harm in one Linear as
in another: what bits there are do the most good so ("reverse water-filling", Cover and Thomas, Elements of Information
Theory, 10.3.3). The integers are then few and unevenly frequent, and a Huffman code, which is what deflate makes of
them, takes within a few hundredths of a bit of their entropy (Deep Compression, arXiv:1510.00149, stores weights so). A
scale for each output is enough: where weights are small, so are their codes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dinoquant.recipes.int8.calibration import Observed
from dinoquant.recipes.int8.gptq import corrections, gptq
from dinoquant.recipes.int8.layers import quantize_weight

COARSEST = "coarsest"  # attribute of a Linear whose weights are rounded so: float32 [out], before its inputs are known
LEAST_OUTPUT = 1e-3  # of the mean output's weight: gradients of a few images say no more of an output
NARROWEST, WIDEST = -4.0, 16.0  # log2 of the steps that are tried, over int8's
HALVINGS = 16


def coarsest(linear: nn.Module) -> Tensor | None:
    """Return what `set_coarsest` has set, None where nothing is."""
    found: Tensor | None = getattr(linear, COARSEST, None)
    return found


def set_coarsest(linear: nn.Module, steps: Tensor) -> None:
    """Have the weights of ``linear`` rounded in ``steps`` ``[out]``, divided by what one does at the inputs."""
    setattr(linear, COARSEST, steps)


def coarsely(
    weight: Tensor, steps: Tensor, inputs: Tensor, rows: Tensor, portable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 ``[out, in]``, their scales ``[out]``, and what rounding adds to the outputs' means ``[out]``.

    :param steps: ``[out]``, of `set_coarsest`.
    :param inputs: ``[rows, in]``, as quantized as they will be.
    :param rows: ``[rows]``, weight of an error in this row.
    """
    weighted, mean = _weighted(inputs, rows)
    _, scale = quantize_weight(weight, portable)
    largest = torch.maximum(weight.abs().amax(1), scale)  # one step, or none, is the least that a weight can be
    scale = torch.maximum(scale, torch.minimum(steps / _harm(weighted), largest))
    integers = gptq(weight, scale, weighted, portable)
    return integers, scale, (integers * scale[:, None] - weight) @ mean


def equally_harmful(
    weights: Mapping[str, Tensor], seen: Mapping[str, Observed], bits: float, portable: bool
) -> dict[str, Tensor]:
    """Return for each Linear the steps that `set_coarsest` takes, so that a weight has ``bits`` of entropy on average.

    Where not even steps as fine as int8's have so many, these are returned.

    :param weights: ``[out, in]``.
    """
    steps = {name: seen[name].outputs.clamp_min(LEAST_OUTPUT) ** -0.5 for name in weights}
    harm = {name: _harm(_weighted(seen[name].inputs, seen[name].rows)[0]) for name in weights}
    finest = {name: quantize_weight(weight, portable)[1] for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    unit = torch.cat([finest[name] * harm[name] / steps[name] for name in weights]).median()
    low, high = NARROWEST, WIDEST
    for _ in range(HALVINGS):
        factor = unit * 2 ** ((low + high) / 2)
        taken = sum(
            _entropy(weight / torch.maximum(finest[name], factor * steps[name] / harm[name])[:, None])
            for name, weight in weights.items()
        )
        low, high = ((low + high) / 2, high) if taken > bits * total else (low, (low + high) / 2)
    return {name: steps[name] * unit * 2**low for name in weights}


def short(values: Tensor) -> Tensor:
    """Return float32 ``values`` rounded to bfloat16's digits: the zeros behind them deflate."""
    return values.to(torch.bfloat16).to(torch.float32)


def _weighted(inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``inputs`` without their mean, which a bias takes care of, by weight; and the mean ``[in]``.

    Half of the weight is spread evenly: of the rows that count most there are too few to know all inputs.
    """
    weight = (rows + rows.mean()) / 2 + torch.finfo(torch.float32).tiny
    mean = weight @ inputs / weight.sum()
    return (inputs - mean) * weight.sqrt()[:, None], mean


def _harm(weighted: Tensor) -> float:
    """Return what an error of 1 in a weight adds to an output once the other weights have corrected it; its root."""
    factor, _ = corrections(weighted)
    return float((factor.diagonal() ** -2).mean().sqrt())


def _entropy(quotients: Tensor) -> float:
    """Return the bits that the rounded ``quotients`` take all together in the best code of one symbol at a time."""
    integers = torch.round(quotients).to(torch.int64).flatten()
    counts = torch.bincount(integers - integers.min())
    shares = counts[counts > 0] / len(integers)
    return float(-len(integers) * shares @ shares.log2())
