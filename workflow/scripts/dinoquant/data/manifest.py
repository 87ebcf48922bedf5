"""Read the manifest of the packed images. Needs no PyTorch."""

from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from dinoquant.files import read_rows

NO_LABEL = -1
UNLABELLED = "the images of dataset.source have no labels, or one class only"


class Row(TypedDict):
    """A packed image: its index in the array, its split, class, label, name in the source and PIL mode there."""

    index: int
    split: str
    wnid: str
    label: int
    member: str
    mode: str


COLUMNS = tuple(Row.__annotations__)


def read_split(path: str | Path, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices in the image array and the labels, both ``[N]``, of a split's images, in manifest order."""
    rows = [(int(row["index"]), int(row["label"])) for row in read_rows(path) if row["split"] == split]
    indices, labels = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return indices, labels


def read_wnids(path: str | Path) -> dict[int, str]:
    """Return the name of every label that occurs."""
    return {int(row["label"]): row["wnid"] for row in read_rows(path)}


def evenly_spaced(available: int, wanted: int) -> NDArray[np.int64]:
    """Return at most ``wanted`` of the indices 0 to ``available`` - 1, evenly spaced."""
    taken = min(available, wanted)
    return np.arange(taken, dtype=np.int64) * available // taken
