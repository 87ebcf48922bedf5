"""Round weights one input at a time, each time correcting the weights still to be rounded (GPTQ, arXiv:2210.17323)."""

import torch
from torch import Tensor

BLOCK = 128  # columns corrected at once
DAMPING = 0.01  # of the mean diagonal: the paper's


def gptq(weight: Tensor, scale: Tensor, inputs: Tensor) -> Tensor:
    """Return int8 ``[out, in]`` such that ``inputs`` times it, times ``scale``, is near ``inputs`` times ``weight``.

    :param scale: ``[out]``, fixed beforehand.
    :param inputs: ``[rows, in]``, as quantized as they will be.
    """
    outputs, width = weight.shape
    inputs = inputs.double()
    hessian = inputs.T @ inputs
    diagonal = hessian.diagonal()
    diagonal += DAMPING * diagonal.mean() + torch.finfo(torch.float32).tiny
    order = diagonal.argsort(descending=True)  # the inputs that matter most first, while all others can still correct
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = (weight.double() / scale.double()[:, None])[:, order]
    rounded = torch.empty_like(left)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.empty(outputs, stop - start, dtype=torch.float64)
        for column in range(start, stop):
            rounded[:, column] = torch.round(left[:, column]).clamp_(-127, 127)
            error = (left[:, column] - rounded[:, column]) / factor[column, column]
            left[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    result = torch.empty(outputs, width, dtype=torch.int8)
    result[:, order] = rounded.to(torch.int8)
    return result
