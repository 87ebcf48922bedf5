"""Whether a peer's int8 sums saturate on this processor: its features beside those that the same integers give exactly.

x86 processors without VNNI add pairs of products of 8-bit integers in 16 bits (`dinoquant.recipes.int8.processor`).
The TorchScript recipes are exact by construction: they keep to 7 bits, or find out on loading what is exact.
"""

from typing import TypedDict

from torch import Tensor
from torch.nn.functional import cosine_similarity

from dinoquant.recipes.int8.processor import int8_is_exact
from dinoquant.runtimes.backend import of_image
from dinoquant.runtimes.opened import LocalModel, OpenModel

# Mean cosine. Roundings that fall the other way leave OpenVINO's ViT-Ti 0.9993 with trained weights, saturated sums
# 0.9973; ONNX Runtime's is 1.
LEAST = 0.9985


class Saturation(TypedDict):
    """How far features are from the exact ones."""

    saturates: bool
    cosine: float  # mean over the images
    images: int


def check(model: OpenModel, images: Tensor) -> Saturation | None:
    """Compare a model's features of ``images``, float32 ``[B, 3, S, S]``, normalised, with the exact ones.

    Where it gives tokens, the first of each image is compared.

    ``images`` are the first of the calibration's, `dinoquant.runtimes.backend.CHECKED_IMAGES` at most. None for models
    of TorchScript and of other precisions. Where the processor multiplies all integers exactly, nothing saturates,
    however far roundings carry: bfloat16 beside int8 leaves 0.9989.
    """
    if isinstance(model, LocalModel) or not model.card["recipe"].startswith("int8"):
        return None
    cosine = float(cosine_similarity(of_image(model(images)), of_image(model.exact(images))).mean())
    return {"saturates": cosine < LEAST and not int8_is_exact(portable=False), "cosine": cosine, "images": len(images)}
