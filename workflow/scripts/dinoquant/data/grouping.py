"""The images of a data set by the folders that they lie in, and notes on what is left out."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from dinoquant.data.containers import Container
from dinoquant.data.folder import is_system_file

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".mpo"}
CLASS_LIST, ANNOTATIONS = "wnids.txt", "val_annotations.txt"
# What belongs to Tiny ImageNet's layout and is not needed.
EXPECTED_FILES = {CLASS_LIST, ANNOTATIONS, "words.txt"}
EXPECTED_ENDING = "_boxes.txt"


class ImageFile(NamedTuple):
    """An image: its name in the container, and that which Tiny ImageNet's layout would give it.

    The second decides the selection, so that the same images in another layout give the same bank and queries.
    """

    member: str
    key: str


Images = dict[str, list[ImageFile]]  # by class


@dataclass
class Contents:
    """The files of a container: images and others, both sorted, and notes on those of which no use is made."""

    container: Container
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, kind: str, names: Iterable[str], verdict: str = "left out") -> None:
        """Note what becomes of how many of a ``kind`` (in the plural), with an example."""
        if names := list(names):
            self.notes.append(f"{verdict}: {len(names):,} {kind}, such as {min(names)}")


def contents_of(container: Container) -> Contents:
    """Return the files of a container, without what systems leave behind."""
    contents, system = Contents(container), []
    for name in sorted(container.members):
        if is_system_file(name):
            system.append(name)
        elif PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            contents.images.append(name)
        else:
            contents.others.append(name)
    contents.note("hidden or system files", system)
    contents.note(
        "files that are no images",
        (
            name
            for name in contents.others
            if PurePosixPath(name).name not in EXPECTED_FILES and not name.endswith(EXPECTED_ENDING)
        ),
    )
    contents.note("copies of members of the same name", container.copies)
    return contents


def by_class(images: Iterable[str], folder: str, split: str) -> tuple[Images, list[ImageFile]]:
    """Return the images below ``folder`` by their class, the name of its first folder; and those that lie in none.

    Args:
        images: names.
        folder: with a slash at its end, or empty.
        split: ``train`` or ``val``, for the keys.
    """
    classes: Images = defaultdict(list)
    direct = []
    for member in images:
        if member.startswith(folder):
            name, _, rest = member.removeprefix(folder).partition("/")
            rest = rest.removeprefix("images/")
            if not rest:
                direct.append(ImageFile(member, f"{split}/images/{name}"))
            else:
                key = f"train/{name}/images/{rest}" if split == "train" else f"val/images/{rest}"
                classes[name].append(ImageFile(member, key))
    return dict(classes), direct


def together(images: Images) -> list[ImageFile]:
    """Return the images of all classes."""
    return [image for members in images.values() for image in members]
