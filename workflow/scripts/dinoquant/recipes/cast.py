"""The float recipes: the model in float32, bfloat16 or float16 throughout."""

import copy
from dataclasses import replace
from typing import Any

import torch
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.base import Converted, Options, Quantized, SensitivityRows, parts, recipe, scripted
from dinoquant.recipes.patch_embedding import is_patch_embedding, rows_of_patches

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Cast(nn.Module):
    """A model of another precision behind a float32 interface."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model: Any = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """float32 ``[B, 3, S, S]`` -> float32 ``[B, D]``, or what else the model gives."""
        features: Tensor = self.model(images.to(self.dtype))
        return features.to(torch.float32)

    def forward_features(self, images: Tensor) -> Tensor:
        """float32 ``[B, 3, S, S]`` -> float32 ``[B, N, D]``."""
        tokens: Tensor = self.model.forward_features(images.to(self.dtype))
        return tokens.to(torch.float32)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """float32 ``[B, N, D]`` -> float32 ``[B, D]``."""
        features: Tensor = self.model.forward_head(tokens.to(self.dtype))
        return features.to(torch.float32)


class PatchProjection(nn.Module):
    """A patch embedding; ``[B, C, H, W]`` -> ``[B, D, H // kernel, W // kernel]``.

    On a GPU it is a product over flattened patches, for which cuDNN has no fast convolution.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.height, self.width = convolution.kernel_size

    def forward(self, images: Tensor) -> Tensor:
        """Multiply every patch with the weights."""
        if not images.is_cuda:
            return functional.conv2d(images, self.weight, self.bias, [self.height, self.width])
        rows = rows_of_patches(images, self.height, self.width)
        return functional.linear(rows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class GeluLinear(nn.Module):
    """A Linear with GELU behind it; ``[..., in]`` -> ``[..., out]``.

    On a GPU cuBLASLt applies GELU while it writes the product, in its approximation by tanh, at most 5e-4 off.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply, add the bias, apply GELU."""
        if not inputs.is_cuda:
            return functional.gelu(functional.linear(inputs, self.weight, self.bias))
        rows = torch._addmm_activation(self.bias, inputs.flatten(0, -2), self.weight.t(), use_gelu=True)
        return torch.unflatten(rows, 0, inputs.size()[:-1])


def for_gpus(model: nn.Module) -> list[str]:
    """Replace in ``model``, in place, what a GPU would compute slowly; return the names of the GELUs merged."""
    merged = []
    for name, module in list(model.named_modules()):
        if isinstance(module, PatchEmbed) and is_patch_embedding(module.proj):
            model.set_submodule(f"{name}.proj", scripted(PatchProjection(module.proj)))
        elif type(module) is Mlp and _has_gelu(module):
            assert isinstance(module.fc1, nn.Linear)
            model.set_submodule(f"{name}.fc1", scripted(GeluLinear(module.fc1)))
            model.set_submodule(f"{name}.act", nn.Identity())
            merged.append(f"{name}.act")
    return merged


def _has_gelu(mlp: Mlp) -> bool:
    exact = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
    return exact and type(mlp.fc1) is nn.Linear and mlp.fc1.bias is not None


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Cast parameters and arithmetic; ``calibration`` is not used."""
    dtype = DTYPES[options["recipe"]]
    if dtype == torch.float32:
        return Quantized(model, asked=(), became={})
    cast = copy.deepcopy(model).to(dtype)
    cast_parts = parts(cast)
    became = {
        part.name: Converted(str(dtype).removeprefix("torch."), options["recipe"], part.bytes) for part in cast_parts
    }
    for name in for_gpus(cast):
        became[name] = replace(became[name], what=f"{became[name].what}, on a GPU approximated by tanh")
    return Quantized(Cast(cast, dtype), asked={part.kind for part in cast_parts}, became=became)
