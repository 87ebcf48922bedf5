"""Decode the selected images once and pack them into one array with its manifest."""

import copy
import logging
import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypedDict, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from dinoquant.data.containers import UnreadableMemberError
from dinoquant.data.crop import margin, resized, shorter_side
from dinoquant.data.layout import Dataset
from dinoquant.data.manifest import COLUMNS, NO_LABEL, UNLABELLED, Row
from dinoquant.data.selection import Item, Selection, Split
from dinoquant.errors import UserError
from dinoquant.files import atomic, write_rows

log = logging.getLogger(__name__)

# Pillow's own limit against decompression bombs, at which it only warns: 89 million, 360 MB of memory.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 0
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
# Modes with 8 bits per channel or fewer; `convert` would clip the others.
MODES = ("RGB", "L", "CMYK", "YCbCr", "P", "PA", "RGBA", "RGBX", "LA", "1")
# Images that all have one size, and no more pixels than DINO's protocol resizes to, are packed as they are.
SMALL_PIXELS = 256 * 256
# Times as long as wide.
MOST_ELONGATED = 16
SPLITS = get_args(Split)
LISTED = 10

Pixels = npt.NDArray[np.uint8]


class CorruptImageError(Exception):
    """An image that cannot be read or decoded; its text says why."""


class SizesDifferError(Exception):
    """The images are not of one small size, so that they have to be resized."""


class Skipped(TypedDict):
    """An image that was selected and could not be decoded."""

    member: str
    error: str


class Packed(NamedTuple):
    """What was packed: a row of the manifest per image, in the order of the array."""

    rows: list[Row]
    skipped: list[Skipped]
    height: int
    width: int
    resized: bool
    """Whether the images are central squares as the model's preprocessing makes them, or whole and unchanged."""


class Description(TypedDict):
    """What the packed data set is: the content of ``dataset.json``."""

    source: str
    substitute: str | None
    layout: str
    classes: int
    unlabelled: str | None
    splits: dict[str, int]
    height: int
    width: int
    resized: bool
    notes: list[str]
    skipped: list[Skipped]


def decode(content: bytes, image_size: int | None = None) -> tuple[Pixels, str]:
    """Return the pixels (uint8 ``[3, H, W]``, RGB) of an image file, and its PIL mode.

    As torchvision's ImageFolder does, it leaves the EXIF orientation and the alpha channel aside, and takes the first
    frame of several.

    Args:
        content: of the file.
        image_size: None: the whole image as it is. Else the model's side in pixels: the image's central square after
            its shorter side was resized (bicubic, antialiased) as `preprocess` does for that model, which then makes
            the same of the square as of the whole image.

    Raises:
        CorruptImageError: it cannot be decoded, or its header promises so many pixels that nothing was decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise CorruptImageError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            if image.mode not in MODES:
                raise CorruptImageError(f"mode {image.mode} is not supported")
            mode = image.mode
            rgb = image.convert("RGB")
            pixels = np.asarray(rgb if image_size is None else _central_square(rgb, image_size))
    except Image.DecompressionBombError as error:
        pixels_in_all = str(error).partition(" exceeds")[0]
        raise CorruptImageError(f"{pixels_in_all} is more than {MAX_PIXELS:,}") from error
    except UnidentifiedImageError as error:
        raise CorruptImageError(f"not an image in a known format ({', '.join(FORMATS)})") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise CorruptImageError(str(error)) from error
    return pixels.transpose(2, 0, 1), mode


def _central_square(image: Image.Image, image_size: int) -> Image.Image:
    """Resize the shorter side of an RGB image, and cut out the central square."""
    side = shorter_side(image_size)
    height, width = resized(image.height, image.width, side)
    # Such that the smaller crop of `preprocess` comes to lie where it would in the whole image.
    top, left = (margin(length, image_size) - margin(side, image_size) for length in (height, width))
    if max(height, width) <= MOST_ELONGATED * side:
        return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    # The whole of a strip could take any memory. Of a part Pillow may round in another order.
    scale_y, scale_x = image.height / height, image.width / width
    box = (left * scale_x, top * scale_y, (left + side) * scale_x, (top + side) * scale_y)
    return image.resize((side, side), Image.Resampling.BICUBIC, box)


def pack(dataset: Dataset, selection: Selection, path: str | Path, on_corrupt: str, image_size: int = 224) -> Packed:
    """Write the selected images to ``path``: uint8 ``[N, 3, H, W]``, in the order of the selection.

    Images of one small size are packed as they are; of others, the central squares that `decode` makes for
    ``image_size``. One image at a time is in memory.

    Args:
        dataset: the open data set.
        selection: what `select` returned.
        path: a ``.npy`` file.
        on_corrupt: ``error``: a corrupt image is fatal; ``skip``: the next of its class and split replaces it.
        image_size: the model's side in pixels.

    Raises:
        UserError: images are corrupt.
    """
    side = shorter_side(image_size)
    # Plain writes: on a full disk they raise an error, while a memory map gets the process killed by SIGBUS.
    with atomic(path) as partial, partial.open("wb") as stream:
        try:
            packed = _write(stream, dataset, selection, None)
        except SizesDifferError as difference:
            log.info("%s: packing their central squares of %d x %d pixels", difference, side, side)
            stream.seek(0)
            stream.truncate()
            packed = _write(stream, dataset, selection, image_size)
        if packed.skipped:
            _report_corrupt(packed.skipped, on_corrupt)
        _report_missing(packed.rows, selection)
        stream.seek(0)
        _write_header(stream, len(packed.rows), (3, packed.height, packed.width))
    return packed


def _write(stream: BinaryIO, dataset: Dataset, selection: Selection, image_size: int | None) -> Packed:
    """Write the pixels behind a header that `pack` corrects; ``image_size`` as for `decode`."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    labels = {name: label for label, name in enumerate(dataset.classes)}
    shape = (3, 0, 0)
    for item, pixels, mode in _images(dataset, selection, image_size, skipped):
        if not rows:
            shape = pixels.shape
            if image_size is None and shape[1] * shape[2] > SMALL_PIXELS:
                raise SizesDifferError(f"{item.member} has {shape[2]} x {shape[1]} pixels")
            _write_header(stream, len(selection.items), shape)
        elif pixels.shape != shape:
            raise SizesDifferError("The images are of different sizes")
        stream.write(pixels.tobytes())
        rows.append(
            {
                "index": len(rows),
                "split": item.split,
                "wnid": _printable(item.wnid),
                "label": labels.get(item.wnid, NO_LABEL),
                "member": _printable(item.member),
                "mode": mode,
            }
        )
    return Packed(rows, skipped, height=shape[1], width=shape[2], resized=image_size is not None)


