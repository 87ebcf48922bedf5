"""Extract the features of packed images, batch by batch."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dinoquant.data.preprocess import preprocess
from dinoquant.errors import UserError

Images = NDArray[np.uint8]
Indices = NDArray[np.int64]


class InputInfo(TypedDict):
    """The images that a model takes: square, ``image_size`` pixels wide, normalised with ``mean`` and ``std``."""

    image_size: int
    mean: list[float]
    std: list[float]


class ModelInfo(InputInfo):
    """What a model takes and gives."""

    feature_dim: int


class Timing(NamedTuple):
    """The seconds that an extraction took: from the first image read to the last feature, and inside the model."""

    seconds: float
    model_seconds: float


@torch.inference_mode()
def extract(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: Images,
    indices: Indices,
    *,
    batch_size: int,
    info: ModelInfo,
    device: str,
    variant: str,
) -> tuple[NDArray[np.float32], Timing]:
    """Return the features of ``images[indices]``, float32 ``[N, D]``, in that order, and what they took.

    A model with dynamic per-tensor quantization takes one scale over the whole batch, so that a feature depends on its
    batch-mates: equal features need equal ``indices`` and ``batch_size``.

    Args:
        model: float32 ``[B, 3, S, S]`` normalised, on ``device``, to ``[B, D]``.
        images: uint8 ``[M, 3, H, W]``, usually a memory map; one batch at a time is read.
        indices: ``[N]``, into ``images``; N is at least 1. The last batch may be smaller.
        variant: the name for messages and the progress bar.

    Raises:
        UserError: a feature is not finite.
    """
    features = np.empty((len(indices), info["feature_dim"]), dtype=np.float32)
    start, model_seconds, done = time.perf_counter(), 0.0, 0
    with tqdm(total=len(indices), desc=variant, unit="image", disable=None) as progress:
        for batch in prepared(images, indices, batch_size, info, device):
            if device == "cuda":
                torch.cuda.synchronize()
            model_start = time.perf_counter()
            output = model(batch).float().cpu().numpy()  # on a GPU, the copy waits for the result
            model_seconds += time.perf_counter() - model_start
            rows = slice(done, done + len(batch))
            _check_finite(output, indices[rows], variant)
            features[rows] = output
            done += len(batch)
            progress.update(len(batch))
    return features, Timing(time.perf_counter() - start, model_seconds)


def prepared(images: Images, indices: Indices, batch_size: int, info: InputInfo, device: str) -> Iterator[torch.Tensor]:
    """Yield the batches as the model takes them, read and transformed (on ``device``) when they are asked for.

    Not ahead in a second thread: the images are decoded already, and preparing one takes 0.2 to 0.6 ms where int8
    ViT-Ti takes 12 and ViT-S 30 (one thread each). A second thread cost more processor time than that, by page faults,
    and jobs side by side leave no idle core for it. `tests/bench/extraction.py` measures what is left.
    """
    for start in range(0, len(indices), batch_size):
        pixels = torch.from_numpy(images[indices[start : start + batch_size]]).to(device)
        yield preprocess(pixels, info["image_size"], info["mean"], info["std"])


def central_square(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the part of packed images ``[N, 3, H, W]`` that `dinoquant.data.preprocess` keeps, in their own pixels."""
    height, width = images.shape[2:]
    side = round(min(height, width) * 224 / 256)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def _check_finite(features: NDArray[np.float32], indices: Indices, variant: str) -> None:
    broken = indices[~np.isfinite(features).all(axis=1)]
    if broken.size:
        raise UserError(
            f"The model of variant {variant} gives NaN or infinite features for {broken.size} of {indices.size} images "
            f"of a batch, first for image {broken[0]} of the manifest; finite numbers were expected. Its "
            "precision overflows on this model: change its recipe or options, or take it out of variants. If fp32 "
            "does the same, model.checkpoint itself is broken."
        )
