"""Intervals cover as often as they say, also where little was seen, and the paired test is that of the textbook."""

import math
from itertools import product

import numpy as np
import pytest

from dinoquant.judge.paired import compare_paired, mean, paired_interval, wilson_interval


def test_the_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    estimates = [mean(rng.exponential(size=200), 0.9, 300, seed) for seed in range(300)]
    covered = np.mean([estimate.low < 1 < estimate.high for estimate in estimates])
    assert 0.84 < covered < 0.94


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean(values, 0.95, 200, 1) == mean(values, 0.95, 200, 1)
    assert mean(values, 0.95, 200, 1) != mean(values, 0.95, 200, 2)


def test_wilson_intervals_stay_inside_and_widen_with_the_confidence() -> None:
    low, high = wilson_interval(0, 20, 0.95)
    assert low == 0
    assert 0 < high < 0.2
    assert wilson_interval(10, 20, 0.99)[0] < wilson_interval(10, 20, 0.9)[0] < 0.5


@pytest.mark.parametrize(("queries", "lost", "gained"), [(60, 0.02, 0.01), (60, 0.1, 0.05), (2000, 0.002, 0.001)])
def test_the_paired_interval_covers_where_few_predictions_change(queries: int, lost: float, gained: float) -> None:
    """A percentile bootstrap covers the first of these in two of three cases: often nothing changes at all."""
    drawn = np.random.default_rng(0).multinomial(queries, [lost, gained, 1 - lost - gained], size=1000)
    intervals = [paired_interval(int(b), int(c), queries, 0.95) for b, c, _ in drawn]
    assert np.mean([low <= lost - gained <= high for low, high in intervals]) > 0.93


def test_the_paired_interval_is_where_the_score_test_rejects() -> None:
    """Its ends solve Tango's equation, the likeliest shares for a drop being found by trying them all."""
    queries, lost, gained, z = 50, 12, 2, 1.959964
    for drop in paired_interval(lost, gained, queries, 0.95):
        shares = np.linspace(max(0.0, -drop), (1 - drop) / 2, 2_000_001)[1:-1]
        likelihood = lost * np.log(shares + drop) + gained * np.log(shares)
        likelihood += (queries - lost - gained) * np.log1p(-2 * shares - drop)
        share = shares[likelihood.argmax()]
        score = (lost - gained - queries * drop) / math.sqrt(queries * (2 * share + drop * (1 - drop)))
        assert abs(score) == pytest.approx(z, abs=1e-4)


def test_the_paired_interval_exists_for_every_count_and_mirrors() -> None:
    for queries in (1, 2, 5):
        for lost, gained in product(range(queries + 1), repeat=2):
            if lost + gained <= queries:
                low, high = paired_interval(lost, gained, queries, 0.95)
                assert -1 <= low <= (lost - gained) / queries <= high <= 1
                assert paired_interval(gained, lost, queries, 0.95) == pytest.approx((-high, -low), abs=1e-9)
                assert high - low > 0.5


def test_mcnemar_is_the_exact_binomial_test_of_the_changed_queries() -> None:
    reference = np.array([True] * 9 + [False] * 11)
    correct = reference.copy()
    correct[:7] = False
    correct[9] = True
    comparison = compare_paired(correct, reference, 0.95, same=False)
    assert (comparison.lost, comparison.gained, comparison.drop.value) == (7, 1, 30)
    assert comparison.p == pytest.approx(2 * (1 + 8) / 2**8)
    assert compare_paired(reference, reference, 0.95, same=False).p == 1
