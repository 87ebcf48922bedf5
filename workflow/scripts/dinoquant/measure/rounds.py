"""Time a model beside its fp32 original, so that what the machine does to one it does to the other.

The two are timed in short blocks that alternate in a random order; the speed-up is taken round by round. Machine drift
(clock frequency, temperature, neighbours) is slower than a round, hits both and cancels in the ratio. What a process
has of its own (where its memory lies) is the same in all of its rounds: so the rounds are shared by several processes,
one after the other. Interleaved and repeated on both levels after Kalibera & Jones, "Rigorous Benchmarking in
Reasonable Time" (2013); percentile bootstrap after Efron & Tibshirani, "An Introduction to the Bootstrap" (1993),
chapter 13, of processes and of rounds within them after Davison & Hinkley, "Bootstrap Methods and their Application"
(1997), section 3.8. Needs no PyTorch: what a call does is its maker's business.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import compress, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinoquant.machine import compute_threads
from dinoquant.measure.watch import Watch, disturbances, full_speed, merge

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
Part = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How a timing is taken: rounds, processes that share them, seconds of a block and of a warm-up at most, seed."""

    rounds: int
    processes: int
    block_seconds: float
    warmup_seconds: float
    seed: int

    @property
    def rounds_each(self) -> int:
        """How many rounds each of the processes makes."""
        return -(-self.rounds // self.processes)


class Warmup(NamedTuple):
    """What a warm-up took, whether the call time had settled at its end, and that call time in seconds."""

    calls: int
    seconds: float
    steady: bool
    call_seconds: float


def measure(
    calls: Mapping[str, Call],
    *,
    protocol: Protocol,
    process: int = 0,
    counts: Mapping[str, int] | None = None,
    passes: Mapping[str, Call] | None = None,
    probe: Call | None = None,
) -> Part:
    """Time the calls "variant" and "fp32" side by side in this process, and return its part of a timing, for JSON.

    A call runs its model once, on an input that is ready, and returns the milliseconds it took; the model may live in
    another process, as long as that process does the timing. With both calls made from the same file (loaded twice)
    this is the A/A control: its speed-up should be 1.

    Args:
        calls: what to time.
        protocol: how.
        process: the number of this process among those of the timing; it decides on the order of the blocks.
        counts: calls in a block, by arm; as many as last ``protocol.block_seconds`` by default.
        passes: further calls, by name; each is timed by itself after the rounds, and its median is ``NAME_p50_ms``.
        probe: runs before and after each round: a short piece of work, the same in every timing, that tells how fast
            the machine was just then.
    """
    with _no_garbage_collection():
        warmups = {arm: warm_up(calls[arm], protocol.warmup_seconds) for arm in ARMS}
        counts = counts or {arm: calls_per_block(warmups[arm].call_seconds, protocol.block_seconds) for arm in ARMS}
        watch = Watch(probe)
        samples, first = interleave(calls, counts, protocol.rounds_each, [protocol.seed, process], watch.look)
        seen = watch.report()
        medians = {f"{name}_p50_ms": run_pass(call, protocol) for name, call in (passes or {}).items()}
    return {
        "samples_ms": samples,
        "first": first,
        "calls_per_block": dict(counts),
        "warmup": {arm: {"calls": w.calls, "seconds": w.seconds, "steady": w.steady} for arm, w in warmups.items()},
        "passes": medians,
        "watch": seen,
    }


def repeat(start: Callable[[int, Mapping[str, int] | None], Part], protocol: Protocol) -> list[Part]:
    """Return the parts of a timing (`measure`), which processes make one after the other.

    ``start`` runs a process, given its number and how many calls its blocks have: as many as those of the first.
    """
    parts: list[Part] = []
    for process in tqdm(range(protocol.processes), desc="processes", disable=None):
        parts.append(start(process, parts[0]["calls_per_block"] if parts else None))
    return parts


def kept_rounds(parts: Sequence[Part]) -> list[list[bool]]:
    """Return which rounds of each process count: those for which the machine was at its best; all without a probe."""
    probes = [part["watch"]["probe_ms"] for part in parts]
    return full_speed(probes) if all(probes) else [[True] * len(part["first"]) for part in parts]


def combine(parts: Sequence[Part], *, batch_size: int, protocol: Protocol) -> dict[str, Any]:
    """Return samples, statistics and a verdict, for JSON, of a timing whose processes made ``parts``.

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
    seen = merge([part["watch"] for part in parts])
    noise = disturbances(seen, compute_threads()) + noise
    samples = _chosen(parts, kept)
    process = [number for number, rounds in enumerate(kept) for _ in range(sum(rounds))]
    warmups = [part["warmup"] for part in parts]
    unrest = [
        f"{arm} had not settled when its warm-up ended, in {unsteady} of {len(parts)} processes"
        for arm in ARMS
        if 2 * (unsteady := sum(not warmup[arm]["steady"] for warmup in warmups)) > len(parts)
    ]
    unrest += trends(samples)
    counts = parts[0]["calls_per_block"]
    return {
        "batch_size": batch_size,
        "verdict": "noisy" if noise else "unstable" if unrest else "ok",
        "verdict_reason": "; ".join(noise + unrest),
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
        "set_aside": _chosen(parts, [[not one for one in rounds] for rounds in kept]),
        "warmup": warmups,
        **summarise(samples, process, batch_size, protocol.seed),
        **{name: float(np.median([part["passes"][name] for part in parts])) for name in parts[0]["passes"]},
        "probe_ms": _probe(parts, kept),
        "watch": seen,
    }


def _probe(parts: Sequence[Part], kept: Sequence[Sequence[bool]]) -> float | None:
    """Return the median of the looks before and after the rounds that count: how fast the machine was for them."""
    looks = [
        look
        for part, rounds in zip(parts, kept, strict=True)
        for around in compress(pairwise(part["watch"]["probe_ms"]), rounds)
        for look in around
    ]
    return float(np.median(looks)) if looks else None


def _chosen(parts: Sequence[Part], chosen: Sequence[Sequence[bool]]) -> Samples:
    """Return the samples of the chosen rounds of each process, one after the other."""
    pairs = list(zip(parts, chosen, strict=True))
    return {
        arm: [block for part, rounds in pairs for block in compress(part["samples_ms"][arm], rounds)] for arm in ARMS
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
    calls: Mapping[str, Call], counts: Mapping[str, int], rounds: int, seed: Sequence[int], look: Callable[[], None]
) -> tuple[Samples, list[str]]:
    """Return the samples in ms, per arm and round, and which arm went first in each round (by the seed).

    ``look`` is called before each round and after the last.
    """
    variant_first = np.random.default_rng(seed).integers(2, size=rounds)
    samples: Samples = {arm: [] for arm in ARMS}
    first = []
    look()
    for flip in variant_first:
        order = ARMS if flip else ARMS[::-1]
        first.append(order[0])
        for arm in order:
            for _ in range(untimed_calls(counts[arm])):
                calls[arm]()
            samples[arm].append([calls[arm]() for _ in range(counts[arm])])
        look()
    return samples, first


def summarise(samples_ms: Samples, process: Sequence[int], batch_size: int, seed: int) -> dict[str, Any]:
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
    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021). SciPy's `trim_mean`
    with a quarter off either end is the same, but its import takes as long as two blocks.
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
    from scipy.special import ndtr, stdtrit  # here, since processes that time need no SciPy

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
    found = np.concatenate([statistic(rounds[part].reshape(len(part), -1)) for part in parts])
    units = len(sizes) if len(sizes) > 1 else n
    tail = ndtr(stdtrit(units - 1, (1 - CONFIDENCE) / 2) * np.sqrt(units / (units - 1)))
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)
