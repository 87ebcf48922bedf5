"""Time a model beside its fp32 original, so that what the machine does to one it does to the other.

The two are timed in short blocks that alternate in a random order; the speed-up is taken round by round. Machine drift
(clock frequency, temperature, neighbours) is slower than a round, hits both and cancels in the ratio. Interleaved after
Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time" (2013); percentile bootstrap after Efron & Tibshirani,
"An Introduction to the Bootstrap" (1993), chapter 13. Needs no PyTorch: what a call does is its maker's business.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinoquant.watch import Watch

ARMS = ("variant", "fp32")
CONFIDENCE = 0.95
RESAMPLES = 2000
# Even the whole range of n rounds covers their median with probability 1 - 2 * 0.5**n only: 0.9375 for 5.
MIN_ROUNDS_FOR_INTERVAL = 6
MIN_SAMPLES_FOR_P90 = 10
MIN_SAMPLES_FOR_P99 = 100
# TorchScript's profiling executor observes the first call of a shape and compiles during the second.
SPECIALISING_CALLS = 2
MIN_CALLS_FOR_UNTIMED = 10
STEADY_GROUP_SECONDS = 0.1
STEADY_TOLERANCE = 0.05
MIN_CALLS_OF_PASS = 5
# A trend is what chance would hardly make of as many rounds, and what changes a median by more than this from the first
# round to the last.
TREND_Z = 2.58  # p = 0.01
TREND_SIZE = 0.05

Call = Callable[[], float]
Samples = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Protocol:
    """How a timing is taken: number of rounds, length of a block and longest warm-up in seconds, and the seed."""

    rounds: int
    block_seconds: float
    warmup_seconds: float
    seed: int


class Warmup(NamedTuple):
    """What a warm-up took, whether the call time had settled at its end, and that call time in seconds."""

    calls: int
    seconds: float
    steady: bool
    call_seconds: float


def measure(
    calls: Mapping[str, Call],
    *,
    batch_size: int,
    protocol: Protocol,
    passes: Mapping[str, Call] | None = None,
    probe: Call | None = None,
) -> dict[str, Any]:
    """Time the calls "variant" and "fp32" side by side and return samples, statistics and a verdict for JSON.

    A call runs its model once, on an input of ``batch_size`` images that is ready, and returns the milliseconds it
    took; the model may live in another process, as long as that process does the timing. With both calls made from the
    same file (loaded twice) this is the A/A control: its speed-up should be 1.

    ``passes`` are further calls, by name; each is timed by itself after the rounds, and its median is ``NAME_p50_ms``.

    ``probe`` runs between the rounds: a short piece of work, the same in every timing, that tells how fast the machine
    was just then.

    The verdict is "noisy" if the machine did too much else during the rounds (`dinoquant.watch`), "unstable" if a call
    time never settled or went on changing (`trends`), otherwise "ok".
    """
    started = time.time()
    with _no_garbage_collection():
        warmups = {arm: warm_up(calls[arm], protocol.warmup_seconds) for arm in ARMS}
        counts = {arm: calls_per_block(warmups[arm].call_seconds, protocol.block_seconds) for arm in ARMS}
        watch = Watch(probe)
        samples, first = interleave(calls, counts, protocol, watch.look)
        seen = watch.report()
        medians = {f"{name}_p50_ms": run_pass(call, protocol) for name, call in (passes or {}).items()}
    noise = seen["disturbances"]
    unrest = [f"{arm} had not settled when its warm-up ended" for arm in ARMS if not warmups[arm].steady]
    unrest += trends(samples)
    return {
        "batch_size": batch_size,
        "verdict": "noisy" if noise else "unstable" if unrest else "ok",
        "verdict_reason": "; ".join(noise + unrest),
        "protocol": {
            "rounds": protocol.rounds,
            "block_seconds": protocol.block_seconds,
            "warmup_seconds": protocol.warmup_seconds,
            "seed": protocol.seed,
            "calls_per_block": counts,
            "untimed_calls_per_block": {arm: untimed_calls(counts[arm]) for arm in ARMS},
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
        },
        "samples_ms": samples,
        "first": first,
        "warmup": {arm: {"calls": w.calls, "seconds": w.seconds, "steady": w.steady} for arm, w in warmups.items()},
        **summarise(samples, batch_size, protocol.seed),
        **medians,
        "watch": seen,
        "started": started,
        "finished": time.time(),
    }


def noise_floor(result: Mapping[str, Any]) -> float:
    """Return how far from 1 the speed-up of an A/A control may be, as a fraction: by its interval."""
    return float(max(abs(result["speedup_ci_low"] - 1), abs(result["speedup_ci_high"] - 1)))


def run_pass(call: Call, protocol: Protocol) -> float:
    """Return the median ms of about as many calls as a block has, five at least, after an untimed one."""
    count = max(MIN_CALLS_OF_PASS, calls_per_block(call() / 1e3, protocol.block_seconds))
    return float(np.median([call() for _ in range(count)]))


def trends(samples_ms: Samples) -> list[str]:
    """Return in words what rose or fell from round to round: the variant's latency, its speed-up."""
    variant, fp32 = (np.median(samples_ms[arm], axis=1) for arm in ARMS)
    found = []
    for what, values in (("the latency", variant), ("the speed-up", fp32 / variant)):
        change, z = trend(values)
        if abs(change) > TREND_SIZE and abs(z) > TREND_Z:
            found.append(f"{what} {'rose' if change > 0 else 'fell'} by {abs(change):.0%} over the rounds")
    return found


