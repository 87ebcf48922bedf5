"""The linear probe reaches the optimum, tells when it does not, and is compared with fp32's query by query."""

import logging

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dinoquant.data.manifest import UNLABELLED
from dinoquant.errors import UserError
from dinoquant.judge import probe

CONFIG = {"C": 10.0, "confidence": 0.95}


def clustered(spread: float, scale: float = 1.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return features and labels of 5 classes: 200 in the bank, 100 queries."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 16))
    labels = {"bank": np.arange(200) % 5, "query": np.arange(100) % 5}
    features = {
        split: (scale * (centres[own] + spread * rng.normal(size=(len(own), 16)))).astype(np.float32)
        for split, own in labels.items()
    }
    return features, labels


def test_it_is_the_optimum_whatever_the_solver_and_the_scale_of_the_features() -> None:
    features, labels = clustered(spread=1.0)
    directions = {split: rows / np.linalg.norm(rows, axis=1, keepdims=True) for split, rows in features.items()}
    other = LogisticRegression(C=10, solver="newton-cg", tol=1e-8).fit(directions["bank"], labels["bank"])
    scaled, _ = clustered(spread=1.0, scale=1000.0)
    for own in (features, scaled):
        found = probe.train(own["bank"], labels["bank"], own["query"], 10.0)
        assert found.converged
        np.testing.assert_array_equal(found.predictions, other.predict(directions["query"]))
    assert 0.5 < (found.predictions == labels["query"]).mean() < 1


def test_without_labels_there_is_only_the_reason() -> None:
    features = {split: np.ones((n, 4), np.float32) for split, n in (("bank", 0), ("query", 3))}
    labels = {"bank": np.empty(0, np.int64), "query": np.full(3, -1)}
    fp32 = probe.evaluate(features, labels, None, CONFIG)
    assert fp32["accuracy_reason"] == UNLABELLED
    assert probe.evaluate(features, labels, np.array(fp32["predictions"]), CONFIG) == fp32
    assert "probe_top1" not in fp32


def test_training_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    features, labels = clustered(spread=1.0)
    monkeypatch.setattr(probe, "MOST_ITERATIONS", 3)
    with caplog.at_level(logging.WARNING, logger="dinoquant"):
        result = probe.evaluate(features, labels, None, CONFIG)
    assert (result["converged"], result["iterations"]) == (False, 3)
    assert "linear probe: lbfgs failed to converge" in caplog.text


def test_it_is_compared_with_fp32_query_by_query() -> None:
    features, labels = clustered(spread=0.1)  # nothing is wrong here
    truth = labels["query"]
    fp32 = truth.copy()
    fp32[:4] = (truth[:4] + 1) % 5
    result = probe.evaluate(features, labels, fp32, CONFIG)
    assert (result["probe_top1"], result["probe_top1_drop"]) == (100, -4)
    assert result["probe_top1_drop_ci_low"] < -4 < result["probe_top1_drop_ci_high"]
    assert (result["probe_mcnemar_lost"], result["probe_mcnemar_gained"]) == (0, 4)
    assert result["probe_mcnemar_p"] == pytest.approx(2 / 2**4)
    assert result["predictions"] == truth.tolist()


def test_fp32_loses_nothing_against_itself() -> None:
    features, labels = clustered(spread=1.0)
    result = probe.evaluate(features, labels, None, CONFIG)
    assert [result[f"probe_top1_drop{end}"] for end in ("", "_ci_low", "_ci_high")] == [0, 0, 0]
    assert result["probe_mcnemar_p"] == 1


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="one class only"):
        probe.train(np.ones((4, 2), np.float32), np.zeros(4, np.int64), np.ones((1, 2), np.float32), 1.0)
