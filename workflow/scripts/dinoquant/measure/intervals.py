"""What the rounds of a timing's processes say: statistics with intervals, and a verdict on how far to trust them.

What a process has of its own (where its memory lies) is the same in all of its rounds: so the rounds are shared by
several processes, one after the other. Repeated on both levels after Kalibera & Jones, "Rigorous Benchmarking in
Reasonable Time" (2013); percentile bootstrap after Efron & Tibshirani, "An Introduction to the Bootstrap" (1993),
chapter 13, of processes and of rounds within them after Davison & Hinkley, "Bootstrap Methods and their Application"
(1997), section 3.8. The trend and the interquartile mean are a few lines of NumPy each: `scipy.stats` has them, but
takes more than a second to import, for every row of the summary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import compress, pairwise
from typing import TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from dinoquant.machine import compute_threads
from dinoquant.measure.rounds import ARMS, Passes, ProcessRounds, Samples, TimingProtocol, WarmupRecord, untimed_calls
from dinoquant.measure.watch import Activities, disturbances, full_speed, merge

CONFIDENCE = 0.95
RESAMPLES = 2000
# Even the whole range of n rounds covers their median with probability 1 - 2 * 0.5**n only: 0.9375 for 5.
MIN_ROUNDS_FOR_INTERVAL = 6
MIN_SAMPLES_FOR_P90 = 10
MIN_SAMPLES_FOR_P99 = 100
# A trend is what chance would hardly make of as many rounds, and what changes a median by more than this from the first
# round to the last.
TREND_Z = 2.58  # p = 0.01
TREND_SIZE = 0.05


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
    protocol: Mapping[str, object]
    samples_ms: Samples
    process: list[int]
    first: list[str]
    set_aside: Samples
    warmup: list[dict[str, WarmupRecord]]
    probe_ms: float | None
    watch: Activities


def combine(parts: Sequence[ProcessRounds], *, batch_size: int, protocol: TimingProtocol) -> CombinedTiming:
    """Return samples, statistics and a verdict of a timing whose processes made ``parts``.

    Only rounds for which the machine was at its best count, the others are ``set_aside``; but all count if these are
    less than half of them, or fewer than six.

    The verdict is "noisy" if that was so, or if the machine did too much else during the rounds
    (`dinoquant.measure.watch`); "unstable" if in most processes a call time never settled, or if it went on changing
    over the rounds (`trends`); otherwise "ok".
    """
    kept, noise = kept_rounds(parts), []
    total = sum(map(len, kept))
    if (count := sum(map(sum, kept))) < max(total / 2, MIN_ROUNDS_FOR_INTERVAL):
        probes = sorted(probe for part in parts for probe in part["watch"]["probe_ms"])
        noise.append(
            f"the machine's speed varied: the same piece of work took {probes[len(probes) // 10]:.2f} to "
            f"{probes[-1 - len(probes) // 10]:.2f} ms, and only {count} of {total} rounds had the best speed"
        )
        kept = [[True] * len(rounds) for rounds in kept]
    activities = merge([part["watch"] for part in parts])
    noise = disturbances(activities, compute_threads()) + noise
    samples = _samples_of(parts, kept)
    process = [number for number, rounds in enumerate(kept) for _ in range(sum(rounds))]
    warmups = [part["warmup"] for part in parts]
    unsettled = [
        f"{arm} had not settled when its warm-up ended, in {unsteady} of {len(parts)} processes"
        for arm in ARMS
        if 2 * (unsteady := sum(not warmup[arm]["steady"] for warmup in warmups)) > len(parts)
    ]
    unsettled += trends(samples)
    counts = parts[0]["calls_per_block"]
    return {
        "batch_size": batch_size,
        "verdict": "noisy" if noise else "unstable" if unsettled else "ok",
        "verdict_reason": "; ".join(noise + unsettled),
        "protocol": {
            **asdict(protocol),
            "calls_per_block": counts,
            "untimed_calls_per_block": {arm: untimed_calls(counts[arm]) for arm in ARMS},
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
        },
        "samples_ms": samples,
        "process": process,
        "first": [arm for part, rounds in zip(parts, kept, strict=True) for arm in compress(part["first"], rounds)],
        "set_aside": _samples_of(parts, [[not one for one in rounds] for rounds in kept]),
        "warmup": warmups,
        **statistics(samples, process, batch_size, protocol.seed),
        **_median_passes([part["passes"] for part in parts]),
        "probe_ms": _probe(parts, kept),
        "watch": activities,
    }


def kept_rounds(parts: Sequence[ProcessRounds]) -> list[list[bool]]:
    """Return which rounds of each process count: those for which the machine was at its best; all without a probe."""
    probes = [part["watch"]["probe_ms"] for part in parts]
    return full_speed(probes) if all(probes) else [[True] * len(part["first"]) for part in parts]


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


def trends(samples_ms: Samples) -> list[str]:
    """Return in words what rose or fell from round to round: the variant's latency, its speed-up."""
    variant, fp32 = (np.median(samples_ms[arm], axis=1) for arm in ARMS)
    sentences = []
    for what, values in (("the latency", variant), ("the speed-up", fp32 / variant)):
        change, z = trend(values)
        if abs(change) > TREND_SIZE and abs(z) > TREND_Z:
            sentences.append(f"{what} {'rose' if change > 0 else 'fell'} by {abs(change):.0%} over the rounds")
    return sentences


