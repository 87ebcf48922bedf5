"""Train a linear classifier on features, as DINO's linear evaluation does, and compare it with fp32's."""

import logging
import warnings
from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from dinoquant.data.manifest import UNLABELLED
from dinoquant.errors import UserError
from dinoquant.judge.knn import normalise
from dinoquant.judge.paired import compare_paired, percentage

log = logging.getLogger("dinoquant")

Features = Mapping[str, NDArray[np.float32]]
Labels = Mapping[str, NDArray[np.int64]]

# At scikit-learn's 1e-4 one prediction in 80 is not yet that of the optimum (ViT-Ti, 5,000 images, 200 classes), which
# is more than a good int8 changes; at 1e-5 one in 2,000.
TOLERANCE = 1e-5
MOST_ITERATIONS = 1000


class Probe(NamedTuple):
    """The class that a probe predicts for each query, and whether its training came to an end."""

    predictions: NDArray[np.int64]
    iterations: int
    converged: bool


class ProbeConfig(TypedDict):
    """The part of the config that a probe depends on."""

    C: float
    confidence: float
    """0 to 1."""


class ProbeAccuracy(TypedDict):
    """The accuracy of a variant's probe in percent, and what it loses against fp32's in percentage points."""

    C: float
    iterations: int
    converged: bool
    probe_top1: float
    probe_top1_ci_low: float
    probe_top1_ci_high: float
    probe_top1_drop: float
    probe_top1_drop_ci_low: float
    probe_top1_drop_ci_high: float
    probe_mcnemar_p: float
    probe_mcnemar_lost: int
    probe_mcnemar_gained: int
    predictions: list[int]


class UnlabelledProbe(TypedDict):
    """What remains where images have no labels."""

    C: float
    accuracy_reason: str
    predictions: list[int]


def train(bank: NDArray[np.float32], labels: NDArray[np.int64], query: NDArray[np.float32], c: float) -> Probe:
    """Train on the bank ``[Nb, D]`` with its labels ``[Nb]``, and predict the classes of the queries ``[Nq, D]``.

    Multinomial logistic regression on the features' directions, those that k-NN compares, so that ``c`` means the same
    whatever the scale of a variant's features. DINO (Caron et al. 2021, section 4.1) trains its linear layer by SGD on
    augmented images; this has one optimum, so that two variants differ by their features alone. One thread, so that
    sums are always added in one order.

    Args:
        c: inverse of the strength of the squared penalty on the weights, scikit-learn's ``C``.

    Raises:
        UserError: the bank has only one class, or a feature is zero.
    """
    if len(np.unique(labels)) < 2:
        raise UserError("The bank holds images of one class only: accuracies need a data set with 2 classes or more.")
    classifier = LogisticRegression(C=c, solver="lbfgs", tol=TOLERANCE, max_iter=MOST_ITERATIONS)
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(normalise(bank), labels)
        predictions = classifier.predict(normalise(query))
    for warning in caught:
        log.warning("linear probe: %s", warning.message)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return Probe(predictions, int(classifier.n_iter_.max()), converged)


def evaluate(
    features: Features, labels: Labels, fp32: NDArray[np.int64] | None, config: ProbeConfig
) -> ProbeAccuracy | UnlabelledProbe:
    """Return the accuracy of a probe trained on a variant's bank, and what it loses against fp32's, ready for JSON.

    Without a labelled bank there is only ``accuracy_reason``.

    Args:
        features: ``bank`` ``[Nb, D]`` and ``query`` ``[Nq, D]``.
        labels: of both.
        fp32: the predictions of fp32's probe for the same queries; None for fp32 itself.
    """
    if not len(labels["bank"]):
        return {"C": config["C"], "accuracy_reason": UNLABELLED, "predictions": []}
    probe = train(features["bank"], labels["bank"], features["query"], config["C"])
    reference = probe.predictions if fp32 is None else fp32
    correct, reference_correct = probe.predictions == labels["query"], reference == labels["query"]
    top1 = percentage(correct, config["confidence"])
    comparison = compare_paired(correct, reference_correct, config["confidence"], same=fp32 is None)
    return {
        "C": config["C"],
        "iterations": probe.iterations,
        "converged": probe.converged,
        "probe_top1": top1.value,
        "probe_top1_ci_low": top1.low,
        "probe_top1_ci_high": top1.high,
        "probe_top1_drop": comparison.drop.value,
        "probe_top1_drop_ci_low": comparison.drop.low,
        "probe_top1_drop_ci_high": comparison.drop.high,
        "probe_mcnemar_p": comparison.p,
        "probe_mcnemar_lost": comparison.lost,
        "probe_mcnemar_gained": comparison.gained,
        "predictions": probe.predictions.tolist(),
    }
