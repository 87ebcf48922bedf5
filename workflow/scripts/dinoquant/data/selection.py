"""Select the images for bank, queries and calibration: by the seed alone, balanced over the classes."""

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Literal, NamedTuple

from dinoquant.data.grouping import ImageFile
from dinoquant.data.layout import Dataset
from dinoquant.errors import UserError

log = logging.getLogger(__name__)

Split = Literal["bank", "query", "calibration"]


class Item(NamedTuple):
    """One selected image."""

    split: Split
    wnid: str
    """Its class; empty where there are no labels."""
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


def select(dataset: Dataset, bank_per_class: int, queries: int, calibration_images: int, seed: int) -> Selection:
    """Select disjoint images for the three splits.

    The bank takes the first ``bank_per_class`` images of each class's shuffled train images, the calibration images
    come from the end of the same order: neither depends on the size of the other. Queries come from val; where there is
    none, they take the end of that order, and the calibration images what is before them. Within a split the classes
    take turns, so a smaller split is the beginning of a larger one, and batches mix the classes.

    Args:
        dataset: the open data set.
        bank_per_class: train images per class; without labels there is no bank.
        queries: validation images in total.
        calibration_images: train images in total, none of them in the bank.
        seed: of the order of images and classes.

    Raises:
        UserError: the data set has too few images; names the key.
    """
    classes = _shuffled_names(dataset.classes or [""], seed)
    train = {name: _shuffled(dataset.train[name], seed) for name in classes}
    bank_per_class *= dataset.labelled
    smallest = min(classes, key=lambda name: len(train[name]))
    if bank_per_class > len(train[smallest]):
        raise UserError(
            f"dataset.bank_per_class is {bank_per_class}, but class {smallest} has only {len(train[smallest])} train "
            "images. Choose a smaller number."
        )
    outside = {name: members[bank_per_class:][::-1] for name, members in train.items()}
    val = outside if dataset.val is None else {name: _shuffled(dataset.val[name], seed) for name in classes}
    query = list(islice(_take_turns("query", val), queries))
    if len(query) < queries:
        kind = "images outside the bank" if dataset.val is None else "labelled validation images"
        raise UserError(
            f"dataset.queries is {queries}, but dataset.source has only {len(query)} "
            f"{kind if dataset.labelled else 'images for them'}. Choose a smaller number."
        )
    used_queries = Counter(item.wnid for item in query)
    if dataset.val is None:
        outside = {name: members[used_queries[name] :] for name, members in outside.items()}
    calibration = list(islice(_take_turns("calibration", outside), calibration_images))
    if len(calibration) < calibration_images:
        raise UserError(
            f"dataset.calibration_images is {calibration_images}, but dataset.source has only {len(calibration)} train "
            "images outside the bank. Choose a smaller number, or a smaller dataset.bank_per_class"
            f"{' or dataset.queries' if dataset.val is None else ''}."
        )
    _log_imbalance("dataset.calibration_images", calibration, classes)
    _log_imbalance("dataset.queries", query, classes)
    used = Counter(item.wnid for item in calibration)
    spare = {name: deque(reversed(members[used[name] :])) for name, members in outside.items()}
    return Selection(
        items=[
            *_take_turns("bank", {name: members[:bank_per_class] for name, members in train.items()}),
            *query,
            *calibration,
        ],
        spare_train=spare,
        spare_val=spare
        if dataset.val is None
        else {name: deque(members[used_queries[name] :]) for name, members in val.items()},
    )


def _take_turns(split: Split, members: dict[str, list[str]]) -> Iterator[Item]:
    """Yield the first image of every class, then the second of every class that has one, and so on."""
    for turn in zip_longest(*members.values()):
        for name, member in zip(members, turn, strict=True):
            if member is not None:
                yield Item(split, name, member)


def _shuffled(images: Iterable[ImageFile], seed: int) -> list[str]:
    """Return the members in an order that depends neither on that of the archive nor on its layout."""
    return [image.member for image in sorted(images, key=lambda image: (_digest(image.key, seed), image.member))]


def _shuffled_names(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: _digest(name, seed))


def _digest(name: str, seed: int) -> bytes:
    """Return what decides the order: no library's random numbers, which may be others in its next version."""
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _log_imbalance(key: str, items: list[Item], classes: list[str]) -> None:
    counts = Counter(item.wnid for item in items)
    fewest, most = min(counts[name] for name in classes), max(counts[name] for name in classes)
    if most - fewest > 1:
        log.warning("%s: not balanced, some classes ran out: %d to %d images per class", key, fewest, most)
