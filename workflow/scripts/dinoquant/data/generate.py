"""Write a data set of drawn images in Tiny ImageNet's archive layout, for runs without network."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from dinoquant.files import atomic

TOP = "tiny-imagenet-200/"
SIDE = 64
JPEG_QUALITY = 90
# Tiny ImageNet has about 2 % greyscale images.
GREY_EVERY = 40

Floats = npt.NDArray[np.float64]


def generate(path: str | Path, classes: int, train_per_class: int, val_per_class: int, seed: int) -> None:
    """Write the archive to ``path``; the same arguments give the same bytes.

    A class is a colour, a grating and a spot; an image of it varies all three and adds noise, so that the nearest
    neighbours even of untrained features are often, not always, of the same class.

    Args:
        path: the zip file.
        classes: number of classes.
        train_per_class: train images of each.
        val_per_class: validation images of each; test has as many images, unlabelled.
        seed: of the classes and the images.
    """
    wnids = [f"n{90_000_000 + label}" for label in range(classes)]
    train_lists: dict[str, list[str]] = {}
    annotations: list[str] = []
    with atomic(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        shuffled = np.random.default_rng([seed, classes]).permutation(classes * val_per_class).tolist()
        for label, wnid in enumerate(tqdm(wnids, desc="generate", unit="class", disable=None)):
            images, boxes = _draw(train_per_class + 2 * val_per_class, np.random.default_rng([seed, label]))
            encoded = [_jpeg(image, grey=number % GREY_EVERY == GREY_EVERY // 4) for number, image in enumerate(images)]
            train_lists[wnid] = []
            for number in range(train_per_class):
                name = f"{wnid}_{number}.JPEG"
                _add(archive, f"train/{wnid}/images/{name}", encoded[number])
                train_lists[wnid].append(_tabbed(name, *boxes[number]))
            val_numbers = shuffled[label * val_per_class : (label + 1) * val_per_class]
            for number, val_number in enumerate(val_numbers, train_per_class):
                _add(archive, f"val/images/val_{val_number}.JPEG", encoded[number])
                _add(archive, f"test/images/test_{val_number}.JPEG", encoded[number + val_per_class])
                annotations.append(_tabbed(f"val_{val_number}.JPEG", wnid, *boxes[number]))
        for wnid, lines in train_lists.items():
            _add(archive, f"train/{wnid}/{wnid}_boxes.txt", "".join(lines))
        _add(archive, "val/val_annotations.txt", "".join(annotations))
        _add(archive, "wnids.txt", "".join(f"{wnid}\n" for wnid in wnids))
        _add(archive, "words.txt", "".join(_tabbed(wnid, f"generated class {n}") for n, wnid in enumerate(wnids)))


def _draw(images: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[list[int]]]:
    """Return ``images`` images of one class, uint8 ``[N, H, W, 3]``, and the boxes (x0, y0, x1, y1) of their spots."""
    per_image = (images, 1, 1, 1)
    y, x = np.mgrid[0:SIDE, 0:SIDE].reshape(2, 1, SIDE, SIDE, 1)
    colour = rng.uniform(70, 185, 3) + rng.normal(0, 22, (images, 1, 1, 3)) + rng.normal(0, 22, per_image)
    angle = rng.uniform(0, np.pi) + rng.normal(0, 0.2, per_image)
    cycles = rng.uniform(2, 12) * rng.normal(1, 0.1, per_image)
    phase = rng.uniform(0, 2 * np.pi, per_image)
    wave = np.sin(2 * np.pi * cycles / SIDE * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    grating = wave * rng.uniform(-45, 45, 3) * rng.uniform(0.5, 1.5, per_image)
    centre = rng.integers(12, SIDE - 12, (images, 2))
    radius = int(rng.integers(5, 12))
    distance = (x - centre[:, 0].reshape(per_image)) ** 2 + (y - centre[:, 1].reshape(per_image)) ** 2
    spot = (distance < radius**2) * rng.uniform(-90, 90, 3)
    noise = rng.normal(0, 14, (images, SIDE, SIDE, 3))
    pixels = np.clip(colour + grating + spot + noise, 0, 255).astype(np.uint8)
    return pixels, np.hstack([centre - radius, centre + radius]).tolist()


def _jpeg(pixels: npt.NDArray[np.uint8], grey: bool) -> bytes:
    image = Image.fromarray(pixels)
    stream = BytesIO()
    (image.convert("L") if grey else image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _tabbed(*fields: object) -> str:
    return "\t".join(map(str, fields)) + "\n"


def _add(archive: zipfile.ZipFile, name: str, content: bytes | str) -> None:
    # A fixed time (the default of ZipInfo, 1980) and a fixed system: equal data sets are equal files.
    member = zipfile.ZipInfo(TOP + name)
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, content)
