"""Classify features by their neighbours, as DINO's weighted k-NN does.

In NumPy: neither scikit-learn's neighbours nor `torch.topk` say which of equally similar images they take, and votes
that hang on it would differ from one version of them to the next.
"""

import numpy as np
from numpy.typing import NDArray

from dinoquant.errors import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RANKED = 5
NO_CLASS = -1
# Similarities in work at a time; with what is derived from them 24 bytes each, 50 MB.
BLOCK = 2**21


def predict(
    bank: NDArray[np.float32],
    bank_labels: Integers,
    query: NDArray[np.float32],
    *,
    classes: int,
    k: int,
    temperature: float,
) -> Integers:
    """Return the classes of each query, most likely first: ``[Nq, min(5, classes)]``.

    The method of DINO's `eval_knn.py` (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
    2021): each of the ``k`` bank images of highest cosine similarity votes for its class with
    ``exp(similarity / temperature)``. Equal similarities are taken in the order of the bank, equal votes in the order
    of the classes. A class without a vote is not predicted: -1 stands for it; the original fills up with
    arbitrary classes there.

    Beside the features in float64 this takes about 50 MB, or 24 bytes per bank image if that is more.

    Args:
        bank: features ``[Nb, D]``, of any length.
        bank_labels: ``[Nb]``, 0 to ``classes - 1``.
        query: features ``[Nq, D]``, of any length.

    Raises:
        UserError: the bank has fewer than ``k`` images, or a feature is zero.
    """
    if k > len(bank):
        raise UserError(
            f"accuracy.k is {k}, but the bank has only {len(bank)} images: lower accuracy.k, or raise "
            "dataset.bank_per_class."
        )
    bank_directions, query_directions = normalise(bank), normalise(query)
    rows = max(1, BLOCK // len(bank))
    blocks = (query_directions[start : start + rows] for start in range(0, len(query), rows))
    return np.concatenate(
        [
            _ranked_classes(*_neighbours(block @ bank_directions.T, k), bank_labels, classes, temperature)
            for block in blocks
        ]
    )


def normalise(features: NDArray[np.float32]) -> Floats:
    """Return the features ``[N, D]`` with length 1; UserError where one is zero."""
    require_directions(features)
    wide = features.astype(np.float64)
    directions: Floats = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return directions


def require_directions(features: NDArray[np.float32]) -> None:
    """Raise UserError if one of the features ``[N, D]`` is zero."""
    zeros = np.count_nonzero(~features.any(axis=1))
    if zeros:
        raise UserError(
            f"The features of {zeros} of {len(features)} images are all zeros and so have no "
            "direction. The model is broken: change the variant's recipe or options, or take it out of variants."
        )


def _neighbours(similarities: Floats, k: int) -> tuple[Integers, Floats]:
    """Return columns and values of each row's ``k`` largest entries, largest first, ties by column: ``[N, k]``."""
    smallest_taken = np.partition(similarities, -k, axis=1)[:, -k, None]
    taken = similarities > smallest_taken
    tied = similarities == smallest_taken
    free = k - taken.sum(axis=1, keepdims=True)
    taken |= tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= free)
    columns = np.nonzero(taken)[1].reshape(-1, k)
    values = np.take_along_axis(similarities, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)


def _ranked_classes(
    neighbours: Integers, similarities: Floats, bank_labels: Integers, classes: int, temperature: float
) -> Integers:
    """Return the classes that each query's bank images ``[N, k]`` vote for, ranked: ``[N, min(5, classes)]``."""
    # Relative to the nearest neighbour, which ranks alike and cannot overflow at a low temperature.
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    cells = (np.arange(len(neighbours))[:, None] * classes + bank_labels[neighbours]).ravel()
    shape = (len(neighbours), classes)
    votes = np.bincount(cells, weights.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    voted = np.bincount(cells, minlength=votes.size).reshape(shape) > 0
    ranked = np.argsort(np.where(voted, -votes, np.inf), axis=1, kind="stable")[:, :RANKED]
    return np.where(np.take_along_axis(voted, ranked, axis=1), ranked, NO_CLASS)
