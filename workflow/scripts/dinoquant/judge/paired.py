"""What is said of a number of images with the number of images behind it: intervals, and comparisons in pairs."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

# Resampled values in memory at a time: 8 bytes each for the value and for its place, 64 MB.
BOOTSTRAP_BLOCK = 2**22


def percentage(name: str, hits: NDArray[np.bool_], confidence: float) -> dict[str, float]:
    """Return the share of hits ``[N]`` and its interval, in percent."""
    count = int(hits.sum())
    low, high = wilson_interval(count, len(hits), confidence)
    return {name: 100 * count / len(hits), f"{name}_ci_low": 100 * low, f"{name}_ci_high": 100 * high}


def wilson_interval(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return the interval of a share (0 to 1) after E. B. Wilson, JASA 22 (1927)."""
    interval = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: NDArray[np.float64], confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values`` ``[N]``, N at least 2.

    After Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. Equal seeds resample equal places.
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
    return float(interval.low), float(interval.high)


def compared(
    correct: NDArray[np.bool_], reference: NDArray[np.bool_], confidence: float, *, same: bool
) -> dict[str, float]:
    """Return what a variant loses against fp32, from whether each was right on the same queries, both ``[N]``.

    ``drop`` in percentage points with its interval (`paired_interval`); ``lost`` and ``gained``, the queries that only
    fp32 and only the variant got right; ``p`` of McNemar's exact test, which asks whether chance alone would divide
    these so unequally (Q. McNemar, Psychometrika 12, 1947).

    Args:
        same: the variant is fp32 itself: its drop is 0 on any query, not only on these.
    """
    lost, gained = int((reference & ~correct).sum()), int((correct & ~reference).sum())
    low, high = (0.0, 0.0) if same else paired_interval(lost, gained, len(correct), confidence)
    return {
        "drop": 100 * (lost - gained) / len(correct),
        "drop_ci_low": 100 * low,
        "drop_ci_high": 100 * high,
        "p": float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0,
        "lost": lost,
        "gained": gained,
    }


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

    beside = 1e-12  # the excess is negative on both sides of the estimate; at it, it may be 0
    low = optimize.brentq(excess, -1.0, max(estimate - beside, -1.0))
    high = optimize.brentq(excess, min(estimate + beside, 1.0), 1.0)
    return float(low), float(high)
