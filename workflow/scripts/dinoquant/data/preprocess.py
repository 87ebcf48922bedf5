"""Turn packed uint8 images into what the model takes, as DINO's k-NN protocol does.

torchvision's resize, center_crop and normalize do the same with the same operators. They are not used because importing
torchvision takes as long as importing PyTorch, in every job that prepares images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from dinoquant.data.crop import margin, resized, shorter_side
from dinoquant.data.manifest import read_split


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
    height, width = images.shape[-2:]
    size = resized(height, width, shorter_side(image_size))
    if images.device.type == "cpu":
        pixels = functional.interpolate(images, size, mode="bicubic", antialias=True)
    else:  # where PyTorch resizes floats only
        floats = functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
        pixels = floats.clamp_(0, 255).round_()
    top, left = (margin(side, image_size) for side in size)
    cropped = pixels[..., top : top + image_size, left : left + image_size]
    scaled = cropped.float().mul_(1 / 255)
    mean_, std_ = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return scaled.sub_(mean_).div_(std_).contiguous()


def calibration_images(images: str | Path, manifest: str | Path, info: Mapping[str, Any]) -> torch.Tensor:
    """Return the calibration split of the packed ``images`` as the model of ``info`` takes it."""
    indices, _ = read_split(manifest, "calibration")
    packed = torch.from_numpy(np.load(images, mmap_mode="r")[indices])
    return preprocess(packed, info["image_size"], info["mean"], info["std"])
