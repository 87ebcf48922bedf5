"""Weight-only quantization: int8 weights in the file and in memory, float32 arithmetic."""

from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.base import Options, Quantized, SensitivityRows, converted, recipe, require_converted
from dinoquant.recipes.int8.layers import quantize_weight
from dinoquant.recipes.linears import copy_with_targets


class WeightOnlyLinear(nn.Module):
    """A Linear with int8 weights, symmetric, one scale per output channel; ``[..., in]`` -> ``[..., out]``.

    The product is scaled rather than the weights: ``out`` columns of a few hundred tokens instead of ``out x in``
    weights. `torch.ops.aten._weight_int8pack_mm` would do both in one go, but its float32 kernel takes 25 times as long
    as the float32 model (ViT-S/16, AVX-512): it is written for single tokens in bfloat16.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_weight(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply with the integers as floats, then scale and add the bias."""
        product = functional.linear(inputs, self.weight.to(inputs.dtype)) * self.scale
        return product if self.bias is None else product + self.bias


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Replace the chosen Linear layers; ``calibration`` is not used.

    Raises UserError for module types of which nothing was converted.
    """
    asked = options["modules"]
    changed, targets = copy_with_targets(model, asked)
    for name in targets:
        linear = changed.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        changed.set_submodule(name, WeightOnlyLinear(linear))
    became = converted(model, changed, _describe)
    require_converted(model, asked, became)
    # Folded, the weights would be converted to float32 ahead of time and stored so: four times the size.
    return Quantized(changed, asked, became, variable=[f"{name}.weight" for name in targets])


def _describe(module: nn.Module) -> tuple[str, str] | None:
    if any(isinstance(inner, WeightOnlyLinear) for inner in module.modules()):
        return "int8 weights per-channel, float32 arithmetic", "fp32"
    return None
