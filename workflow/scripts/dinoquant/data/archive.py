"""Read an archive in Tiny ImageNet's layout without unpacking it, and select images from it."""

import hashlib
import logging
import re
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

from dinoquant.errors import UserError

log = logging.getLogger(__name__)

Split = Literal["bank", "query", "calibration"]

TRAIN_IMAGE = re.compile(r"train/([^/]+)/images/[^/.][^/]*")
# An image or a list of this format has a few kB; a member that declares more is broken, or a decompression bomb.
MAX_MEMBER_BYTES = 64 << 20
# What `zipfile` raises for a member that is damaged, encrypted, or compressed in an unknown way.
MEMBER_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


class CorruptImage(Exception):
    """An image that cannot be read or decoded; its text says why."""


@dataclass(frozen=True)
class Archive:
    """An open archive.

    Members are named without ``top``, the folder that holds everything, so that renaming it changes no selection.
    """

    zip: zipfile.ZipFile
    top: str
    wnids: list[str]
    """The classes, sorted; a class's label is its place here."""
    train: dict[str, list[str]]
    """wnid -> members."""
    val: dict[str, list[str]]
    """wnid -> members; empty for a class that has none."""

    def read(self, member: str) -> bytes:
        """Return the content of an image file; raise `CorruptImage` where the archive is damaged there."""
        try:
            return _read(self.zip, self.top + member)
        except MEMBER_ERRORS as error:
            raise CorruptImage(str(error)) from error


class Item(NamedTuple):
    """One selected image."""

    split: Split
    wnid: str
    member: str


@dataclass(frozen=True)
class Selection:
    """The selected images in the order of the packed file, and what is left to replace corrupt ones."""

    items: list[Item]
    spare_train: dict[str, deque[str]]
    spare_val: dict[str, deque[str]]

    def replace(self, item: Item) -> Item | None:
        """Take the next image of the same class for the same split; None where no image is left."""
        spare = (self.spare_val if item.split == "query" else self.spare_train)[item.wnid]
        if not spare:
            return None
        return item._replace(member=spare.pop() if item.split == "calibration" else spare.popleft())


@contextmanager
def open_archive(path: str | Path) -> Iterator[Archive]:
    """Open the archive at ``path`` and index it.

    Raises:
        UserError: it is not a zip file, has members that would leave its folder, or is not in Tiny ImageNet's layout.
    """
    try:
        file = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is not a zip file, or only a part of one ({error}).\nDelete it and run again to fetch it anew."
        ) from error
    with file:
        try:
            archive = _index(file)
        except _LayoutError as error:
            raise UserError(
                f"{path} cannot be used: {error}\n"
                "Expected is Tiny ImageNet's layout: TOP/wnids.txt, TOP/train/WNID/images/*, TOP/val/images/* and "
                "TOP/val/val_annotations.txt (file, wnid, box; separated by tabs).\n"
                "Point dataset.source to such an archive."
            ) from error
        yield archive


def select(archive: Archive, bank_per_class: int, queries: int, calibration_images: int, seed: int) -> Selection:
    """Select disjoint images for the three splits.

    The bank takes the first ``bank_per_class`` images of each class's shuffled train images, the calibration images
    come from the end of the same order: neither depends on the size of the other. Queries come from val. Within a
    split the classes take turns, so a smaller split is the beginning of a larger one, and batches mix the classes.

    Args:
        archive: the open archive.
        bank_per_class: train images per class.
        queries: validation images in total.
        calibration_images: train images in total, none of them in the bank.
        seed: of the order of images and classes.

    Raises:
        UserError: the archive has too few images; names the key.
    """
    classes = _shuffled(archive.wnids, seed)
    train = {wnid: _shuffled(archive.train[wnid], seed) for wnid in classes}
    val = {wnid: _shuffled(archive.val[wnid], seed) for wnid in classes}
    smallest = min(classes, key=lambda wnid: len(train[wnid]))
    if bank_per_class > len(train[smallest]):
        raise UserError(
            f"dataset.bank_per_class is {bank_per_class}, but class {smallest} has only {len(train[smallest])} train "
            "images in the archive. Choose a smaller number."
        )
    bank = _take_turns("bank", {wnid: members[:bank_per_class] for wnid, members in train.items()})
    outside = {wnid: members[bank_per_class:][::-1] for wnid, members in train.items()}
    calibration = list(islice(_take_turns("calibration", outside), calibration_images))
    if len(calibration) < calibration_images:
        raise UserError(
            f"dataset.calibration_images is {calibration_images}, but the archive has only {len(calibration)} train "
            "images outside the bank. Choose a smaller number, or a smaller dataset.bank_per_class."
        )
    query = list(islice(_take_turns("query", val), queries))
    if len(query) < queries:
        raise UserError(
            f"dataset.queries is {queries}, but the archive has only {len(query)} labelled validation images. "
            "Choose a smaller number."
        )
    _log_imbalance("dataset.calibration_images", calibration, classes)
    _log_imbalance("dataset.queries", query, classes)
    used = Counter((item.split, item.wnid) for item in [*calibration, *query])
    return Selection(
        items=[*bank, *query, *calibration],
        spare_train={
            wnid: deque(members[bank_per_class : len(members) - used["calibration", wnid]])
            for wnid, members in train.items()
        },
        spare_val={wnid: deque(members[used["query", wnid] :]) for wnid, members in val.items()},
    )


