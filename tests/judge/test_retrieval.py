"""Retrieval: average precision as scikit-learn counts it, of the whole bank for each query."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from dinoquant.judge import retrieval
from dinoquant.judge.fidelity import evaluate
from dinoquant.judge.paired import cosine

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 90)
BANK, QUERY = (RNG.standard_normal((count, 8)).astype(np.float32) for count in (90, 30))
QUERY_LABELS = RNG.integers(0, 4, 30)
for features, labels in ((BANK, LABELS), (QUERY, QUERY_LABELS)):
    features[np.arange(len(labels)), labels] += 1


def test_it_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 7 * len(BANK))  # queries in five blocks
    found = retrieval.average_precisions(BANK, LABELS, QUERY, QUERY_LABELS)
    similarities = np.stack([cosine(np.repeat(query[None], len(BANK), 0), BANK) for query in QUERY])
    expected = [
        average_precision_score(label == LABELS, row) for label, row in zip(QUERY_LABELS, similarities, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert 0.3 < found.mean() < 0.9


def test_a_rank_that_is_known_and_a_class_that_is_not_there() -> None:
    bank = np.array([[1, 0], [1, 0.1], [0.5, 1], [0, 1]], dtype=np.float32)
    query = np.array([[1, 0], [1, 0], [1, 0]], dtype=np.float32)
    # Class 1 is found second and fourth: (1/2 + 2/4) / 2. Class 5 is not there.
    found = retrieval.average_precisions(bank, np.array([0, 1, 0, 1]), query, np.array([1, 0, 5]))
    assert found.tolist() == [0.5, (1 + 2 / 3) / 2, 0]


def test_what_a_variant_loses_has_an_interval() -> None:
    labels = {"bank": LABELS, "query": QUERY_LABELS}
    config = {"k": 3, "temperature": 0.07, "confidence": 0.95, "resamples": 500, "seed": 0}
    fp32 = {"bank": BANK, "query": QUERY}
    worse = {"bank": BANK, "query": QUERY + RNG.standard_normal(QUERY.shape).astype(np.float32)}
    wnids = {label: str(label) for label in range(4)}
    result = evaluate(worse, fp32, labels, wnids, config)
    own = evaluate(fp32, fp32, labels, wnids, config)
    lost = own["retrieval_map"] - result["retrieval_map"]
    assert result["retrieval_map_drop"] == pytest.approx(lost)
    assert result["retrieval_map_drop_ci_low"] < lost < result["retrieval_map_drop_ci_high"]
    assert own["retrieval_map_drop_ci_low"] == own["retrieval_map_drop"] == own["retrieval_map_drop_ci_high"] == 0
