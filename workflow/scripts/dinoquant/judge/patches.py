"""Compare a variant's patch tokens with fp32's, patch by patch."""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dinoquant.errors import UserError
from dinoquant.judge.features import Images, Indices, InputInfo, prepared
from dinoquant.judge.paired import cosine, mean

Tokens = Callable[[torch.Tensor], torch.Tensor]  # float32 [B, 3, S, S], normalised -> [B, N, D], prefix tokens first


class PatchInfo(InputInfo):
    """What a model takes, and how many of its tokens are no patches: the class token, registers."""

    prefix_tokens: int


class PatchConfig(TypedDict):
    """The part of the config that the comparison depends on."""

    batch_size: int
    device: str
    confidence: float
    """0 to 1."""
    resamples: int
    seed: int


class PatchFidelity(TypedDict):
    """The cosines of a variant's patch tokens to fp32's, over all patches of some images."""

    patch_images: int
    patches: int
    """Of each image."""
    patch_cosine_mean: float
    patch_cosine_mean_ci_low: float
    patch_cosine_mean_ci_high: float
    patch_cosine_p5: float
    patch_cosine_min: float


@torch.inference_mode()
def compare(
    variant: Tokens,
    fp32: Tokens,
    images: Images,
    indices: Indices,
    info: PatchInfo,
    config: PatchConfig,
    shown: Indices,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the cosine of every patch of ``images[indices]`` ``[N, P]``, and the variant's patches of some.

    Args:
        variant: all tokens behind the last norm.
        fp32: the same of the float32 model.
        images: uint8 ``[M, 3, H, W]``.
        indices: ``[N]``, into ``images``.
        shown: places in ``indices`` of the images whose patches are returned: float32 ``[len(shown), P, D]``.
    """
    cosines: list[NDArray[np.float64]] = []
    kept: list[NDArray[np.float32]] = []
    batches = prepared(images, indices, config["batch_size"], info, config["device"])
    for batch in tqdm(batches, total=-(-len(indices) // config["batch_size"]), unit="batch", disable=None):
        done = sum(map(len, cosines))
        found, expected = (
            tokens(batch)[:, info["prefix_tokens"] :].float().cpu().numpy() for tokens in (variant, fp32)
        )
        width = found.shape[-1]
        cosines.append(cosine(found.reshape(-1, width), expected.reshape(-1, width)).reshape(len(batch), -1))
        kept.append(found[[place - done for place in shown if done <= place < done + len(batch)]])
    return np.concatenate(cosines), np.concatenate(kept)


def summarise(cosines: NDArray[np.float64], config: PatchConfig) -> PatchFidelity:
    """Return mean, 5th percentile and worst of the cosines of all patches ``[N, P]``, N at least 2.

    The mean has a percentile bootstrap interval over the images, since the patches of one image are alike.

    Raises:
        UserError: a token is zero or not finite.
    """
    if not np.isfinite(cosines).all():
        raise UserError(
            "Patch tokens of the model are NaN, infinite or zero: its precision overflows, or the model is broken. "
            "Change the variant's recipe or options, or take it out of variants."
        )
    per_image = mean(cosines.mean(axis=1), config["confidence"], config["resamples"], config["seed"])
    return {
        "patch_images": len(cosines),
        "patches": cosines.shape[1],
        "patch_cosine_mean": per_image.value,
        "patch_cosine_mean_ci_low": per_image.low,
        "patch_cosine_mean_ci_high": per_image.high,
        "patch_cosine_p5": float(np.percentile(cosines, 5)),
        "patch_cosine_min": float(cosines.min()),
    }