def _take_turns(split: Split, members: dict[str, list[str]]) -> Iterator[Item]:
    """Yield the first image of every class, then the second of every class that has one, and so on."""
    for turn in zip_longest(*members.values()):
        for wnid, member in zip(members, turn, strict=True):
            if member is not None:
                yield Item(split, wnid, member)


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Return the names in the order of a digest of seed and name.

    It depends neither on their order in the archive nor on a library's random number generator.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def _log_imbalance(key: str, items: list[Item], classes: list[str]) -> None:
    counts = Counter(item.wnid for item in items)
    fewest, most = min(counts[wnid] for wnid in classes), max(counts[wnid] for wnid in classes)
    if most - fewest > 1:
        log.warning("%s: not balanced, some classes ran out: %d to %d images per class", key, fewest, most)


class _LayoutError(Exception):
    """What is wrong with an archive, without its name."""


def _index(file: zipfile.ZipFile) -> Archive:
    members = [info.filename for info in file.infolist() if not info.is_dir()]
    _check_names(file)
    top = _top(members)
    inside = {member.removeprefix(top) for member in members if member.startswith(top)}
    wnids = sorted(_lines(file, top + "wnids.txt"))
    if not wnids:
        raise _LayoutError("its wnids.txt names no class.")
    if twice := {wnid for wnid, count in Counter(wnids).items() if count > 1}:
        raise _LayoutError(f"its wnids.txt names {min(twice)!r} twice.")
    return Archive(file, top, wnids, _train(inside, wnids), _val(file, top, inside, wnids))


def _check_names(file: zipfile.ZipFile) -> None:
    """Refuse the names that a path in a zip file cannot have (APPNOTE 4.4.17), and names that occur twice."""
    seen: set[str] = set()
    for info in file.infolist():
        # The name as stored: `filename` ends at the first NUL.
        name = info.orig_filename
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or parts[0].endswith(":"):
            raise _LayoutError(f"its member {name!r} has an absolute path, or one that leaves the archive's folder.")
        if name in seen:
            raise _LayoutError(f"it has two members named {name!r}.")
        seen.add(name)


def _top(members: list[str]) -> str:
    tops = [member.removesuffix("wnids.txt") for member in members if member.split("/")[-1] == "wnids.txt"]
    if len(tops) != 1:
        raise _LayoutError(f"it has {len(tops) or 'no'} members named wnids.txt, expected one.")
    return tops[0]


def _train(inside: set[str], wnids: list[str]) -> dict[str, list[str]]:
    train: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    unlisted: set[str] = set()
    for member in inside:
        if match := TRAIN_IMAGE.fullmatch(member):
            if match[1] in train:
                train[match[1]].append(member)
            else:
                unlisted.add(match[1])
    if unlisted:
        log.warning("ignoring %d folders under train/ that wnids.txt does not name, such as %s", *_sample(unlisted))
    if empty := {wnid for wnid, images in train.items() if not images}:
        count, example = _sample(empty)
        raise _LayoutError(
            f"{count} of the {len(wnids)} classes of its wnids.txt have no train images, such as {example}."
        )
    return train


def _val(file: zipfile.ZipFile, top: str, inside: set[str], wnids: list[str]) -> dict[str, list[str]]:
    annotations = "val/val_annotations.txt"
    if annotations not in inside:
        raise _LayoutError(f"it has no member {top}{annotations}.")
    val: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    seen: set[str] = set()
    for line in _lines(file, top + annotations):
        name, wnid = (*line.split("\t"), "")[:2]
        member = f"val/images/{name}"
        if wnid not in val:
            raise _LayoutError(f"{annotations} gives {name!r} the class {wnid!r}, which wnids.txt does not name.")
        if member not in inside:
            raise _LayoutError(f"{annotations} names {name!r}, but there is no {top}{member}.")
        if member in seen:
            raise _LayoutError(f"{annotations} names {name!r} twice.")
        seen.add(member)
        val[wnid].append(member)
    if not seen:
        raise _LayoutError(f"its {annotations} names no image.")
    return val


def _sample(names: set[str]) -> tuple[int, str]:
    return len(names), min(names)


def _lines(file: zipfile.ZipFile, member: str) -> list[str]:
    """Return the lines of a text member that are not empty."""
    try:
        text = _read(file, member).decode("utf-8")
    except (*MEMBER_ERRORS, UnicodeDecodeError) as error:
        raise _LayoutError(f"its member {member} cannot be read ({error}).") from error
    return [line for line in text.splitlines() if line.strip()]


def _read(file: zipfile.ZipFile, member: str) -> bytes:
    size = file.getinfo(member).file_size
    if size > MAX_MEMBER_BYTES:
        raise zipfile.BadZipFile(f"it declares {size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
    return file.read(member)
