"""Turn packed uint8 images into what the model takes, as DINO's k-NN protocol does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from dinoquant.manifest import read_split


def preprocess(images: torch.Tensor, image_size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Resize, centre-crop and normalise a batch, on the device where it lies.

    The steps are those of DINO's `eval_knn.py`: the shorter edge to 256/224 of the crop (bicubic, antialiased, rounded
    to uint8 as PIL does), the central square, then ``(x / 255 - mean) / std``.

    Args:
        images: uint8 ``[B, 3, H, W]``.
        image_size: S, the model's side in pixels.
        mean: per channel, of values from 0 to 1.
        std: likewise.

    Returns:
        float32 ``[B, 3, S, S]``, contiguous.
    """
    resized = functional.resize(
        images, [round(image_size * 256 / 224)], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    cropped = functional.center_crop(resized, [image_size, image_size])
    scaled = functional.to_dtype(cropped, torch.float32, scale=True)
    normalised: torch.Tensor = functional.normalize(scaled, list(mean), list(std), inplace=True)
    return normalised.contiguous()


def calibration_images(images: str | Path, manifest: str | Path, info: Mapping[str, Any]) -> torch.Tensor:
    """Return the calibration split of the packed ``images`` as the model of ``info`` takes it."""
    indices, _ = read_split(manifest, "calibration")
    packed = torch.from_numpy(np.load(images, mmap_mode="r")[indices])
    return preprocess(packed, info["image_size"], info["mean"], info["std"])
