"""Which square of an image DINO's protocol shows to the model, in whole pixels. Needs no PyTorch."""

# `eval_knn.py` resizes to 256 pixels for a crop of 224.
RESIZED_PER_CROP = 256 / 224


def shorter_side(image_size: int) -> int:
    """Return the length in pixels to which an image's shorter side is resized before the crop of ``image_size``."""
    return round(image_size * RESIZED_PER_CROP)


def resized(height: int, width: int, short: int) -> tuple[int, int]:
    """Return height and width of an image whose shorter side is resized to ``short``, as torchvision rounds them."""
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def margin(side: int, crop: int) -> int:
    """Return how many pixels of ``side`` lie before a central crop, as torchvision rounds them."""
    return round((side - crop) / 2)
