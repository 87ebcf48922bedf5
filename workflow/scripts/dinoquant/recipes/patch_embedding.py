"""Rewrite a patch embedding, a convolution whose kernel does not overlap, as the Linear layer that it is."""

from collections.abc import Collection
from typing import TypeGuard

from torch import Tensor, nn


def rows_of_patches(images: Tensor, height: int, width: int) -> Tensor:
    """Cut separate patches: ``[B, C, H, W]`` -> ``[B, H // height, W // width, C * height * width]``."""
    patches = images.unfold(2, height, height).unfold(3, width, width)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3)


class PatchLinear(nn.Module):
    """A Linear over flattened patches: what a convolution computes whose stride equals its kernel.

    float32 ``[B, C, H, W]`` -> float32 ``[B, D, H // kernel, W // kernel]``.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.kernel = convolution.kernel_size
        weight = convolution.weight.flatten(1)
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=convolution.bias is not None, device="meta")
        self.linear.weight = nn.Parameter(weight, requires_grad=False)
        if convolution.bias is not None:
            self.linear.bias = nn.Parameter(convolution.bias, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Cut the patches, multiply, and put the features where the convolution puts them."""
        features: Tensor = self.linear(rows_of_patches(images, *self.kernel))
        return features.permute(0, 3, 1, 2)


def is_patch_embedding(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether ``module`` is a convolution that `PatchLinear` computes exactly.

    timm's subclasses are none: they standardise their weights or pad their inputs at each call.
    """
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and module.stride == module.kernel_size
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def rewrite(model: nn.Module, names: Collection[str]) -> list[str]:
    """Replace the patch embeddings ``names`` of ``model`` in place; return the names of the Linear layers inside."""
    for name in names:
        convolution = model.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        model.set_submodule(name, PatchLinear(convolution))
    return [f"{name}.linear" for name in names]
