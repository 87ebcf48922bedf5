"""Whether a peer's int8 sums saturate on this processor: its features beside those that the same integers give exactly.

x86 processors without VNNI add pairs of products of 8-bit integers in 16 bits (`dinoquant.recipes.int8.processor`).
The TorchScript recipes are exact by construction: they keep to 7 bits, or find out on loading what is exact.
"""

from typing import TypedDict

from torch import Tensor
from torch.nn.functional import cosine_similarity

from dinoquant.runtimes.opened import LocalModel, OpenModel

LEAST = 0.999  # mean cosine; other roundings leave 0.99999, saturated sums 0.993 and less


class Saturation(TypedDict):
    """How far features are from the exact ones."""

    saturates: bool
    cosine: float  # mean over the images
    images: int


def check(model: OpenModel, images: Tensor) -> Saturation | None:
    """Compare a model's features of ``images``, float32 ``[B, 3, S, S]``, normalised, with the exact ones.

    ``images`` are the first of the calibration's, `dinoquant.runtimes.backend.CHECKED_IMAGES` at most. None for models
    of TorchScript and of other precisions.
    """
    if isinstance(model, LocalModel) or not model.card["recipe"].startswith("int8"):
        return None
    cosine = float(cosine_similarity(model(images), model.exact(images)).mean())
    return {"saturates": cosine < LEAST, "cosine": cosine, "images": len(images)}
