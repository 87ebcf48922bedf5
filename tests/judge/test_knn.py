"""Weighted k-NN against its definition in plain Python and against a transcription of the published formula."""

import math

import numpy as np
import pytest
import torch

from dinoquant.errors import UserError
from dinoquant.judge import knn
from dinoquant.judge.knn import normalise, predict


def clustered(seed: int, bank: int, queries: int, classes: int, spread: float) -> tuple[np.ndarray, ...]:
    """Return bank, its labels, queries and their labels: noisy copies of a random direction per class."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 8))
    bank_labels, query_labels = rng.integers(classes, size=bank), rng.integers(classes, size=queries)
    bank_features = centres[bank_labels] + spread * rng.normal(size=(bank, 8))
    query_features = 3 * centres[query_labels] + 3 * spread * rng.normal(size=(queries, 8))
    return bank_features.astype(np.float32), bank_labels, query_features.astype(np.float32), query_labels


def naive(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, classes: int, k: int, temperature: float):
    """Return the ranked classes by the definition, one number at a time."""

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(math.fsum(float(x) ** 2 for x in a) * math.fsum(float(y) ** 2 for y in b))

    result = []
    for image in query:
        by_similarity = sorted((-similarity(image, other), place) for place, other in enumerate(bank))
        votes: dict[int, float] = {}
        for negative, place in by_similarity[:k]:
            label = int(labels[place])
            votes[label] = votes.get(label, 0.0) + math.exp(-negative / temperature)
        ranked = sorted(votes, key=lambda label: (-votes[label], label))
        result.append((ranked + [-1] * 5)[: min(5, classes)])
    return np.array(result)


@pytest.mark.parametrize(("classes", "k", "temperature"), [(12, 20, 0.07), (12, 1, 0.07), (3, 7, 1.0), (2, 120, 0.01)])
def test_equals_the_definition(classes: int, k: int, temperature: float) -> None:
    bank, labels, query, _ = clustered(1, 120, 50, classes, spread=1.5)
    result = predict(bank, labels, query, classes=classes, k=k, temperature=temperature)
    np.testing.assert_array_equal(result, naive(bank, labels, query, classes, k, temperature))


def test_ties_go_to_the_first_in_the_bank_and_to_the_first_class() -> None:
    rng = np.random.default_rng(0)
    # Length 2, entries of +-1: every similarity is exact, and many are equal.
    bank, query = (rng.choice([-1.0, 1.0], size=(n, 4)).astype(np.float32) for n in (200, 30))
    labels = rng.integers(6, size=200)
    # At this temperature exp(0 / T) = 1 for the nearest and the votes are counts or next to nothing: these tie too.
    for k in (1, 2, 5, 40):
        result = predict(bank, labels, query, classes=6, k=k, temperature=0.01)
        np.testing.assert_array_equal(result, naive(bank, labels, query, 6, k, 0.01))


def test_equals_the_published_formula() -> None:
    """The steps of `knn_classifier` in DINO's eval_knn.py, in float64."""
    classes, k, temperature = 10, 20, 0.07
    bank, labels, query, truth = clustered(2, 500, 200, classes, spread=1.5)
    train, test = (torch.nn.functional.normalize(torch.from_numpy(x).double(), dim=1) for x in (bank, query))
    distances, indices = (test @ train.t()).topk(k, largest=True, sorted=True)
    neighbours = torch.from_numpy(labels)[indices]
    one_hot = torch.zeros(len(query), k, classes, dtype=torch.float64).scatter_(2, neighbours[:, :, None], 1)
    votes = (one_hot * (distances / temperature).exp()[:, :, None]).sum(dim=1)
    sorted_votes, ranked = votes.sort(dim=1, descending=True)
    ranked[sorted_votes == 0] = -1  # the original lets classes without a vote through, in an arbitrary order

    result = predict(bank, labels, query, classes=classes, k=k, temperature=temperature)

    np.testing.assert_array_equal(result, ranked[:, :5].numpy())
    top1, top5 = (result[:, :1] == truth[:, None]).mean(), (result == truth[:, None]).any(axis=1).mean()
    assert 0.3 < top1 < top5 < 1


def test_equals_scikit_learn() -> None:
    """A library that shares no line with this one predicts the same class for every query."""
    from sklearn.neighbors import KNeighborsClassifier

    classes, k, temperature = 10, 20, 0.07
    bank, labels, query, truth = clustered(6, 3000, 1000, classes, spread=1.5)
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(bank.astype(np.float64), labels)
    expected = classifier.predict(query.astype(np.float64))
    result = predict(bank, labels, query, classes=classes, k=k, temperature=temperature)
    np.testing.assert_array_equal(result[:, 0], expected)
    assert 0.3 < (expected == truth).mean() < 0.9


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, query, _ = clustered(3, 100, 31, 7, spread=1.0)
    whole = predict(bank, labels, query, classes=7, k=10, temperature=0.07)
    monkeypatch.setattr(knn, "BLOCK", 450)  # 4 queries at a time, 3 at the end
    np.testing.assert_array_equal(predict(bank, labels, query, classes=7, k=10, temperature=0.07), whole)


def test_a_low_temperature_is_the_nearest_neighbour() -> None:
    bank, labels, query, _ = clustered(4, 100, 50, 7, spread=1.0)
    nearest = predict(bank, labels, query, classes=7, k=1, temperature=1.0)[:, 0]
    with np.errstate(all="raise", under="ignore"):
        low = predict(bank, labels, query, classes=7, k=20, temperature=1e-6)
    np.testing.assert_array_equal(low[:, 0], nearest)


def test_a_bank_smaller_than_k_names_the_keys() -> None:
    bank, labels, query, _ = clustered(5, 19, 5, 3, spread=1.0)
    with pytest.raises(UserError, match=r"accuracy\.k is 20, but the bank has only 19 .*dataset\.bank_per_class"):
        predict(bank, labels, query, classes=3, k=20, temperature=0.07)


def test_a_feature_of_zeros_is_refused() -> None:
    features = np.ones((3, 4), dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(normalise(features), axis=1), 1)
    features[1] = 0
    with pytest.raises(UserError, match="1 of 3 images are all zeros"):
        normalise(features)
