"""Measure how much of fp32's features and predictions a variant keeps, with confidence intervals. Needs no PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinoquant.errors import UserError
from dinoquant.judge.knn import predict
from dinoquant.judge.paired import compared, mean_interval, percentage

Features = Mapping[str, NDArray[np.float32]]
Labels = Mapping[str, NDArray[np.int64]]


def evaluate(
    variant: Features, fp32: Features, labels: Labels, wnids: Mapping[int, str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the accuracy of ``variant`` and its fidelity to ``fp32`` on the same images, ready for JSON.

    Percentages have Wilson intervals, the mean cosine a percentile bootstrap interval over the queries. What is said of
    the predictions is paired, because both models err on largely the same queries: see `compared`. ``per_class`` has an
    entry for every class with a query, the one that loses most first.

    Args:
        variant: ``bank`` ``[Nb, D]`` and ``query`` ``[Nq, D]``.
        fp32: the same images' features.
        labels: of ``bank`` ``[Nb]`` and ``query`` ``[Nq]``, from 0.
        wnids: the name of each label.
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
    truth, confidence = labels["query"], config["confidence"]
    correct, reference_correct = predicted[:, 0] == truth, reference[:, 0] == truth
    cosines = cosine(variant["query"], fp32["query"])
    same = all(np.array_equal(variant[split], fp32[split]) for split in ("bank", "query"))
    difference = compared(correct, reference_correct, confidence, same=same)
    return {
        "bank": len(labels["bank"]),
        "queries": queries,
        "k": config["k"],
        "temperature": config["temperature"],
        **percentage("knn_top1", correct, confidence),
        **percentage("knn_top5", (predicted == truth[:, None]).any(axis=1), confidence),
        **{f"knn_top1_{name}": difference[name] for name in ("drop", "drop_ci_low", "drop_ci_high")},
        **{f"mcnemar_{name}": difference[name] for name in ("p", "lost", "gained")},
        **_mean("cosine_mean", cosines, config),
        "cosine_p5": float(np.percentile(cosines, 5)),
        **percentage("knn_agreement", predicted[:, 0] == reference[:, 0], confidence),
        "per_class": [
            {"wnid": wnids[label], **entry}
            for label, entry in _per_class(correct, reference_correct, truth, confidence, same)
        ],
    }


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine similarity of each pair of rows of two arrays ``[N, D]``: ``[N]``, exactly 1 for equal rows."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    # Not the product of two roots, which may round away from 1: the root of a square is exact.
    return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def _predict(features: Features, labels: Labels, config: Mapping[str, Any]) -> NDArray[np.int64]:
    return predict(
        features["bank"],
        labels["bank"],
        features["query"],
        classes=int(max(labels["bank"].max(), labels["query"].max())) + 1,
        k=config["k"],
        temperature=config["temperature"],
    )


def _per_class(
    correct: NDArray[np.bool_], reference: NDArray[np.bool_], truth: NDArray[np.int64], confidence: float, same: bool
) -> list[tuple[int, dict[str, float]]]:
    """Return each class that has queries, with its accuracies in percent and its drop, the largest drop first."""
    entries = []
    for label in np.unique(truth).tolist():
        own = truth == label
        difference = compared(correct[own], reference[own], confidence, same=same)
        entry = {
            "queries": int(own.sum()),
            "knn_top1": 100 * float(correct[own].mean()),
            "knn_top1_fp32": 100 * float(reference[own].mean()),
            **{name: difference[name] for name in ("drop", "drop_ci_low", "drop_ci_high")},
        }
        entries.append((label, entry))
    return sorted(entries, key=lambda item: -item[1]["drop"])


def _mean(name: str, values: NDArray[np.float64], config: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean of the values and its interval, in their unit."""
    low, high = mean_interval(values, config["confidence"], config["resamples"], config["seed"])
    return {name: float(values.mean()), f"{name}_ci_low": low, f"{name}_ci_high": high}