def trend(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return how much ``values`` change from the first to the last, as a fraction of their median, and how surely.

    By the Theil-Sen slope (Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968) and the
    standard score of Mann's rank test against trend (1945). SciPy has both, but its import takes as long as two blocks.
    """
    n = len(values)
    early, late = np.triu_indices(n, 1)
    rises = values[late] - values[early]
    change = np.median(rises / (late - early)) * (n - 1) / np.median(values)
    return float(change), float(np.sign(rises).sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def warm_up(call: Call, limit_seconds: float) -> Warmup:
    """Call until the medians of two consecutive groups of calls agree within 5 %, or ``limit_seconds`` have passed.

    A group lasts about 0.1 s. The calls in which TorchScript specialises the model belong to no group; after them there
    is always one call, and whatever it takes to compare two groups while there is time.
    """
    start = time.perf_counter()
    for _ in range(SPECIALISING_CALLS):
        call()
    times = [call()]
    size = calls_per_block(times[0] / 1e3, STEADY_GROUP_SECONDS)
    while not (steady := _is_steady(times, size)) and time.perf_counter() - start < limit_seconds:
        times.append(call())
    seconds = time.perf_counter() - start
    return Warmup(SPECIALISING_CALLS + len(times), seconds, steady, float(np.median(times[-size:])) / 1e3)


def _is_steady(times: list[float], size: int) -> bool:
    """Compare the last two groups, at the end of each group only: a look after every call would find chance matches."""
    if len(times) < 2 * size or len(times) % size:
        return False
    before, after = np.median(times[-2 * size : -size]), np.median(times[-size:])
    return bool(abs(after - before) <= STEADY_TOLERANCE * before)


def calls_per_block(call_seconds: float, block_seconds: float) -> int:
    """Return how many calls last about ``block_seconds``; at least one."""
    return max(1, round(block_seconds / call_seconds))


def untimed_calls(calls: int) -> int:
    """Return how many calls open a block of ``calls`` untimed.

    The other model has emptied the caches, which costs the first call about 1 ms (ViT-S, int8 after fp32, 32 MB of
    cache). Among many short calls these would be the 99th percentile: one of interleaving, not of the model. Long calls
    hardly notice, and one in few would cost much time.
    """
    return 1 if calls >= MIN_CALLS_FOR_UNTIMED else 0


def interleave(
    calls: Mapping[str, Call], counts: Mapping[str, int], protocol: Protocol, between: Callable[[], None]
) -> tuple[Samples, list[str]]:
    """Return the samples in ms, per arm and round, and which arm went first in each round (by the protocol's seed).

    ``between`` is called before each round.
    """
    variant_first = np.random.default_rng(protocol.seed).integers(2, size=protocol.rounds)
    samples: Samples = {arm: [] for arm in ARMS}
    first = []
    for flip in tqdm(variant_first, desc="rounds", disable=None):
        between()
        order = ARMS if flip else ARMS[::-1]
        first.append(order[0])
        for arm in order:
            for _ in range(untimed_calls(counts[arm])):
                calls[arm]()
            samples[arm].append([calls[arm]() for _ in range(counts[arm])])
    return samples, first


def summarise(samples_ms: Samples, batch_size: int, seed: int) -> dict[str, Any]:
    """Return the statistics of ``samples_ms`` (arm -> rounds -> ms; rounds equally long within an arm).

    The speed-up is the median over rounds of (median of the round's fp32 block / median of its variant block).
    Intervals are 95 % percentile bootstraps that resample rounds, because calls within a block are not independent;
    None with fewer than 6 rounds, which no such interval can cover. The upper percentiles are None where there are too
    few samples to see them.
    """
    variant, fp32 = (np.asarray(samples_ms[arm]) for arm in ARMS)
    ratios = np.median(fp32, axis=1) / np.median(variant, axis=1)
    p50 = float(np.median(variant))
    p50_low, p50_high = median_interval(variant, seed)
    speedup_low, speedup_high = median_interval(ratios[:, None], seed)
    return {
        "samples": variant.size,
        "latency_p50_ms": p50,
        "latency_p50_ci_low_ms": p50_low,
        "latency_p50_ci_high_ms": p50_high,
        "latency_p90_ms": float(np.quantile(variant, 0.90)) if variant.size >= MIN_SAMPLES_FOR_P90 else None,
        "latency_p99_ms": float(np.quantile(variant, 0.99)) if variant.size >= MIN_SAMPLES_FOR_P99 else None,
        "throughput_ips": batch_size * 1e3 / p50,
        "fp32_p50_ms": float(np.median(fp32)),
        "speedup": float(np.median(ratios)),
        "speedup_ci_low": speedup_low,
        "speedup_ci_high": speedup_high,
    }


def median_interval(rounds: NDArray[np.float64], seed: int) -> tuple[float, float] | tuple[None, None]:
    """Return the bootstrap interval of the median of all of ``rounds`` [rounds, samples], resampling whole rounds."""
    n = len(rounds)
    if n < MIN_ROUNDS_FOR_INTERVAL:
        return None, None
    rng = np.random.default_rng(seed)
    resamples = rng.integers(n, size=(RESAMPLES, n))
    # In parts, because all resampled rounds of a model with many short calls would take gigabytes.
    parts = np.array_split(resamples, 50)
    medians = np.concatenate([np.median(rounds[part].reshape(len(part), -1), axis=1) for part in parts])
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