def write_manifest(packed: Packed, path: str | Path) -> None:
    """Write a row per packed image: its index in the array, split, class, name in the source and PIL mode there."""
    write_rows(path, COLUMNS, packed.rows)


def describe(packed: Packed, dataset: Dataset, source: str, substitute: str | None) -> Description:
    """Return what the packed data set is."""
    splits = Counter(row["split"] for row in packed.rows)
    return {
        "source": source,
        "substitute": substitute,
        "layout": dataset.layout,
        "classes": len(dataset.classes),
        "unlabelled": None if dataset.labelled else UNLABELLED,
        "splits": {split: splits[split] for split in SPLITS},
        "height": packed.height,
        "width": packed.width,
        "resized": packed.resized,
        "notes": list(map(_printable, dataset.notes)),
        "skipped": packed.skipped,
    }


def _images(
    dataset: Dataset, selection: Selection, image_size: int | None, skipped: list[Skipped]
) -> Iterator[tuple[Item, Pixels, str]]:
    """Yield each selected image or its replacement, with pixels and mode; append the corrupt ones to ``skipped``."""
    spare = copy.deepcopy(selection)  # which replacing uses up
    for selected in tqdm(selection.items, desc="decode", unit="image", disable=None):
        item: Item | None = selected
        while item is not None:
            try:
                yield item, *_decode_member(dataset, item.member, image_size)
                break
            except CorruptImageError as error:
                skipped.append({"member": _printable(item.member), "error": str(error)})
                item = spare.replace(item)


def _decode_member(dataset: Dataset, member: str, image_size: int | None) -> tuple[Pixels, str]:
    try:
        return decode(dataset.container.read(member), image_size)
    except UnreadableMemberError as error:
        raise CorruptImageError(str(error)) from error


def _printable(name: str) -> str:
    """Return a name that can be written as UTF-8: those of files can be any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _write_header(stream: BinaryIO, images: int, shape: tuple[int, ...]) -> None:
    """Write the header of the array; NumPy pads it so that another number of images takes the same room."""
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": (images, *shape)}
    )


def _report_corrupt(skipped: list[Skipped], on_corrupt: str) -> None:
    lines = [f"  {entry['member']}: {entry['error']}" for entry in skipped[:LISTED]]
    if len(skipped) > LISTED:
        lines.append(f"  and {len(skipped) - LISTED} more")
    listing = f"Images that cannot be decoded: {len(skipped)}\n" + "\n".join(lines)
    if on_corrupt == "error":
        raise UserError(
            f"{listing}\nRepair dataset.source, or set dataset.on_corrupt to skip to use other images instead."
        )
    log.warning("%s", listing)


def _report_missing(rows: list[Row], selection: Selection) -> None:
    """Log the splits that corrupt images have made smaller; refuse one that has no image left."""
    counts = Counter(row["split"] for row in rows)
    for split, asked in Counter(item.split for item in selection.items).items():
        if not counts[split]:
            raise UserError(f"Not one image of the {split} split can be decoded. Repair the images of dataset.source.")
        if counts[split] < asked:
            log.warning("%s: %d images instead of %d: no others of their classes are left", split, counts[split], asked)
