"""Recognise how a data set's images lie in folders, and so which classes and splits it has. Nothing is decoded."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dinoquant.data.containers import Container, UnusableContainerError, open_container
from dinoquant.data.grouping import (
    ANNOTATIONS,
    CLASS_LIST,
    IMAGE_SUFFIXES,
    Contents,
    ImageFile,
    Images,
    by_class,
    contents_of,
    together,
)
from dinoquant.data.labels import listed_classes, validation_images
from dinoquant.data.manifest import UNLABELLED
from dinoquant.errors import UserError

log = logging.getLogger(__name__)

# What folders of splits are called: train, training_set, train2017, images_train, ILSVRC2012_img_train.
SPLIT = re.compile(
    r"(?:(?:ilsvrc\d+_)?ima?ge?s?[_-])?(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?)|(?P<test>test(?:ing)?))"
    r"(?:[_-]?(?:images?|imgs?|data|set|split|\d{4}))?",
    re.IGNORECASE,
)
EXPECTED = (
    "Expected is a zip or tar file, or a folder, with one of: train/CLASS/* and val/CLASS/* (torchvision's "
    "ImageFolder); Tiny ImageNet's layout (wnids.txt, train/WNID/images/*, val/images/*, val/val_annotations.txt); a "
    "folder for each class, which is split; images without folders, which have no labels. Images are files that end in "
    f"{' '.join(sorted(IMAGE_SUFFIXES))}."
)


@dataclass(frozen=True)
class Dataset:
    """An open data set."""

    container: Container
    layout: str
    """In words, for people."""
    classes: list[str]
    """Sorted; a class's label is its index here. Empty where there are no labels."""
    train: Images
    """By class; all under the class "" where there are no labels."""
    val: Images | None
    """Likewise; empty for a class that has none. None: queries are to be taken from ``train``."""
    notes: list[str]
    """What is not used, and how much of it, a line for each kind."""

    @property
    def labelled(self) -> bool:
        """Whether k-NN and probe have classes to tell apart."""
        return bool(self.classes)


@contextmanager
def open_dataset(path: str | Path, scratch: str | Path | None = None) -> Iterator[Dataset]:
    """Open a zip file, tar file or folder at ``path`` and find its classes and splits; log them and what is left out.

    Args:
        path: of the data set.
        scratch: as for `open_container`.

    Raises:
        UserError: it is no archive, has members that would leave its folder, or its layout is not known or ambiguous.
    """
    try:
        with open_container(path, scratch) as container:
            dataset = recognise(container)
            log.info("%s: %s", path, dataset.layout)
            if dataset.notes:
                log.warning("%s: %s", path, "; ".join(dataset.notes))
            yield dataset
    except UnusableContainerError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def recognise(container: Container) -> Dataset:
    """Return the data set in a container.

    Raises:
        UnusableContainerError: its layout is not known or ambiguous, or its lists contradict its folders.
    """
    contents = contents_of(container)
    if not contents.images:
        suffixes = sorted({PurePosixPath(name).suffix.lower() or "no suffix" for name in contents.others})
        kinds = f" It has files with {', '.join(suffixes[:8])}." if suffixes else ""
        raise UnusableContainerError(f"it has no images.{kinds}\n{EXPECTED}")
    lists = [name for name in contents.others if PurePosixPath(name).name == CLASS_LIST]
    if len(lists) > 1:
        raise UnusableContainerError(
            f"it has {len(lists)} members named {CLASS_LIST}, expected one: {', '.join(lists)}."
        )
    train_folder = _train_folder(contents.images, lists)
    if train_folder:
        return _with_splits(contents, train_folder, lists)
    if lists:
        raise UnusableContainerError(
            f"it has {lists[0]}, but no train images: there is no folder train/ beside it.\n{EXPECTED}"
        )
    return _without_splits(contents)


def _train_folder(images: list[str], lists: list[str]) -> str | None:
    """Return the folder of training images, with a slash at its end; None where there is none."""
    depths: dict[str, int] = {}
    for folder in {name.rpartition("/")[0] for name in images}:
        parts = folder.split("/")
        depth = next((depth for depth, part in enumerate(parts) if _split(part) == "train"), None)
        if depth is not None:
            depths["/".join(parts[: depth + 1]) + "/"] = depth
    if lists:
        beside = lists[0].removesuffix(CLASS_LIST)
        depths = {folder: depth for folder, depth in depths.items() if _parent(folder) == beside} or depths
    if not depths:
        return None
    least = min(depths.values())
    folder, *others = sorted(folder for folder, depth in depths.items() if depth == least)
    if others:
        raise UnusableContainerError(
            f"it has more than one folder of training images: {', '.join([folder, *others])}. Take all but one away; "
            "or, if they are of one class each, put the splits above the classes: train/CLASS/*."
        )
    # One of the classes may be called "train": then no folder beside it is a split, and it holds none itself.
    beside_it = {_split(name) for name in _folders_in(images, _parent(folder))}
    return folder if _folders_in(images, folder) or beside_it & {"val", "test"} else None


