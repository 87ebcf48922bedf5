"""Timing two models side by side: order, warm-up, and statistics whose true values are known."""

import gc
import json
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dinoquant import latency
from dinoquant.latency import Protocol, interleave, median_interval, summarise, warm_up


def blocks(
    rng: np.random.Generator, rounds: int, calls: int, median: float, spread: float = 0.1
) -> NDArray[np.float64]:
    """Return [rounds, calls] skewed times in ms: half of the spread is the block's own, shared by its calls."""
    own = rng.normal(0, spread / 2, size=(rounds, 1))
    return median * np.exp(own + rng.normal(0, spread / 2, size=(rounds, calls)))


def as_samples(variant: NDArray[np.float64], fp32: NDArray[np.float64]) -> latency.Samples:
    return {"variant": variant.tolist(), "fp32": fp32.tolist()}


def test_known_values_are_recovered() -> None:
    rng = np.random.default_rng(1)
    result = summarise(as_samples(blocks(rng, 40, 20, 5.0), blocks(rng, 40, 6, 15.0)), 16, seed=0)
    assert result["samples"] == 800
    assert result["latency_p50_ms"] == pytest.approx(5.0, rel=0.03)
    assert result["fp32_p50_ms"] == pytest.approx(15.0, rel=0.05)
    assert result["speedup"] == pytest.approx(3.0, rel=0.05)
    assert result["speedup_ci_low"] < 3.0 < result["speedup_ci_high"]
    assert result["latency_p50_ci_low_ms"] < 5.0 < result["latency_p50_ci_high_ms"]
    assert result["throughput_ips"] == pytest.approx(16 * 1000 / result["latency_p50_ms"])


def test_percentiles_are_those_of_all_samples() -> None:
    variant = np.arange(1.0, 201.0).reshape(10, 20)
    result = summarise(as_samples(variant, variant), 1, seed=0)
    assert result["latency_p50_ms"] == pytest.approx(100.5)
    assert result["latency_p90_ms"] == pytest.approx(180.1)
    assert result["latency_p99_ms"] == pytest.approx(198.01)
    assert result["speedup"] == 1.0


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(9, False, False), (10, True, False), (99, True, False), (100, True, True)]
)
def test_percentiles_need_enough_samples(count: int, p90: bool, p99: bool) -> None:
    ones = np.ones((count, 1))
    result = summarise(as_samples(ones, ones), 1, seed=0)
    assert (result["latency_p90_ms"] is not None, result["latency_p99_ms"] is not None) == (p90, p99)


def test_intervals_need_six_rounds() -> None:
    rng = np.random.default_rng(0)
    five = summarise(as_samples(blocks(rng, 5, 9, 1.0), blocks(rng, 5, 9, 2.0)), 1, seed=0)
    assert [value for key, value in five.items() if "_ci_" in key] == [None] * 4
    six = summarise(as_samples(blocks(rng, 6, 9, 1.0), blocks(rng, 6, 9, 2.0)), 1, seed=0)
    assert six["speedup_ci_low"] < six["speedup"] < six["speedup_ci_high"]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    repeats, p50_hits, speedup_hits = 150, 0, 0
    for seed in range(repeats):
        result = summarise(as_samples(blocks(rng, 20, 10, 5.0), blocks(rng, 20, 4, 15.0)), 1, seed)
        p50_hits += result["latency_p50_ci_low_ms"] <= 5.0 <= result["latency_p50_ci_high_ms"]
        speedup_hits += result["speedup_ci_low"] <= 3.0 <= result["speedup_ci_high"]
    # Binomial standard error of 150 repeats at 0.95: 0.018.
    assert 0.88 <= p50_hits / repeats <= 0.995
    assert 0.88 <= speedup_hits / repeats <= 0.995


def test_drift_that_hits_both_cancels_in_the_ratio() -> None:
    rng = np.random.default_rng(3)
    drift = np.linspace(1.0, 2.0, 30)[:, None]
    result = summarise(
        as_samples(drift * blocks(rng, 30, 10, 5.0, 0.01), drift * blocks(rng, 30, 10, 10.0, 0.01)), 1, seed=0
    )
    assert result["speedup"] == pytest.approx(2.0, rel=0.005)
    assert result["speedup_ci_high"] - result["speedup_ci_low"] < 0.02
    assert result["latency_p50_ci_high_ms"] - result["latency_p50_ci_low_ms"] > 0.5


