"""Statistics of timings whose true values are known, and the verdicts on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dinoquant.measure import intervals
from dinoquant.measure.intervals import combine, interquartile_mean, interval, median, statistics
from dinoquant.measure.rounds import ProcessRounds, Samples, TimingProtocol


def blocks(
    rng: np.random.Generator, rounds: int, calls: int, median: float, spread: float = 0.1
) -> NDArray[np.float64]:
    """Return [rounds, calls] skewed times in ms: half of the spread is the block's own, shared by its calls."""
    own = rng.normal(0, spread / 2, size=(rounds, 1))
    return median * np.exp(own + rng.normal(0, spread / 2, size=(rounds, calls)))


def as_samples(variant: NDArray[np.float64], fp32: NDArray[np.float64]) -> Samples:
    return {"variant": variant.tolist(), "fp32": fp32.tolist()}


def summary(
    variant: NDArray[np.float64], fp32: NDArray[np.float64], batch_size: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Return the statistics of rounds that one process made."""
    return statistics(as_samples(variant, fp32), [0] * len(variant), batch_size, seed)


def test_known_values_are_recovered() -> None:
    rng = np.random.default_rng(1)
    result = summary(blocks(rng, 40, 20, 5.0), blocks(rng, 40, 6, 15.0), 16)
    assert result["samples"] == 800
    assert result["latency_p50_ms"] == pytest.approx(5.0, rel=0.03)
    assert result["fp32_p50_ms"] == pytest.approx(15.0, rel=0.05)
    assert result["speedup"] == pytest.approx(3.0, rel=0.05)
    assert result["speedup_ci_low"] < 3.0 < result["speedup_ci_high"]
    assert result["latency_p50_ci_low_ms"] < 5.0 < result["latency_p50_ci_high_ms"]
    assert result["throughput_ips"] == pytest.approx(16 * 1000 / result["latency_p50_ms"])


def test_percentiles_are_those_of_all_samples() -> None:
    variant = np.arange(1.0, 201.0).reshape(10, 20)
    result = summary(variant, variant)
    assert result["latency_p50_ms"] == pytest.approx(100.5)
    assert result["latency_p90_ms"] == pytest.approx(180.1)
    assert result["latency_p99_ms"] == pytest.approx(198.01)
    assert result["speedup"] == 1.0


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(9, False, False), (10, True, False), (99, True, False), (100, True, True)]
)
def test_percentiles_need_enough_samples(count: int, p90: bool, p99: bool) -> None:
    ones = np.ones((count, 1))
    result = summary(ones, ones)
    assert (result["latency_p90_ms"] is not None, result["latency_p99_ms"] is not None) == (p90, p99)


def test_intervals_need_six_rounds() -> None:
    rng = np.random.default_rng(0)
    five = summary(blocks(rng, 5, 9, 1.0), blocks(rng, 5, 9, 2.0))
    assert [value for key, value in five.items() if "_ci_" in key] == [None] * 4
    six = summary(blocks(rng, 6, 9, 1.0), blocks(rng, 6, 9, 2.0))
    assert six["speedup_ci_low"] < six["speedup"] < six["speedup_ci_high"]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    repeats, p50_hits, speedup_hits = 150, 0, 0
    for seed in range(repeats):
        result = summary(blocks(rng, 20, 10, 5.0), blocks(rng, 20, 4, 15.0), seed=seed)
        p50_hits += result["latency_p50_ci_low_ms"] <= 5.0 <= result["latency_p50_ci_high_ms"]
        speedup_hits += result["speedup_ci_low"] <= 3.0 <= result["speedup_ci_high"]
    # Binomial standard error of 150 repeats at 0.95: 0.018.
    assert 0.88 <= p50_hits / repeats <= 0.995
    assert 0.88 <= speedup_hits / repeats <= 0.995


def test_drift_that_hits_both_cancels_in_the_ratio() -> None:
    rng = np.random.default_rng(3)
    drift = np.linspace(1.0, 2.0, 30)[:, None]
    result = summary(drift * blocks(rng, 30, 10, 5.0, 0.01), drift * blocks(rng, 30, 10, 10.0, 0.01))
    assert result["speedup"] == pytest.approx(2.0, rel=0.005)
    assert result["speedup_ci_high"] - result["speedup_ci_low"] < 0.02
    assert result["latency_p50_ci_high_ms"] - result["latency_p50_ci_low_ms"] > 0.5


def test_whole_rounds_are_resampled() -> None:
    rng = np.random.default_rng(5)
    rounds = np.repeat(rng.normal(10, 1, size=(12, 1)), 50, axis=1)  # the calls of a block tell nothing new
    assert interval(rounds, median, 0) == interval(rounds[:, :1], median, 0)


def test_the_interquartile_mean_is_scipys_trimmed_mean() -> None:
    from scipy.stats import trim_mean

    values = np.random.default_rng(4).normal(size=(3, 17))
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25, axis=1))
    assert interquartile_mean(np.array([1.0, 1.0, 1.0, 900.0])) == 1.0


def test_intervals_know_how_processes_differ() -> None:
    """Rounds of one process are alike, so that there is less to learn from them than from as many processes."""
    rng = np.random.default_rng(6)
    repeats, covered, blind = 240, 0, 0
    for seed in range(repeats):
        process = np.repeat(np.arange(6), 6)
        ratios = (3.0 + rng.normal(0, 0.09, size=6)[process] + rng.normal(0, 0.02, size=36))[:, None]
        low, high = interval(ratios, interquartile_mean, seed, process.tolist())
        covered += low <= 3.0 <= high  # type: ignore[operator]
        low, high = interval(ratios, interquartile_mean, seed)
        blind += low <= 3.0 <= high  # type: ignore[operator]
    assert covered / repeats >= 0.95  # 0.94 if it is not expanded
    assert blind / repeats <= 0.75


def test_processes_of_unequal_length_are_resampled_alike() -> None:
    values = np.array([1.0] * 9 + [2.0] + [3.0] * 2)[:, None]
    low, high = interval(values, lambda rounds: rounds.mean(axis=-1), 0, [0] * 9 + [1] + [2] * 2)
    assert (low, high) == (1.0, 3.0)  # all thrice from one process: 1 in 27 resamples, for each
    low, high = interval(values, lambda rounds: rounds.mean(axis=-1), 0, [0] * 12)
    assert 1.0 <= low < high < 2.2  # type: ignore[operator]


def test_statistics_repeat_with_their_seed() -> None:
    rng = np.random.default_rng(2)
    samples = as_samples(blocks(rng, 10, 5, 1.0), blocks(rng, 10, 5, 2.0))
    process = [0] * 5 + [1] * 5
    assert statistics(samples, process, 1, seed=4) == statistics(samples, process, 1, seed=4)
    assert statistics(samples, process, 1, seed=4) != statistics(samples, process, 1, seed=5)


def part(
    speedups: Sequence[float], probes: Sequence[float] = (), *, steady: bool = True, foreign: float = 0.0
) -> ProcessRounds:
    """Return what a process makes of rounds with these speed-ups: the variant takes 1 ms."""
    return {
        "samples_ms": {"variant": [[1.0]] * len(speedups), "fp32": [[speedup] for speedup in speedups]},
        "first": ["variant"] * len(speedups),
        "calls_per_block": {"variant": 1, "fp32": 1},
        "warmup": {"variant": {"steady": steady}, "fp32": {"steady": True}},
        "passes": {},
        "watch": {
            "seconds": 1.0,
            "foreign": foreign,
            "foreign_processes": [],
            "steal": 0.0,
            "load_average": [0.1, 0.1],
            "frequency_mhz": None,
            "throttles": None,
            "probe_ms": list(probes),
        },
    }


def combined(*parts: ProcessRounds) -> dict[str, Any]:
    rounds = sum(len(each["first"]) for each in parts)
    return combine(parts, batch_size=1, protocol=TimingProtocol(rounds, len(parts), 0.1, 0.1, seed=0))


def test_rounds_on_a_slow_machine_are_set_aside() -> None:
    """The machine is slow between the second and the third round of the second process: neither counts."""
    fast = part([4.0, 4.0, 4.0, 4.0], [0.14, 0.15, 0.14, 0.14, 0.15])
    slow = part([4.0, 3.0, 3.0, 4.0], [0.14, 0.14, 0.27, 0.14, 0.14])
    result = combined(fast, slow)
    assert result["samples_ms"]["fp32"] == [[4.0]] * 6
    assert result["process"] == [0, 0, 0, 0, 1, 1]
    assert result["set_aside"] == {"variant": [[1.0]] * 2, "fp32": [[3.0]] * 2}
    assert (result["verdict"], result["speedup"], result["probe_ms"]) == ("ok", 4.0, 0.14)


def test_a_machine_that_is_mostly_slow_makes_a_timing_noisy() -> None:
    result = combined(part([4.0] * 4, [0.14] * 5), part([3.0] * 6, [0.27] * 7))
    assert len(result["samples_ms"]["fp32"]) == 10, "there is no telling which of them are right"
    assert result["set_aside"] == {"variant": [], "fp32": []}
    assert result["verdict"] == "noisy"
    assert result["verdict_reason"] == (
        "the machine's speed varied: the same piece of work took 0.14 to 0.27 ms, and only 4 of 10 rounds had the best "
        "speed"
    )


def test_a_machine_that_is_always_slow_shows_only_beside_other_timings() -> None:
    result = combined(part([3.0] * 6, [0.27] * 7))
    assert (result["verdict"], result["probe_ms"]) == ("ok", 0.27)


@pytest.mark.parametrize(
    ("foreign", "steady", "verdict", "reason"),
    [
        (0.0, [True, True, True], "ok", ""),
        (0.9, [True, True, True], "noisy", "other processes used 0.90 of"),
        (0.0, [True, True, False], "ok", ""),
        (0.0, [True, False, False], "unstable", "variant had not settled when its warm-up ended, in 2 of 3 processes"),
        (0.9, [False, False, False], "noisy", "other processes used 0.90 of"),
    ],
)
def test_verdicts(foreign: float, steady: list[bool], verdict: str, reason: str) -> None:
    result = combined(*(part([2.0, 2.0], steady=each, foreign=foreign) for each in steady))
    assert (result["verdict"], result["verdict_reason"].startswith(reason)) == (verdict, True)
    assert bool(result["verdict_reason"]) == (verdict != "ok")


def test_a_trend_is_told_from_noise() -> None:
    rng = np.random.default_rng(11)
    noise = [blocks(rng, 16, 5, 5.0, 0.06) for _ in range(300)]
    flagged = sum(
        bool(intervals.trends(as_samples(one, other))) for one, other in zip(noise[::2], noise[1::2], strict=True)
    )
    assert flagged <= 3, "noise was taken for a trend"
    drift = np.linspace(0.95, 1.05, 16)[:, None]
    both = as_samples(drift * blocks(rng, 16, 5, 5.0, 0.02), drift * blocks(rng, 16, 5, 5.0, 0.02))
    assert [text.split(" by ")[0] for text in intervals.trends(both)] == ["the latency rose"]
    one = as_samples(drift * blocks(rng, 16, 5, 5.0, 0.02), blocks(rng, 16, 5, 5.0, 0.02))
    assert [text.split(" by ")[0] for text in intervals.trends(one)] == ["the latency rose", "the speed-up fell"]


def test_a_trend_equals_scipys() -> None:
    from scipy.stats import theilslopes

    values = np.random.default_rng(0).normal(10, 1, size=21)
    change, _ = intervals.trend(values)
    assert change == pytest.approx(theilslopes(values).slope * 20 / np.median(values))
    assert intervals.trend(np.arange(1.0, 7.0))[1] == pytest.approx(15 / np.sqrt(6 * 5 * 17 / 18))


def test_the_noise_floor_is_the_farther_end() -> None:
    assert intervals.noise_floor({"speedup_ci_low": 0.96, "speedup_ci_high": 1.01}) == pytest.approx(0.04)
    assert intervals.noise_floor({"speedup_ci_low": 1.01, "speedup_ci_high": 1.02}) == pytest.approx(0.02)
    assert intervals.noise_floor({"speedup_ci_low": None, "speedup_ci_high": None}) is None
