"""Statistics of timings whose true values are known, and the verdicts on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dinoquant.measure import intervals
from dinoquant.measure.intervals import combine, statistics
from dinoquant.measure.rounds import ProcessRounds, Samples, TimingProtocol


def blocks(
    rng: np.random.Generator, rounds: int, calls: int, median: float, spread: float = 0.1
) -> NDArray[np.float64]:
    """Return [rounds, calls] skewed times in ms: half of the spread is the block's own, shared by its calls."""
    own = rng.normal(0, spread / 2, size=(rounds, 1))
    return median * np.exp(own + rng.normal(0, spread / 2, size=(rounds, calls)))


def as_samples(variant: NDArray[np.float64], fp32: NDArray[np.float64]) -> Samples:
    return {"variant": variant.tolist(), "fp32": fp32.tolist()}


def summary(variant: NDArray[np.float64], fp32: NDArray[np.float64], batch_size: int = 1) -> dict[str, Any]:
    """Return the statistics of rounds that one process made."""
    return statistics(as_samples(variant, fp32), [0] * len(variant), batch_size)


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
    variant = np.arange(1.0, 801.0).reshape(10, 80)
    result = summary(variant, variant)
    assert result["latency_p50_ms"] == pytest.approx(400.5)
    assert result["latency_p90_ms"] == pytest.approx(720.1)
    assert result["latency_p99_ms"] == pytest.approx(792.01)
    assert result["speedup"] == 1.0


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(63, False, False), (64, True, False), (661, True, False), (662, True, True)]
)
def test_percentiles_need_as_many_samples_as_loadgen_asks_for(count: int, p90: bool, p99: bool) -> None:
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
    for _ in range(repeats):
        result = summary(blocks(rng, 20, 10, 5.0), blocks(rng, 20, 4, 15.0))
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


def part(
    speedups: Sequence[float], probes: Sequence[float] = (), *, foreign: float = 0.0, load: Sequence[float] = ()
) -> ProcessRounds:
    """Return what a process makes of rounds with these speed-ups: the variant takes 1 ms."""
    return {
        "samples_ms": {"variant": [[1.0]] * len(speedups), "fp32": [[speedup] for speedup in speedups]},
        "first": ["variant"] * len(speedups),
        "calls_per_block": {"variant": 1, "fp32": 1},
        "warmup": {arm: {"calls": 3, "seconds": 0.1, "steady": True} for arm in ("variant", "fp32")},
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
            "load": list(load) or [foreign] * len(speedups),
        },
    }


def combined(*parts: ProcessRounds, idle: int = 0) -> dict[str, Any]:
    rounds = sum(len(each["first"]) for each in parts)
    protocol = TimingProtocol(rounds, len(parts), 0.025, 0.1, 0.1, seed=0)
    return combine(parts, batch_size=1, protocol=protocol, idle=idle)


def test_rounds_on_a_slow_machine_are_set_aside() -> None:
    """The machine is slow between the second and the third round of the second process: neither counts."""
    fast = part([4.0, 4.0, 4.0, 4.0], [0.14, 0.15, 0.14, 0.14, 0.15])
    slow = part([4.0, 3.0, 3.0, 4.0], [0.14, 0.14, 0.27, 0.14, 0.14])
    result = combined(fast, slow)
    assert result["samples_ms"]["fp32"] == [[4.0]] * 6
    assert result["process"] == [0, 0, 0, 0, 1, 1]
    assert result["set_aside"] == {"variant": [[1.0]] * 2, "fp32": [[3.0]] * 2}
    assert (result["verdict"], result["probe_ms"], result["rounds"]) == ("ok", 0.14, 8)
    assert result["speedup"] == pytest.approx(4.0)
    assert result["slow_shift"] is None, "two rounds tell little"


def test_what_a_slow_machine_does_to_the_speedup_is_noted() -> None:
    result = combined(part([4.0] * 8 + [3.0] * 4, [0.14] * 9 + [0.27] * 4))
    assert result["slow_shift"] == pytest.approx(np.log(4 / 3))
    assert len(result["set_aside"]["fp32"]) == 4


def test_a_machine_that_is_mostly_slow_makes_a_timing_wide() -> None:
    result = combined(part([4.0] * 4, [0.14] * 5), part([3.0] * 6, [0.27] * 7))
    assert len(result["samples_ms"]["fp32"]) == 10, "there is no telling which of them are right"
    assert result["set_aside"] == {"variant": [], "fp32": []}
    assert result["verdict"] == "wide"


def test_others_disturb_only_what_they_take_from_it() -> None:
    busy = part([4.0] * 8, foreign=1.0)
    assert combined(busy)["verdict"] == "disturbed"
    assert combined(busy)["verdict_reason"] == "others had 1.0 of the processors that it needs"
    assert combined(busy, busy, busy, idle=1)["verdict"] == "ok"


def test_a_speedup_that_follows_what_others_do_is_disturbed() -> None:
    load = [0.0, 0.6] * 8
    moved = part([4.0 + 0.01 * n + others for n, others in enumerate(load)], foreign=0.3, load=load)
    assert combined(moved)["verdict"] == "disturbed"
    alike = part([4.0 + 0.01 * (n % 3) for n in range(16)], foreign=0.3, load=load)
    assert combined(alike, alike, alike)["verdict"] == "ok"


def test_why_a_timing_stopped_is_noted() -> None:
    assert combined(part([4.0, 4.02] * 4))["stopped"] == "precise"
    assert combined(part([0.7, 0.76] * 4))["stopped"] == "slower"
    assert combined(part([4.0, 6.0] * 4))["stopped"] == "budget"
    stalled = part([5.0, 1400.0])  # fp32's blocks, which should be of 100 ms
    assert combined(stalled, stalled, stalled)["stopped"] == "overtime"
    assert combined(stalled, stalled)["stopped"] == "budget", "too few rounds"


def test_the_noise_floor_is_the_farther_end() -> None:
    assert intervals.noise_floor({"speedup_ci_low": 0.96, "speedup_ci_high": 1.01}) == pytest.approx(0.04)
    assert intervals.noise_floor({"speedup_ci_low": 1.01, "speedup_ci_high": 1.02}) == pytest.approx(0.02)
    assert intervals.noise_floor({"speedup_ci_low": None, "speedup_ci_high": None}) is None