def test_whole_rounds_are_resampled() -> None:
    rng = np.random.default_rng(5)
    rounds = np.repeat(rng.normal(10, 1, size=(12, 1)), 50, axis=1)  # the calls of a block tell nothing new
    assert median_interval(rounds, 0) == median_interval(rounds[:, :1], 0)


def test_statistics_repeat_with_their_seed() -> None:
    rng = np.random.default_rng(2)
    samples = as_samples(blocks(rng, 10, 5, 1.0), blocks(rng, 10, 5, 2.0))
    assert summarise(samples, 1, seed=4) == summarise(samples, 1, seed=4)
    assert summarise(samples, 1, seed=4) != summarise(samples, 1, seed=5)


def scripted(times_ms: list[float], monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Return a call that takes these times on a clock of its own; the last one for ever after."""
    clock = [0.0]
    remaining = iter(times_ms)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    def call() -> float:
        taken = next(remaining, times_ms[-1])
        clock[0] += taken / 1e3
        return taken

    return call


def test_warm_up_ends_when_two_groups_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = [50.0, 90.0] + [20.0 * 0.93**i for i in range(15)] + [6.0] * 100
    result = warm_up(scripted(ramp, monkeypatch), 10.0)
    assert result.steady
    assert result.call_seconds == pytest.approx(0.006)
    # Two that specialise; groups of 5, as many 20 ms calls as last 0.1 s; three groups fall, the next two are flat.
    assert result.calls == 2 + 5 * 5
    assert result.seconds < 1.0


def test_warm_up_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    result = warm_up(scripted([100.0 * 1.2**i for i in range(40)], monkeypatch), 5.0)
    assert not result.steady
    assert 5.0 <= result.seconds < 7.0


def test_slow_calls_still_get_past_the_specialising_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    result = warm_up(scripted([9000.0, 8000.0, 4000.0], monkeypatch), 1.0)
    assert (result.calls, result.steady, result.call_seconds) == (3, False, 4.0)


@pytest.mark.parametrize(
    ("call", "block", "expected"), [(0.015, 0.3, 20), (0.16, 0.3, 2), (4.0, 0.3, 1), (0.3, 0.3, 1)]
)
def test_calls_per_block(call: float, block: float, expected: int) -> None:
    assert latency.calls_per_block(call, block) == expected


def test_blocks_alternate_in_a_seeded_random_order() -> None:
    log: list[str] = []

    def record(arm: str, value: float) -> Callable[[], float]:
        def call() -> float:
            log.append(arm)
            return value

        return call

    calls = {"variant": record("variant", 1.0), "fp32": record("fp32", 2.0)}
    counts = {"variant": 10, "fp32": 2}
    looks: list[int] = []
    samples, first = interleave(calls, counts, Protocol(20, 0.1, 0.1, seed=0), lambda: looks.append(len(log)))
    assert samples == {"variant": [[1.0] * 10] * 20, "fp32": [[2.0] * 2] * 20}
    assert set(first) == {"variant", "fp32"}
    expected: list[str] = []
    for arm in first:  # one untimed call before the ten, none before the two
        expected += ["variant"] * 11 + ["fp32"] * 2 if arm == "variant" else ["fp32"] * 2 + ["variant"] * 11
    assert log == expected
    assert looks == list(range(0, len(log), 13)), "the machine is looked at between rounds only"
    assert interleave(calls, counts, Protocol(20, 0.1, 0.1, seed=0), lambda: None)[1] == first
    assert interleave(calls, counts, Protocol(20, 0.1, 0.1, seed=1), lambda: None)[1] != first


def test_the_garbage_collector_waits() -> None:
    with latency._no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def sleeper(milliseconds: float) -> Callable[[], float]:
    """Return a call that waits so long, and returns what it waited."""

    def call() -> float:
        assert not gc.isenabled()
        start = time.perf_counter()
        time.sleep(milliseconds / 1e3)
        return (time.perf_counter() - start) * 1e3

    return call


def test_calls_are_measured_whatever_they_run() -> None:
    before = time.time()
    protocol = Protocol(rounds=8, block_seconds=0.02, warmup_seconds=0.5, seed=3)
    result = latency.measure({"variant": sleeper(1), "fp32": sleeper(5)}, batch_size=2, protocol=protocol)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert 2 < result["speedup"] < 5.5
    assert result["latency_p50_ms"] < result["fp32_p50_ms"]
    assert result["throughput_ips"] == pytest.approx(2000 / result["latency_p50_ms"])
    counts = result["protocol"]["calls_per_block"]
    assert counts["variant"] > counts["fp32"]
    for arm in ("variant", "fp32"):
        assert [len(block) for block in result["samples_ms"][arm]] == [counts[arm]] * 8
        assert result["warmup"][arm]["calls"] >= 3
    assert result["samples"] == 8 * counts["variant"]
    assert before <= result["started"] < result["finished"] <= time.time()


def seen(*disturbances: str) -> type:
    """Return what takes the place of the machine's watch."""

    class Seen:
        def __init__(self, probe: Callable[[], float] | None) -> None:
            pass

        def look(self) -> None:
            pass

        def report(self) -> dict[str, object]:
            return {"disturbances": list(disturbances)}

    return Seen


@pytest.mark.parametrize(
    ("disturbances", "warmup_seconds", "verdict", "reason"),
    [
        ([], 0.5, "ok", ""),
        (["others used 0.9"], 0.5, "noisy", "others used 0.9"),
        ([], 0.0, "unstable", "variant had not settled when its warm-up ended; fp32 had not settled"),
        (["others used 0.9"], 0.0, "noisy", "others used 0.9; variant had not settled"),
    ],
)
def test_verdicts(
    disturbances: list[str], warmup_seconds: float, verdict: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "Watch", seen(*disturbances))
    protocol = Protocol(rounds=6, block_seconds=0.01, warmup_seconds=warmup_seconds, seed=0)
    result = latency.measure({"variant": sleeper(2), "fp32": sleeper(2)}, batch_size=1, protocol=protocol)
    assert (result["verdict"], result["verdict_reason"].startswith(reason)) == (verdict, True)
    assert bool(result["verdict_reason"]) == (verdict != "ok")


def test_a_trend_is_told_from_noise() -> None:
    rng = np.random.default_rng(11)
    noise = [blocks(rng, 16, 5, 5.0, 0.06) for _ in range(300)]
    flagged = sum(
        bool(latency.trends(as_samples(one, other))) for one, other in zip(noise[::2], noise[1::2], strict=True)
    )
    assert flagged <= 3, "noise was taken for a trend"
    drift = np.linspace(0.95, 1.05, 16)[:, None]
    both = as_samples(drift * blocks(rng, 16, 5, 5.0, 0.02), drift * blocks(rng, 16, 5, 5.0, 0.02))
    assert [text.split(" by ")[0] for text in latency.trends(both)] == ["the latency rose"]
    one = as_samples(drift * blocks(rng, 16, 5, 5.0, 0.02), blocks(rng, 16, 5, 5.0, 0.02))
    assert [text.split(" by ")[0] for text in latency.trends(one)] == ["the latency rose", "the speed-up fell"]


def test_a_trend_equals_scipys() -> None:
    from scipy.stats import theilslopes

    values = np.random.default_rng(0).normal(10, 1, size=21)
    change, _ = latency.trend(values)
    assert change == pytest.approx(theilslopes(values).slope * 20 / np.median(values))
    assert latency.trend(np.arange(1.0, 7.0))[1] == pytest.approx(15 / np.sqrt(6 * 5 * 17 / 18))


def test_passes_are_timed_by_themselves() -> None:
    protocol = Protocol(rounds=6, block_seconds=0.01, warmup_seconds=0.1, seed=0)
    calls = {"variant": sleeper(1), "fp32": sleeper(1)}
    result = latency.measure(calls, batch_size=1, protocol=protocol, passes={"end_to_end": sleeper(6)})
    assert 6 <= result["end_to_end_p50_ms"] < 12
    assert result["latency_p50_ms"] < 6


def test_the_noise_floor_is_the_farther_end() -> None:
    assert latency.noise_floor({"speedup_ci_low": 0.96, "speedup_ci_high": 1.01}) == pytest.approx(0.04)
    assert latency.noise_floor({"speedup_ci_low": 1.01, "speedup_ci_high": 1.02}) == pytest.approx(0.02)


def test_the_control_of_a_call_against_itself_finds_nothing() -> None:
    protocol = Protocol(rounds=15, block_seconds=0.02, warmup_seconds=0.1, seed=0)
    result = latency.measure({"variant": sleeper(2), "fp32": sleeper(2)}, batch_size=1, protocol=protocol)
    assert result["speedup"] == pytest.approx(1.0, abs=0.1)
