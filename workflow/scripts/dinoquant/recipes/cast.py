"""The float recipes: the model in float32, bfloat16 or float16 throughout."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dinoquant.recipes.base import Converted, Options, Quantized, SensitivityRows, parts, recipe

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
    return Quantized(Cast(cast, dtype), asked={part.kind for part in cast_parts}, became=became)
