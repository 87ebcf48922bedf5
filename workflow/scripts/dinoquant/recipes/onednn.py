"""The float32 model with its Linears through oneDNN: the baseline where MKL, PyTorch's default, is slow (AMD)."""

import torch
from torch import Tensor, nn

from dinoquant.recipes.base import Options, Quantized, SensitivityRows, recipe, scripted
from dinoquant.recipes.int8.layers import free_large_block
from dinoquant.recipes.linears import copy_with_targets


class OneDnnLinear(nn.Module):
    """A float32 Linear whose weight is packed for oneDNN on loading; ``[..., in]`` -> ``[..., out]``."""

    weight: Tensor
    bias: Tensor
    packed: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.detach()
        self.bias = linear.bias.detach() if linear.bias is not None else torch.zeros(linear.out_features)
        self.packed = self.weight
        self.pack()

    def pack(self) -> None:
        """Pack the weight for this processor; the file keeps it plain."""
        if free_large_block() > 0:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, bool]:
        """Return what the file keeps."""
        return self.weight, self.bias, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, bool]) -> None:
        """Pack what the file kept."""
        self.weight = state[0]
        self.bias = state[1]
        self.training = state[2]
        self.pack()

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply and add the bias."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return outputs


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Replace every Linear; nothing is quantized, and ``calibration`` is not used."""
    changed, targets = copy_with_targets(model, ["Linear"])
    for name in targets:
        linear = changed.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        changed.set_submodule(name, scripted(OneDnnLinear(linear)))
    return Quantized(changed, asked=(), became={}, packs_on_loading=True)
