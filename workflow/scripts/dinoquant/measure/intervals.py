"""What the rounds of a timing's processes say: statistics with intervals, and a verdict on how far to trust them.

What a process has of its own (where its memory lies) is the same in all of its rounds: so the rounds are shared by
several processes, one after the other, until the speed-up is known (`dinoquant.measure.stopping`). Repeated on both
levels after Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time" (2013).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, compress, pairwise
from typing import TypedDict, cast

import numpy as np

from dinoquant.measure.rounds import (
    ARMS,
    Passes,
    ProcessRounds,
    Samples,
    TimingProtocol,
    WarmupRecord,
    log_ratios,
    overtime,
    untimed_calls,
)
from dinoquant.measure.stopping import CONFIDENCE, MIN_PROCESSES, center, interval, second_run, stop_reason
from dinoquant.measure.verdict import Contention, judge
from dinoquant.measure.watch import Activities, full_speed, merge

# From as many samples as early stopping in MLPerf's LoadGen asks for, at 99 % confidence.
MIN_SAMPLES_FOR_P90 = 64
MIN_SAMPLES_FOR_P99 = 662
MIN_SLOW_ROUNDS = 3


class Statistics(TypedDict):
    """What the samples of a timing say; None where there are too few."""

    samples: int
    latency_p50_ms: float
    latency_p50_ci_low_ms: float | None
    latency_p50_ci_high_ms: float | None
    latency_p90_ms: float | None
    latency_p99_ms: float | None
    throughput_ips: float
    fp32_p50_ms: float
    speedup: float
    speedup_ci_low: float | None
    speedup_ci_high: float | None


class CombinedTiming(Statistics, Passes):
    """A timing: all of `results/latency/{device}/{variant}/batch{n}.json` but what it was taken with."""

    batch_size: int
    verdict: str
    verdict_reason: str
    second_run: float | None
    stopped: str
    rounds: int
    protocol: Mapping[str, object]
    samples_ms: Samples
    process: list[int]
    first: list[str]
    set_aside: Samples
    slow_shift: float | None
    warmup: list[dict[str, WarmupRecord]]
    probe_ms: float | None
    watch: Activities


def combine(
    parts: Sequence[ProcessRounds], *, batch_size: int, protocol: TimingProtocol, idle: int = 0
) -> CombinedTiming:
    """Return samples, statistics and a verdict of a timing whose processes made ``parts``.

    Only rounds for which the machine was at its best count, the others are ``set_aside``; see
    `dinoquant.measure.watch.full_speed`. ``idle`` is how many processors the timing leaves to others; the verdict is
    that of `dinoquant.measure.verdict.judge`. ``stopped`` says what ended the timing: "precise" or "slower" (as
    `dinoquant.measure.stopping.stop_reason`), "overtime" or "budget", and ``slow_shift`` by how much the speed-up
    differed in the rounds that were set aside, as a fraction.
    """
    kept = kept_rounds(parts)
    samples, process = _counted(parts, kept)
    set_aside = _samples_of(parts, [[not one for one in rounds] for rounds in kept])
    ratios, activities = log_ratios(samples), merge([part["watch"] for part in parts])
    load = [max(0.0, load - idle) for load in compress(chain(*activities["load"]), chain(*kept))]
    others = activities.get("foreign", 0.0) + activities.get("steal", 0.0)
    contention = Contention(max(0.0, others - idle), load, activities.get("throttles") or 0)
    differs = second_run(ratios, process)
    verdict, reason = judge(ratios, differs, len(set(process)), contention)
    counts = parts[0]["calls_per_block"]
    return {
        "batch_size": batch_size,
        "verdict": verdict,
        "verdict_reason": reason,
        "second_run": differs,
        "stopped": stopped(parts, protocol) or "budget",
        "rounds": sum(map(len, kept)),
        "protocol": {
            **asdict(protocol),
            "calls_per_block": counts,
            "untimed_calls_per_block": {arm: untimed_calls(counts[arm]) for arm in ARMS},
            "confidence": CONFIDENCE,
        },
        "samples_ms": samples,
        "process": process,
        "first": [arm for part, rounds in zip(parts, kept, strict=True) for arm in compress(part["first"], rounds)],
        "set_aside": set_aside,
        "slow_shift": _slow_shift(samples, process, set_aside),
        "warmup": [part["warmup"] for part in parts],
        **statistics(samples, process, batch_size),
        **_median_passes([part["passes"] for part in parts]),
        "probe_ms": _probe(parts, kept),
        "watch": activities,
    }


def stopped(parts: Sequence[ProcessRounds], protocol: TimingProtocol) -> str | None:
    """Return why the rounds of these processes are enough; None if they are not."""
    samples, process = _counted(parts, kept_rounds(parts))
    if reason := stop_reason(log_ratios(samples), process, protocol.processes, protocol.precision):
        return reason
    enough = len(parts) >= min(MIN_PROCESSES, protocol.processes)
    return "overtime" if enough and overtime(samples, protocol.block_seconds) else None


def kept_rounds(parts: Sequence[ProcessRounds]) -> list[list[bool]]:
    """Return which rounds of each process count: those for which the machine was at its best; all without a probe."""
    probes = [part["watch"]["probe_ms"] for part in parts]
    return full_speed(probes) if all(probes) else [[True] * len(part["first"]) for part in parts]


def _counted(parts: Sequence[ProcessRounds], kept: Sequence[Sequence[bool]]) -> tuple[Samples, list[int]]:
    """Return the samples of the rounds that count, and the number of the process that made each round."""
    return _samples_of(parts, kept), [number for number, rounds in enumerate(kept) for _ in range(sum(rounds))]


def _slow_shift(samples: Samples, process: Sequence[int], set_aside: Samples) -> float | None:
    """Return how far the speed-up of what was set aside is from that of what counts; None of less than three rounds."""
    if len(set_aside["fp32"]) < MIN_SLOW_ROUNDS:
        return None
    return abs(float(np.median(log_ratios(set_aside))) - center(log_ratios(samples), process))


def _probe(parts: Sequence[ProcessRounds], kept: Sequence[Sequence[bool]]) -> float | None:
    """Return the median of the probes before and after the rounds that count: how fast the machine was for them."""
    probes = [
        probe
        for part, rounds in zip(parts, kept, strict=True)
        for around in compress(pairwise(part["watch"]["probe_ms"]), rounds)
        for probe in around
    ]
    return float(np.median(probes)) if probes else None


def _samples_of(parts: Sequence[ProcessRounds], chosen: Sequence[Sequence[bool]]) -> Samples:
    """Return the samples of the chosen rounds of each process, one after the other."""
    pairs = list(zip(parts, chosen, strict=True))
    return {
        arm: [block for part, rounds in pairs for block in compress(part["samples_ms"][arm], rounds)] for arm in ARMS
    }


def _median_passes(passes: Sequence[Passes]) -> Passes:
    by_process = [cast(Mapping[str, float], each) for each in passes]
    return cast(Passes, {name: float(np.median([each[name] for each in by_process])) for name in by_process[0]})


def noise_floor(timing: Statistics) -> float | None:
    """Return how far from 1 the speed-up of an A/A control may be, as a fraction, by its interval; None without one."""
    low, high = timing["speedup_ci_low"], timing["speedup_ci_high"]
    return None if low is None or high is None else max(abs(low - 1), abs(high - 1))


def statistics(samples_ms: Samples, process: Sequence[int], batch_size: int) -> Statistics:
    """Return the statistics of ``samples_ms`` (arm -> rounds -> ms; rounds equally long within an arm).

    ``process`` is the number of the process that made each round. The speed-up is that of each round (median of its
    fp32 block / median of its variant block), taken together by `dinoquant.measure.stopping.center`, geometrically;
    intervals: see `interval` there. The upper percentiles are None where there are too few samples to see them.
    """
    variant, fp32 = (np.asarray(samples_ms[arm]) for arm in ARMS)
    ratios = log_ratios(samples_ms)
    p50, speedup = float(np.median(variant)), float(np.exp(center(ratios, process)))
    p50_low, p50_high = interval(np.log(np.median(variant, axis=1)), process, p50)
    speedup_low, speedup_high = interval(ratios, process, speedup)
    return {
        "samples": variant.size,
        "latency_p50_ms": p50,
        "latency_p50_ci_low_ms": p50_low,
        "latency_p50_ci_high_ms": p50_high,
        "latency_p90_ms": float(np.quantile(variant, 0.90)) if variant.size >= MIN_SAMPLES_FOR_P90 else None,
        "latency_p99_ms": float(np.quantile(variant, 0.99)) if variant.size >= MIN_SAMPLES_FOR_P99 else None,
        "throughput_ips": batch_size * 1e3 / p50,
        "fp32_p50_ms": float(np.median(fp32)),
        "speedup": speedup,
        "speedup_ci_low": speedup_low,
        "speedup_ci_high": speedup_high,
    }