def _split(name: str) -> str | None:
    """Return which split a folder of that name holds; None where it is another."""
    match = SPLIT.fullmatch(name)
    return match.lastgroup if match else None


def _parent(folder: str) -> str:
    return folder[: folder.rstrip("/").rfind("/") + 1]


def _folders_in(images: list[str], folder: str) -> set[str]:
    """Return the names of the folders in ``folder`` that have images somewhere below."""
    paths = (name.removeprefix(folder).split("/", 1) for name in images if name.startswith(folder))
    return {path[0] for path in paths if len(path) > 1}


def _without_splits(contents: Contents) -> Dataset:
    """Return a data set whose images lie in a folder for each class, or in none."""
    classes, direct = by_class(contents.images, _common_folder(contents.images), "train")
    if len(classes) > 1 and len(direct) < len(contents.images) / 2:
        contents.note("images beside the folders of the classes", (image.member for image in direct))
        _note_alike(contents, classes)
        layout = f"a folder for each of {len(classes):,} classes; the seed splits them into bank and queries"
        return Dataset(contents.container, layout, sorted(classes), classes, None, contents.notes)
    return _unlabelled(contents, [*direct, *together(classes)], None)


def _common_folder(images: list[str]) -> str:
    """Return the deepest folder that has all images below it, with a slash at its end."""
    first, last = min(images).split("/")[:-1], max(images).split("/")[:-1]
    common = 0
    while common < min(len(first), len(last)) and first[common] == last[common]:
        common += 1
    return "".join(f"{part}/" for part in first[:common])


def _unlabelled(contents: Contents, train: list[ImageFile], val: list[ImageFile] | None) -> Dataset:
    layout = f"{UNLABELLED}: variants are compared by their features alone, without k-NN and probe"
    return Dataset(contents.container, layout, [], {"": train}, None if val is None else {"": val}, contents.notes)


def _with_splits(contents: Contents, train_folder: str, lists: list[str]) -> Dataset:
    """Return a data set with a folder of training images, in Tiny ImageNet's layout or torchvision's."""
    train, direct = by_class(contents.images, train_folder, "train")
    classes = listed_classes(contents, lists[0], train) if lists else sorted(train)
    val_folder, test_folder = _val_folders(contents, _parent(train_folder))
    if val_folder is None and test_folder and _folders_in(contents.images, test_folder) & set(classes):
        val_folder = test_folder
    used = [train_folder, *filter(None, (val_folder, test_folder))]
    contents.note(
        f"images outside {', '.join(used)}", (name for name in contents.images if not name.startswith(tuple(used)))
    )
    if len(classes) < 2:
        sorted_val, direct_val = by_class(contents.images, val_folder, "val") if val_folder else ({}, [])
        return _unlabelled(contents, [*direct, *together(train)], [*direct_val, *together(sorted_val)] or None)
    contents.note("training images beside the folders of the classes", (image.member for image in direct))
    train = {name: train[name] for name in classes}
    _note_alike(contents, train)
    layout = f"{len(classes):,} classes, from {f'{CLASS_LIST} and ' if lists else ''}{train_folder}"
    if val_folder is None:
        layout += "; there is no val/, and the seed splits the training images into bank and queries"
        return Dataset(contents.container, layout, classes, train, None, contents.notes)
    val, labelled_by = validation_images(contents, val_folder, classes)
    layout += f"; queries from {val_folder}, labelled by {labelled_by}"
    return Dataset(contents.container, layout, classes, train, val, contents.notes)


def _note_alike(contents: Contents, classes: Images) -> None:
    """Note the classes whose names differ only in case; as for torchvision, they are different ones."""
    first: dict[str, str] = {}
    alike = [name for name in sorted(classes) if first.setdefault(name.casefold(), name) != name]
    contents.note("classes whose names differ from another's only in case", alike, "kept apart")


def _val_folders(contents: Contents, top: str) -> tuple[str | None, str | None]:
    """Return the folders of validation and of test images beside that of training images, with a slash at their end."""
    beside = _folders_in(contents.images, top)
    val, test = (sorted(f"{top}{name}/" for name in beside if _split(name) == split) for split in ("val", "test"))
    for named in (val, test):
        if len(named) > 1:
            raise UnusableContainerError(
                f"it is not clear which of {', '.join(named)} holds the images to classify. Take the others away."
            )
    lists = [name for name in contents.others if PurePosixPath(name).name == ANNOTATIONS]
    if lists and not val:
        raise UnusableContainerError(f"it has {lists[0]}, but no validation images.")
    return val[0] if val else None, test[0] if test else None
