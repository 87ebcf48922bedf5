"""The transforms against torchvision's on PIL images, the path of DINO's own evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional

from dinoquant.data.preprocess import preprocess

# Unequal per channel, so that swapped channels or swapped arguments show.
MEAN, STD = [0.485, 0.456, 0.306], [0.229, 0.324, 0.425]
LEVEL = 1 / 255


def through_pil(image: np.ndarray, resize: int, crop: int) -> torch.Tensor:
    """Return a uint8 [3, H, W] image after torchvision's transforms of its PIL image."""
    steps = [
        transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(crop),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)(Image.fromarray(image.transpose(1, 2, 0)))


def through_tensors(images: torch.Tensor, resize: int, crop: int) -> torch.Tensor:
    """Return a uint8 [B, 3, H, W] batch after torchvision's operators for tensors."""
    resized = functional.resize(images, [resize], transforms.InterpolationMode.BICUBIC, antialias=True)
    cropped = functional.center_crop(resized, [crop, crop])
    return functional.normalize(functional.to_dtype(cropped, torch.float32, scale=True), MEAN, STD)


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (64, 64, 256, 224),  # Tiny ImageNet, DINO's protocol
        (48, 81, 256, 224),
        (81, 48, 110, 96),  # 109.7 rounded
        (300, 400, 37, 32),  # much smaller, where antialiasing decides; 36.6 rounded
    ],
)
def test_equals_the_transforms_of_pil_images(height: int, width: int, resize: int, crop: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (3, height, width)).copy()
    images = np.stack([noise, ramp])

    result = preprocess(torch.from_numpy(images), crop, MEAN, STD)

    expected = torch.stack([through_pil(image, resize, crop) for image in images])
    assert result.shape == (2, 3, crop, crop)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    difference = (result - expected).abs() * torch.tensor(STD)[:, None, None]
    assert difference.max() < 1.01 * LEVEL
    assert difference.mean() < 0.02 * LEVEL
    assert torch.equal(result, through_tensors(torch.from_numpy(images), resize, crop))


def test_leaves_its_input_alone() -> None:
    images = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    preprocess(images, 16, MEAN, STD)
    assert (images == 200).all()
