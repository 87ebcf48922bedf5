"""Train a linear classifier on features, as DINO's linear evaluation does, and compare it with fp32's."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from dinoquant.errors import UserError
from dinoquant.judge.knn import normalise
from dinoquant.judge.paired import compared, percentage

log = logging.getLogger("dinoquant")

Arrays = Mapping[str, NDArray[Any]]

# At scikit-learn's 1e-4 one prediction in 80 is not yet that of the optimum (ViT-Ti, 5,000 images, 200 classes), which
# is more than a good int8 changes; at 1e-5 one in 2,000.
TOLERANCE = 1e-5
MOST_ITERATIONS = 1000


class Probe(NamedTuple):
    """What a probe says of each query, and whether its training came to an end."""

    predictions: NDArray[np.int64]
    iterations: int
    converged: bool


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
    features: Arrays, labels: Arrays, fp32: NDArray[np.int64] | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the accuracy of a probe trained on a variant's bank, and what it loses against fp32's, ready for JSON.

    Args:
        features: ``bank`` ``[Nb, D]`` and ``query`` ``[Nq, D]``.
        labels: of both.
        fp32: the predictions of fp32's probe for the same queries; None for fp32 itself.
        config: ``C`` and ``confidence`` (0 to 1).
    """
    probe = train(features["bank"], labels["bank"], features["query"], config["C"])
    reference = probe.predictions if fp32 is None else fp32
    correct, reference_correct = probe.predictions == labels["query"], reference == labels["query"]
    difference = compared(correct, reference_correct, config["confidence"], same=fp32 is None)
    return {
        "C": config["C"],
        "iterations": probe.iterations,
        "converged": probe.converged,
        **percentage("probe_top1", correct, config["confidence"]),
        **{f"probe_top1_{name}": difference[name] for name in ("drop", "drop_ci_low", "drop_ci_high")},
        **{f"probe_mcnemar_{name}": difference[name] for name in ("p", "lost", "gained")},
        "predictions": probe.predictions.tolist(),
    }