def trend(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return how much ``values`` change from the first to the last, as a fraction of their median, and how surely.

    By the Theil-Sen slope (Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968) and the
    standard score of Mann's rank test against trend (1945).
    """
    n = len(values)
    early, late = np.triu_indices(n, 1)
    rises = values[late] - values[early]
    change = np.median(rises / (late - early)) * (n - 1) / np.median(values)
    return float(change), float(np.sign(rises).sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def statistics(samples_ms: Samples, process: Sequence[int], batch_size: int, seed: int) -> Statistics:
    """Return the statistics of ``samples_ms`` (arm -> rounds -> ms; rounds equally long within an arm).

    ``process`` is the number of the process that made each round. The speed-up is the interquartile mean over rounds of
    (median of the round's fp32 block / median of its variant block). Intervals: see `interval`. The upper percentiles
    are None where there are too few samples to see them.
    """
    variant, fp32 = (np.asarray(samples_ms[arm]) for arm in ARMS)
    ratios = np.median(fp32, axis=1) / np.median(variant, axis=1)
    p50 = float(np.median(variant))
    p50_low, p50_high = interval(variant, median, seed, process)
    speedup_low, speedup_high = interval(ratios[:, None], interquartile_mean, seed, process)
    return {
        "samples": variant.size,
        "latency_p50_ms": p50,
        "latency_p50_ci_low_ms": p50_low,
        "latency_p50_ci_high_ms": p50_high,
        "latency_p90_ms": float(np.quantile(variant, 0.90)) if variant.size >= MIN_SAMPLES_FOR_P90 else None,
        "latency_p99_ms": float(np.quantile(variant, 0.99)) if variant.size >= MIN_SAMPLES_FOR_P99 else None,
        "throughput_ips": batch_size * 1e3 / p50,
        "fp32_p50_ms": float(np.median(fp32)),
        "speedup": float(interquartile_mean(ratios)),
        "speedup_ci_low": speedup_low,
        "speedup_ci_high": speedup_high,
    }


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median along the last axis."""
    return np.asarray(np.median(values, axis=-1))


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the middle half along the last axis.

    No single round can spoil it, and of rounds that scatter normally it makes more than their median does. After
    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021).
    """
    cut = values.shape[-1] // 4
    return np.asarray(np.sort(values)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def interval(
    rounds: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    seed: int,
    process: Sequence[int] | None = None,
) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % bootstrap interval of a statistic of all of ``rounds`` [rounds, samples].

    It resamples processes, and whole rounds within them, because neither the rounds of a process nor the calls of a
    round are independent. ``process`` is the number of each round's process, all the same by default: then the interval
    knows nothing of how processes differ. None with fewer than 6 rounds, which no such interval can cover.

    A percentile interval of few processes (or of few rounds of one) is too narrow, as one of a mean by the normal
    distribution would be: it is expanded by what Student's distribution asks for. T. Hesterberg, "What Teachers Should
    Know About the Bootstrap", The American Statistician 69 (2015), "expanded percentile interval".
    """
    n = len(rounds)
    if n < MIN_ROUNDS_FOR_INTERVAL:
        return None, None
    rng = np.random.default_rng(seed)
    _, first, sizes = np.unique(process or [0] * n, return_index=True, return_counts=True)
    processes = rng.integers(len(sizes), size=(RESAMPLES, len(sizes), 1))
    within = rng.random((RESAMPLES, len(sizes), -(-n // len(sizes)))) * sizes[processes]
    resamples = (first[processes] + within.astype(int)).reshape(RESAMPLES, -1)
    # In parts, because all resampled rounds of a model with many short calls would take gigabytes.
    parts = np.array_split(resamples, 50)
    resampled = np.concatenate([statistic(rounds[part].reshape(len(part), -1)) for part in parts])
    units = len(sizes) if len(sizes) > 1 else n
    tail = ndtr(stdtrit(units - 1, (1 - CONFIDENCE) / 2) * np.sqrt(units / (units - 1)))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)
