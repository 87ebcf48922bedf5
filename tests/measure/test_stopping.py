"""The interval of a speed-up, and when a timing has enough rounds, on values whose truth is known."""

import numpy as np
import pytest

from dinoquant.measure.stopping import center, half_width, interquartile_mean, interval, second_run, stop_reason


def test_the_interquartile_mean_is_scipys_trimmed_mean() -> None:
    from scipy.stats import trim_mean

    for values in np.random.default_rng(4).normal(size=(3, 17)):
        assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25))
    assert interquartile_mean(np.array([1.0, 1.0, 1.0, 900.0])) == 1.0


def test_the_interval_of_processes_is_students() -> None:
    from scipy.stats import t

    process = [0, 0, 1, 1, 2, 2]
    values = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    assert center(values, process) == 2.0
    assert half_width(values, process) == pytest.approx(t.ppf(0.98, 2) / np.sqrt(3))


def test_the_interval_of_one_process_is_the_trimmed_mean_s() -> None:
    """SciPy has Yuen's test of two samples: the error of both is the square root of two of one's."""
    from scipy.stats import t, ttest_ind

    values = np.random.default_rng(1).normal(size=20)
    error = 1 / ttest_ind(values + 1, values, equal_var=False, trim=0.25).statistic / np.sqrt(2)
    assert half_width(values, [0] * 20) == pytest.approx(t.ppf(0.98, 9) * error)


def test_an_interval_takes_six_rounds_and_surrounds_its_statistic() -> None:
    values = np.log([2.0, 2.1, 2.0, 2.1, 2.0, 2.1])
    assert interval(values[:5], [0] * 5, 2.0) == (None, None)
    low, high = interval(values, [0] * 6, 2.05)
    assert low * high == pytest.approx(2.05**2)  # type: ignore[operator]


def test_processes_that_agree_by_chance_do_not_hide_how_rounds_differ() -> None:
    values = np.array([-0.1, 0.1, -0.05, 0.05] * 3)
    process = [0] * 4 + [1] * 4 + [2] * 4
    assert half_width(values, process) > 0.01  # type: ignore[operator]


@pytest.mark.parametrize(("processes", "each", "spread"), [(6, 4, 0.02), (3, 4, 0.02), (1, 12, 0.0)])
def test_intervals_cover_the_truth(processes: int, each: int, spread: float) -> None:
    rng = np.random.default_rng(6)
    process = np.repeat(np.arange(processes), each)
    covered = 0
    for _ in range(400):
        values = rng.normal(0, spread, processes)[process] + rng.normal(0, 0.02, len(process))
        covered += abs(center(values, process.tolist())) <= half_width(values, process.tolist())  # type: ignore[operator]
    assert covered / 400 >= 0.93  # binomial standard error: 0.011


@pytest.mark.parametrize("processes", [3, 12])
def test_nine_second_runs_in_ten_differ_by_less(processes: int) -> None:
    rng = np.random.default_rng(8)
    process = np.repeat(np.arange(processes), 4)
    within = 0
    for _ in range(1000):
        first, second = (rng.normal(0, 0.02, processes)[process] + rng.normal(0, 0.02, len(process)) for _ in range(2))
        off = abs(center(first, process.tolist()) - center(second, process.tolist()))
        within += off <= second_run(first, process.tolist())  # type: ignore[operator]
    assert 0.88 <= within / 1000 <= 0.93  # binomial standard error: 0.009; processes that agree by chance widen it
    assert second_run(np.zeros(5), [0] * 5) is None


def test_a_timing_stops_when_it_is_precise_or_clearly_slower() -> None:
    close, apart = np.array([1.0, 1.01] * 4), np.array([1.0, 1.4] * 4)
    assert stop_reason(close, [0] * 8, 1, 0.025) == "precise"
    assert stop_reason(close, [0] * 8, 1, 0.001) is None
    assert stop_reason(close[:5], [0] * 5, 1, 0.025) is None, "no interval"
    assert stop_reason(apart, [0] * 8, 1, 0.025) is None
    assert stop_reason(apart - 3, [0] * 8, 1, 0.025) == "slower"
    assert stop_reason(apart - 3, [0] * 8, 1, 0.0) == "slower"


def test_three_processes_must_agree_where_there_are_so_many() -> None:
    values, two, three = np.array([1.0, 1.01] * 3), [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]
    assert stop_reason(values, two, 8, 0.1) is None
    assert stop_reason(values, three, 8, 0.1) == "precise"
    assert stop_reason(values, two, 2, 0.1) == "precise"
