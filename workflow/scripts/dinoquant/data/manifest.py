"""Read the manifest of the packed images. Needs no PyTorch."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_split(path: str | Path, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places in the image array and the labels, both ``[N]``, of a split's images, in manifest order."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        rows = [(int(row["index"]), int(row["label"])) for row in csv.DictReader(stream) if row["split"] == split]
    indices, labels = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return indices, labels


def read_wnids(path: str | Path) -> dict[int, str]:
    """Return the name of every label that occurs."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return {int(row["label"]): row["wnid"] for row in csv.DictReader(stream)}


def spread(available: int, wanted: int) -> NDArray[np.int64]:
    """Return at most ``wanted`` of the places 0 to ``available`` - 1, evenly spread: splits are sorted by class."""
    taken = min(available, wanted)
    return np.arange(taken, dtype=np.int64) * available // taken
