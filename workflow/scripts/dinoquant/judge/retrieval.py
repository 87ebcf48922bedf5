"""Rank the bank's images by their similarity to a query, as image retrieval does."""

import numpy as np
from numpy.typing import NDArray

from dinoquant.judge.knn import BLOCK, Floats, Integers, normalise


def average_precisions(
    bank: NDArray[np.float32], bank_labels: Integers, query: NDArray[np.float32], query_labels: Integers
) -> Floats:
    """Return the average precision of each query ``[Nq]``, 0 to 1; its mean is the mAP of image retrieval.

    A query ranks the whole bank, which it is not in, by cosine similarity; relevant are the images of its class. The
    precision at each relevant one is averaged, without interpolation (Philbin et al., "Object retrieval with large
    vocabularies and fast spatial matching", 2007; scikit-learn's `average_precision_score`). Of equal similarities the
    first in the bank comes first. A query of a class that the bank lacks finds nothing: 0.

    Args:
        bank: features ``[Nb, D]``, of any length.
        bank_labels: ``[Nb]``.
        query: features ``[Nq, D]``, of any length.
        query_labels: ``[Nq]``.

    Raises:
        UserError: a feature is zero.
    """
    bank_directions, query_directions = normalise(bank), normalise(query)
    rows = max(1, BLOCK // len(bank))
    ranks = np.arange(1, len(bank) + 1)
    found = []
    for start in range(0, len(query), rows):
        block = slice(start, start + rows)
        order = np.argsort(-(query_directions[block] @ bank_directions.T), axis=1, kind="stable")
        relevant = bank_labels[order] == query_labels[block, None]
        precisions = np.cumsum(relevant, axis=1) / ranks
        found.append((precisions * relevant).sum(axis=1) / np.maximum(1, relevant.sum(axis=1)))
    return np.concatenate(found)
