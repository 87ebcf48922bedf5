"""The float32 model with its Linears through oneDNN: the baseline where MKL, PyTorch's default, is slow (AMD)."""

import torch
from torch import Tensor, nn

from dinoquant.recipes.base import Options, Quantized, SensitivityRows, recipe, scripted
from dinoquant.recipes.int8.layers import FloatLinear
from dinoquant.recipes.linears import copy_with_targets


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Replace every Linear; nothing is quantized, and ``calibration`` is not used."""
    changed, targets = copy_with_targets(model, ["Linear"])
    for name in targets:
        linear = changed.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        changed.set_submodule(name, scripted(FloatLinear(linear.weight, bias, torch.float32)))
    return Quantized(changed, asked=(), became={}, packs_on_loading=True)
