"""Measure how much of fp32's features and predictions a variant keeps, with confidence intervals. Needs no PyTorch."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from dinoquant.data.manifest import UNLABELLED
from dinoquant.errors import UserError
from dinoquant.judge.knn import predict, require_directions
from dinoquant.judge.paired import compare_paired, cosine, mean, percentage
from dinoquant.judge.retrieval import average_precisions

Features = Mapping[str, NDArray[np.float32]]
Labels = Mapping[str, NDArray[np.int64]]


class AccuracyConfig(TypedDict):
    """The part of the config that an accuracy depends on."""

    k: int
    temperature: float
    confidence: float
    """0 to 1."""
    resamples: int
    seed: int


class ClassAccuracy(TypedDict):
    """The accuracies of one class in percent, and what the variant loses in percentage points."""

    wnid: str
    queries: int
    knn_top1: float
    knn_top1_fp32: float
    drop: float
    drop_ci_low: float
    drop_ci_high: float


class Fidelity(TypedDict):
    """The cosines of a variant's features to fp32's, and how many images they are from."""

    bank: int
    queries: int
    cosine_mean: float
    cosine_mean_ci_low: float
    cosine_mean_ci_high: float
    cosine_p5: float
    per_class: list[ClassAccuracy]


class UnlabelledFidelity(Fidelity):
    """What remains where images have no labels."""

    accuracy_reason: str


class Accuracy(Fidelity):
    """The accuracy of a variant and its fidelity to fp32: percentages, drops in percentage points, and cosines."""

    k: int
    temperature: float
    knn_top1: float
    knn_top1_ci_low: float
    knn_top1_ci_high: float
    knn_top5: float
    knn_top5_ci_low: float
    knn_top5_ci_high: float
    knn_top1_drop: float
    knn_top1_drop_ci_low: float
    knn_top1_drop_ci_high: float
    mcnemar_p: float
    mcnemar_lost: int
    mcnemar_gained: int
    knn_agreement: float
    knn_agreement_ci_low: float
    knn_agreement_ci_high: float
    retrieval_map: float
    retrieval_map_ci_low: float
    retrieval_map_ci_high: float
    retrieval_map_drop: float
    retrieval_map_drop_ci_low: float
    retrieval_map_drop_ci_high: float


def evaluate(
    variant: Features, fp32: Features, labels: Labels, wnids: Mapping[int, str], config: AccuracyConfig
) -> Accuracy | UnlabelledFidelity:
    """Return the accuracy of ``variant`` and its fidelity to ``fp32`` on the same images, ready for JSON.

    Percentages have Wilson intervals, means (of cosines, of average precisions and what they lose) percentile bootstrap
    intervals over the queries. Predictions are compared in pairs, because both models err on largely the same queries:
    see `compare_paired`. ``per_class`` has an entry for every class with a query, the one that loses most first.
    Without a labelled bank only fidelity is known.

    Args:
        variant: ``bank`` ``[Nb, D]`` and ``query`` ``[Nq, D]``.
        fp32: the same images' features.
        labels: of ``bank`` ``[Nb]`` and ``query`` ``[Nq]``, from 0.
        wnids: the name of each label.

    Raises:
        UserError: too few bank images or queries, or a feature is zero.
    """
    queries = len(labels["query"])
    if queries < 2:
        raise UserError(
            f"dataset.queries gives {queries} query image: intervals need 2 or more. Raise dataset.queries."
        )
    for features in (variant, fp32):
        require_directions(features["query"])
    cosines = cosine(variant["query"], fp32["query"])
    mean_cosine = mean(cosines, config["confidence"], config["resamples"], config["seed"])
    fidelity: Fidelity = {
        "bank": len(labels["bank"]),
        "queries": queries,
        "cosine_mean": mean_cosine.value,
        "cosine_mean_ci_low": mean_cosine.low,
        "cosine_mean_ci_high": mean_cosine.high,
        "cosine_p5": float(np.percentile(cosines, 5)),
        "per_class": [],
    }
    if not len(labels["bank"]):
        return {**fidelity, "accuracy_reason": UNLABELLED}
    predicted, reference = (_predict(features, labels, config) for features in (variant, fp32))
    truth, confidence = labels["query"], config["confidence"]
    correct, reference_correct = predicted[:, 0] == truth, reference[:, 0] == truth
    precisions, reference_precisions = (100 * _precisions(features, labels) for features in (variant, fp32))
    retrieval, retrieval_drop = (
        mean(values, confidence, config["resamples"], config["seed"])
        for values in (precisions, reference_precisions - precisions)
    )
    same = all(np.array_equal(variant[split], fp32[split]) for split in ("bank", "query"))
    top1, top5, agreement = (
        percentage(hits, confidence)
        for hits in (correct, (predicted == truth[:, None]).any(axis=1), predicted[:, 0] == reference[:, 0])
    )
    comparison = compare_paired(correct, reference_correct, confidence, same=same)
    return {
        **fidelity,
        "k": config["k"],
        "temperature": config["temperature"],
        "knn_top1": top1.value,
        "knn_top1_ci_low": top1.low,
        "knn_top1_ci_high": top1.high,
        "knn_top5": top5.value,
        "knn_top5_ci_low": top5.low,
        "knn_top5_ci_high": top5.high,
        "knn_top1_drop": comparison.drop.value,
        "knn_top1_drop_ci_low": comparison.drop.low,
        "knn_top1_drop_ci_high": comparison.drop.high,
        "mcnemar_p": comparison.p,
        "mcnemar_lost": comparison.lost,
        "mcnemar_gained": comparison.gained,
        "knn_agreement": agreement.value,
        "knn_agreement_ci_low": agreement.low,
        "knn_agreement_ci_high": agreement.high,
        "retrieval_map": retrieval.value,
        "retrieval_map_ci_low": retrieval.low,
        "retrieval_map_ci_high": retrieval.high,
        "retrieval_map_drop": retrieval_drop.value,
        "retrieval_map_drop_ci_low": retrieval_drop.low,
        "retrieval_map_drop_ci_high": retrieval_drop.high,
        "per_class": sorted(
            (
                _class_accuracy(
                    wnids[label], correct[truth == label], reference_correct[truth == label], confidence, same
                )
                for label in np.unique(truth).tolist()
            ),
            key=lambda entry: -entry["drop"],
        ),
    }


def _predict(features: Features, labels: Labels, config: AccuracyConfig) -> NDArray[np.int64]:
    return predict(
        features["bank"],
        labels["bank"],
        features["query"],
        classes=int(max(labels["bank"].max(), labels["query"].max())) + 1,
        k=config["k"],
        temperature=config["temperature"],
    )


def _precisions(features: Features, labels: Labels) -> NDArray[np.float64]:
    return average_precisions(features["bank"], labels["bank"], features["query"], labels["query"])


def _class_accuracy(
    wnid: str, correct: NDArray[np.bool_], reference: NDArray[np.bool_], confidence: float, same: bool
) -> ClassAccuracy:
    """Return the accuracies of a class, from whether variant and fp32 were right on each of its queries."""
    drop = compare_paired(correct, reference, confidence, same=same).drop
    return {
        "wnid": wnid,
        "queries": len(correct),
        "knn_top1": 100 * float(correct.mean()),
        "knn_top1_fp32": 100 * float(reference.mean()),
        "drop": drop.value,
        "drop_ci_low": drop.low,
        "drop_ci_high": drop.high,
    }
