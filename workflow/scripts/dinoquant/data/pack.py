"""Decode the selected images once and pack them into one array with its manifest."""

import csv
import logging
import struct
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from dinoquant.data.archive import Archive, CorruptImage, Item, Selection, Split
from dinoquant.errors import UserError
from dinoquant.files import atomic

log = logging.getLogger(__name__)

MAX_SIDE = 4096
FORMATS = ("JPEG", "PNG")
# Modes with 8 bits per channel or fewer; `convert` would clip the others.
MODES = ("RGB", "L", "CMYK", "P", "RGBA", "LA", "1")
COLUMNS = ("index", "split", "wnid", "label", "member", "mode")
SPLITS = get_args(Split)
LISTED = 10


class Packed(NamedTuple):
    """What was packed: a row of the manifest per image, in the order of the array."""

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    height: int
    width: int


class OversizedImage(Exception):
    """An image that would take more memory than any of this format; its text gives the size."""


def decode(content: bytes) -> tuple[npt.NDArray[np.uint8], str]:
    """Return the pixels (uint8 ``[3, H, W]``, RGB) of an image file, and its PIL mode.

    Raises:
        CorruptImage: it cannot be decoded.
        OversizedImage: its header promises a side of more than 4096 pixels; nothing was decoded.
    """
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if max(image.size) > MAX_SIDE:
                raise OversizedImage(f"{image.width} x {image.height} pixels")
            if image.mode not in MODES:
                raise CorruptImage(f"mode {image.mode} is not supported")
            mode = image.mode
            pixels = np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise OversizedImage(str(error).partition(" exceeds")[0]) from error
    except UnidentifiedImageError as error:
        raise CorruptImage("neither a JPEG nor a PNG image") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise CorruptImage(str(error)) from error
    return pixels.transpose(2, 0, 1), mode


def pack(archive: Archive, selection: Selection, path: str | Path, on_corrupt: str) -> Packed:
    """Write the selected images to ``path``: uint8 ``[N, 3, H, W]``, native size, in the order of the selection.

    Args:
        archive: the open archive.
        selection: what `select` returned; its spare images are used up.
        path: a ``.npy`` file.
        on_corrupt: ``error``: a corrupt image is fatal; ``skip``: the next of its class and split replaces it.

    Raises:
        UserError: images are corrupt, oversized, or not all of one size.
    """
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    labels = {wnid: label for label, wnid in enumerate(archive.wnids)}
    shape: tuple[int, ...] = ()
    # Plain writes: on a full disk they raise an error, while a memory map gets the process killed by SIGBUS.
    with atomic(path) as partial, partial.open("wb") as stream:
        for item, pixels, mode in _images(archive, selection, skipped):
            member = archive.top + item.member
            if not rows:
                shape = pixels.shape
                _write_header(stream, len(selection.items), shape)
            elif pixels.shape != shape:
                raise UserError(
                    f"{member} has {pixels.shape[2]} x {pixels.shape[1]} pixels, {rows[0]['member']} has "
                    f"{shape[2]} x {shape[1]}: the images of dataset.source must all have one size."
                )
            stream.write(pixels.tobytes())
            values = (len(rows), item.split, item.wnid, labels[item.wnid], member, mode)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        if skipped:
            _report_corrupt(skipped, on_corrupt)
        _report_missing(rows, selection)
        stream.seek(0)
        _write_header(stream, len(rows), shape)
    return Packed(rows, skipped, height=shape[1], width=shape[2])


def write_manifest(packed: Packed, path: str | Path) -> None:
    """Write a row per packed image: its place in the array, split, class, member of the archive and PIL mode there."""
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(packed.rows)


def describe(packed: Packed, archive: Archive, source: str, substitute: str | None) -> dict[str, Any]:
    """Return what the packed data set is: the content of ``dataset.json``."""
    splits = Counter(row["split"] for row in packed.rows)
    return {
        "source": source,
        "substitute": substitute,
        "classes": len(archive.wnids),
        "splits": {split: splits[split] for split in SPLITS},
        "height": packed.height,
        "width": packed.width,
        "skipped": packed.skipped,
    }


def _images(
    archive: Archive, selection: Selection, skipped: list[dict[str, str]]
) -> Iterator[tuple[Item, npt.NDArray[np.uint8], str]]:
    """Yield each selected image or its replacement, with pixels and mode; append the corrupt ones to ``skipped``."""
    for selected in tqdm(selection.items, desc="decode", unit="image", disable=None):
        item: Item | None = selected
        while item is not None:
            try:
                yield item, *decode(archive.read(item.member))
                break
            except CorruptImage as error:
                skipped.append({"member": archive.top + item.member, "error": str(error)})
                item = selection.replace(item)
            except OversizedImage as error:
                raise UserError(
                    f"{archive.top}{item.member} is refused: {error}, where at most {MAX_SIDE} on a side are taken. "
                    "Point dataset.source to an archive in Tiny ImageNet's layout."
                ) from error


def _write_header(stream: BinaryIO, images: int, shape: tuple[int, ...]) -> None:
    """Write the header of the array; NumPy pads it so that another number of images takes the same room."""
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": (images, *shape)}
    )


def _report_corrupt(skipped: list[dict[str, str]], on_corrupt: str) -> None:
    lines = [f"  {entry['member']}: {entry['error']}" for entry in skipped[:LISTED]]
    if len(skipped) > LISTED:
        lines.append(f"  and {len(skipped) - LISTED} more")
    listing = f"Images that cannot be decoded: {len(skipped)}\n" + "\n".join(lines)
    if on_corrupt == "error":
        raise UserError(
            f"{listing}\nRepair the archive, or set dataset.on_corrupt to skip to use other images instead."
        )
    log.warning("%s", listing)


def _report_missing(rows: list[dict[str, Any]], selection: Selection) -> None:
    """Log the splits that corrupt images have made smaller; refuse one that has no image left."""
    found = Counter(row["split"] for row in rows)
    for split, asked in Counter(item.split for item in selection.items).items():
        if not found[split]:
            raise UserError(f"Not one image of the {split} split can be decoded. Repair the archive of dataset.source.")
        if found[split] < asked:
            log.warning("%s: %d images instead of %d: no others of their classes are left", split, found[split], asked)
