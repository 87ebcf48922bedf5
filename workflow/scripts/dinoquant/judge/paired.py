"""Shares and means over images with their confidence intervals, and comparisons of two models image by image."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

# Resampled values in memory at a time: 8 bytes each for the value and for its index, 64 MB.
BOOTSTRAP_BLOCK = 2**22


class Estimate(NamedTuple):
    """A number with the ends of its confidence interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """What a variant loses against fp32 on the same queries."""

    drop: Estimate
    """Accuracy lost, in percentage points."""
    p: float
    """Of McNemar's exact test: whether chance alone would divide lost and gained so unequally."""
    lost: int
    """Queries that only fp32 got right."""
    gained: int
    """Queries that only the variant got right."""


def percentage(hits: NDArray[np.bool_], confidence: float) -> Estimate:
    """Return the share of hits ``[N]`` and its interval, in percent."""
    count = int(hits.sum())
    low, high = wilson_interval(count, len(hits), confidence)
    return Estimate(100 * count / len(hits), 100 * low, 100 * high)


def wilson_interval(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return the interval of a share (0 to 1) after E. B. Wilson, JASA 22 (1927)."""
    interval = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean(values: NDArray[np.float64], confidence: float, resamples: int, seed: int) -> Estimate:
    """Return the mean of ``values`` ``[N]``, N at least 2, and its percentile bootstrap interval.

    After Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. Equal seeds resample alike.
    """
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BOOTSTRAP_BLOCK // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high))


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine similarity of each pair of rows of two arrays ``[N, D]``: ``[N]``, exactly 1 for equal rows."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    # Not the product of two roots, which may round away from 1: the root of a square is exact.
    return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def compare_paired(
    correct: NDArray[np.bool_], reference: NDArray[np.bool_], confidence: float, *, same: bool
) -> Comparison:
    """Return what a variant loses against fp32, from whether each was right on the same queries, both ``[N]``.

    The drop's interval is `paired_interval`; the test is that of Q. McNemar, Psychometrika 12 (1947).

    Args:
        same: the variant is fp32 itself: its drop is 0 on any query, not only on these.
    """
    lost, gained = int((reference & ~correct).sum()), int((correct & ~reference).sum())
    low, high = (0.0, 0.0) if same else paired_interval(lost, gained, len(correct), confidence)
    return Comparison(
        drop=Estimate(100 * (lost - gained) / len(correct), 100 * low, 100 * high),
        p=float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0,
        lost=lost,
        gained=gained,
    )


def paired_interval(lost: int, gained: int, queries: int, confidence: float) -> tuple[float, float]:
    """Return the interval of the share (-1 to 1) of all queries that is lost, less the share that is gained.

    Tango's score interval (T. Tango, Statistics in Medicine 17, 1998). It holds where few queries or none changed,
    which is where "no loss" is claimed: a bootstrap of 60 queries none of which changed says 0 to 0, this one that a
    loss of 6 points could have gone unseen.
    """
    squared = float(stats.norm.isf((1 - confidence) / 2)) ** 2
    estimate = (lost - gained) / queries

    def excess(drop: float) -> float:
        """Return how far the square of the score test's numerator is above what the confidence allows."""
        # The share gained that is likeliest if the drop is this one, from a quadratic equation.
        linear = (2 * queries - lost + gained) * drop - lost - gained
        root = math.sqrt(max(linear**2 + 8 * queries * gained * drop * (1 - drop), 0.0))
        likeliest = (root - linear) / (4 * queries)
        return (lost - gained - queries * drop) ** 2 - squared * queries * (2 * likeliest + drop * (1 - drop))

    epsilon = 1e-12  # the excess is negative on both sides of the estimate; at it, it may be 0
    low = optimize.brentq(excess, -1.0, max(estimate - epsilon, -1.0))
    high = optimize.brentq(excess, min(estimate + epsilon, 1.0), 1.0)
    return float(low), float(high)
