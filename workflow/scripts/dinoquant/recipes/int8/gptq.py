"""Round weights one input at a time, each time correcting the weights still to be rounded (GPTQ, arXiv:2210.17323)."""

import torch
from torch import Tensor

from dinoquant.recipes.int8.processor import PAIR_LIMIT

BLOCK = 128  # columns corrected at once
DAMPING = 0.01  # of the mean diagonal: the paper's


def gptq(weight: Tensor, scale: Tensor, inputs: Tensor, portable: bool = False) -> Tensor:
    """Return int8 ``[out, in]`` such that ``inputs`` times it, times ``scale``, is near ``inputs`` times ``weight``.

    :param scale: ``[out]``, fixed beforehand.
    :param inputs: ``[rows, in]``, as quantized as they will be.
    :param portable: keep every pair of neighbours within `PAIR_LIMIT`; ``scale`` must leave room for it.
    """
    outputs, width = weight.shape
    factor, order = corrections(inputs)
    # Transposed, so that what a column of the weight is corrected by lies side by side in memory.
    left = (weight.double() / scale.double()[:, None]).T[order].contiguous()
    rounded = torch.zeros(width + width % 2, outputs, dtype=torch.float64)  # 0 until it is its turn
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.empty(stop - start, outputs, dtype=torch.float64)
        for column, place in enumerate(order[start:stop].tolist(), start):
            integers = torch.round(left[column]).clamp_(-127, 127)
            if portable:
                neighbour = rounded[place ^ 1]
                integers = integers.clamp(-PAIR_LIMIT - neighbour, PAIR_LIMIT - neighbour)
            rounded[place] = integers
            error = (left[column] - integers) / factor[column, column]
            left[column:stop].addr_(factor[column, column:stop], error, alpha=-1)
            errors[column - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return rounded[:width].T.to(torch.int8).contiguous()


def corrections(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return how a weight's rounding is corrected by those after it, float64 ``[in, in]``, upper, and their order."""
    inputs = inputs.double()
    hessian = inputs.T @ inputs
    diagonal = hessian.diagonal()
    diagonal += DAMPING * diagonal.mean() + torch.finfo(torch.float32).tiny
    order = diagonal.argsort(descending=True)  # the inputs that matter most first, while all others can still correct
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    return torch.linalg.cholesky(inverse, upper=True), order
