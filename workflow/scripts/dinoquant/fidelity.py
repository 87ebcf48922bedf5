"""Measure how much of fp32's features and predictions a variant keeps, with confidence intervals. Needs no PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dinoquant.errors import UserError
from dinoquant.knn import predict

Features = Mapping[str, NDArray[np.float32]]
Labels = Mapping[str, NDArray[np.int64]]

# Resampled values in memory at a time: 8 bytes each for the value and for its place, 64 MB.
BOOTSTRAP_BLOCK = 2**22


def evaluate(variant: Features, fp32: Features, labels: Labels, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy of ``variant`` and its fidelity to ``fp32`` on the same images, ready for JSON.

    Percentages have Wilson intervals. Drop and mean cosine have percentile bootstrap intervals over the queries; the
    drop's is paired, over the difference that each query makes, because both models err on largely the same queries.

    Args:
        variant: ``bank`` ``[Nb, D]`` and ``query`` ``[Nq, D]``.
        fp32: the same images' features.
        labels: of ``bank`` ``[Nb]`` and ``query`` ``[Nq]``, from 0.
        config: ``k``, ``temperature``, ``confidence`` (0 to 1), ``resamples``, ``seed``.

    Raises:
        UserError: too few bank images or queries, or a feature is zero.
    """
    queries = len(labels["query"])
    if queries < 2:
        raise UserError(
            f"dataset.queries gives {queries} query image: intervals need 2 or more. Raise dataset.queries."
        )
    predicted, reference = (_predict(features, labels, config) for features in (variant, fp32))
    truth = labels["query"]
    correct, reference_correct = predicted[:, 0] == truth, reference[:, 0] == truth
    cosines = cosine(variant["query"], fp32["query"])
    drops = 100.0 * (reference_correct.astype(np.int64) - correct)
    return {
        "bank": len(labels["bank"]),
        "queries": queries,
        "k": config["k"],
        "temperature": config["temperature"],
        **_percentage("knn_top1", correct, config),
        **_percentage("knn_top5", (predicted == truth[:, None]).any(axis=1), config),
        **_mean("knn_top1_drop", drops, config),
        **_mean("cosine_mean", cosines, config),
        "cosine_p5": float(np.percentile(cosines, 5)),
        **_percentage("knn_agreement", predicted[:, 0] == reference[:, 0], config),
    }


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine similarity of each pair of rows of two arrays ``[N, D]``: ``[N]``, exactly 1 for equal rows."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    # Not the product of two roots, which may round away from 1: the root of a square is exact.
    return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


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


def _predict(features: Features, labels: Labels, config: Mapping[str, Any]) -> NDArray[np.int64]:
    return predict(
        features["bank"],
        labels["bank"],
        features["query"],
        classes=int(max(labels["bank"].max(), labels["query"].max())) + 1,
        k=config["k"],
        temperature=config["temperature"],
    )


def _percentage(name: str, hits: NDArray[np.bool_], config: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of hits and its interval, in percent."""
    count = int(hits.sum())
    low, high = wilson_interval(count, len(hits), config["confidence"])
    return {name: 100 * count / len(hits), f"{name}_ci_low": 100 * low, f"{name}_ci_high": 100 * high}


def _mean(name: str, values: NDArray[np.float64], config: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean of the values and its interval, in their unit."""
    low, high = mean_interval(values, config["confidence"], config["resamples"], config["seed"])
    return {name: float(values.mean()), f"{name}_ci_low": low, f"{name}_ci_high": high}
