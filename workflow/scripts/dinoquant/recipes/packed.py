"""Describe modules whose weights are packed for PyTorch's `quantized::` operators."""

import torch
from torch import nn
from torch.ao.nn import quantized
from torch.ao.nn.quantized import dynamic


def describe(module: nn.Module, engine: str) -> tuple[str, str] | None:
    """Return what the packed Linear in ``module`` is and the precision of its products, or None if there is none."""
    for inner in module.modules():
        if isinstance(inner, quantized.Linear):
            weight = inner.weight()  # type: ignore[no-untyped-call]  # not typed in torch
            if not weight.is_quantized:
                return f"fp16 dynamic, stored as float32 ({engine})", "fp32"  # FBGEMM converts, and multiplies so
            when = "dynamic" if isinstance(inner, dynamic.Linear) else "static"
            scales = "per-tensor" if weight.qscheme() == torch.per_tensor_affine else "per-channel"
            return f"int8 {when}, {scales} weights ({engine})", "int8"
    return None
