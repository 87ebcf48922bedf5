"""Time a model beside its fp32 original in this process, so that what the machine does to one it does to the other.

The two are timed in short blocks that alternate in a random order; the speed-up is taken round by round. Machine drift
(clock frequency, temperature, neighbours) is slower than a round, hits both and cancels in the ratio. Interleaved after
Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time" (2013). Needs no PyTorch: what a call does is its maker's
business.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from dinoquant.measure.stopping import MIN_ROUNDS, stop_reason
from dinoquant.measure.watch import Activity, MachineWatch, full_speed

ARMS = ("variant", "fp32")
# TorchScript's profiling executor observes the first call of a shape and compiles during the second.
SPECIALISING_CALLS = 2
MIN_CALLS_FOR_UNTIMED = 10
STEADY_GROUP_SECONDS = 0.1
STEADY_TOLERANCE = 0.05
MIN_CALLS_OF_PASS = 3
OVERTIME = 3  # times what the blocks should last, after which a timing that has six rounds makes no more

Call = Callable[[], float]
Counts = Mapping[str, int]  # calls in a block, by arm
Samples = dict[str, list[list[float]]]  # ms by arm, round and call


@dataclass(frozen=True)
class TimingProtocol:
    """How a timing is taken: most rounds and processes, what ends it earlier, seconds of a block and a warm-up, seed.

    ``precision`` is the half width of the speed-up's interval that is enough, as a fraction; see
    `dinoquant.measure.stopping`.
    """

    rounds: int
    processes: int
    precision: float
    block_seconds: float
    warmup_seconds: float
    seed: int

    @property
    def rounds_each(self) -> int:
        """How many rounds each of the processes makes, at most."""
        return -(-self.rounds // self.processes)


class Warmup(NamedTuple):
    """What a warm-up took, whether the call time had settled at its end, and that call time in seconds."""

    calls: int
    seconds: float
    steady: bool
    call_seconds: float


class WarmupRecord(TypedDict):
    """What a timing's file keeps of a warm-up."""

    calls: int
    seconds: float
    steady: bool


class Passes(TypedDict, total=False):
    """Medians in ms of what is timed by itself, after the rounds."""

    preprocess_p50_ms: float
    end_to_end_p50_ms: float
    device_p50_ms: float


class ProcessRounds(TypedDict):
    """The rounds of one process: samples, which arm went first in each, and what happened beside them."""

    samples_ms: Samples
    first: list[str]
    calls_per_block: dict[str, int]
    warmup: dict[str, WarmupRecord]
    passes: Passes
    watch: Activity


def measure(
    calls: Mapping[str, Call],
    *,
    protocol: TimingProtocol,
    process: int = 0,
    counts: Counts | None = None,
    passes: Mapping[str, Call] | None = None,
    probe: Call | None = None,
) -> ProcessRounds:
    """Time the calls "variant" and "fp32" side by side in this process, and return its rounds.

    A call runs its model once, on an input that is ready, and returns the milliseconds it took; the model may live in
    another process, as long as that process does the timing. With both calls made from the same file (loaded twice)
    this is the A/A control: its speed-up should be 1.

    Beside something that takes processors from it, two threads may take a second for a call of 50 ms: rounds that take
    several times as long as they should are ended before all are made.

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
        watch = MachineWatch(probe)

        def enough(samples: Samples) -> bool:
            values = log_ratios(samples)[full_speed([watch.probe_ms])[0]] if probe else log_ratios(samples)
            known = stop_reason(values, [process] * len(values), 1, protocol.precision) is not None
            return known or overtime(samples, protocol.block_seconds)

        alone = enough if protocol.processes == 1 else None  # of several, who starts them knows what those before found
        seed = [protocol.seed, process]
        samples, first = interleave(calls, counts, protocol.rounds_each, seed, watch.observe, alone)
        activity = watch.report()
        medians = {f"{name}_p50_ms": run_pass(call, protocol) for name, call in (passes or {}).items()}
    return {
        "samples_ms": samples,
        "first": first,
        "calls_per_block": dict(counts),
        "warmup": {arm: {"calls": w.calls, "seconds": w.seconds, "steady": w.steady} for arm, w in warmups.items()},
        "passes": cast(Passes, medians),
        "watch": activity,
    }


def run_pass(call: Call, protocol: TimingProtocol) -> float:
    """Return the median ms of about as many calls as a block has, three at least, after an untimed one."""
    count = max(MIN_CALLS_OF_PASS, calls_per_block(call() / 1e3, protocol.block_seconds))
    return float(np.median([call() for _ in range(count)]))


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
    """Compare the last two groups, at the end of each group only: after every call some would match by chance."""
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
    calls: Mapping[str, Call],
    counts: Counts,
    rounds: int,
    seed: Sequence[int],
    observe: Callable[[], None],
    enough: Callable[[Samples], bool] | None = None,
) -> tuple[Samples, list[str]]:
    """Return the samples in ms, per arm and round, and which arm went first in each round (by the seed).

    ``observe`` is called before each round and after the last, which is the one after which the samples are ``enough``,
    or number ``rounds``.
    """
    variant_first = np.random.default_rng(seed).integers(2, size=rounds)
    samples: Samples = {arm: [] for arm in ARMS}
    first = []
    observe()
    for flip in variant_first:
        order = ARMS if flip else ARMS[::-1]
        first.append(order[0])
        for arm in order:
            for _ in range(untimed_calls(counts[arm])):
                calls[arm]()
            samples[arm].append([calls[arm]() for _ in range(counts[arm])])
        observe()
        if enough and enough(samples):
            break
    return samples, first


def overtime(samples: Samples, block_seconds: float) -> bool:
    """Tell whether six rounds or more took three times as long as they should: as a block, or one call at its best."""
    rounds = len(samples[ARMS[0]])
    if rounds < MIN_ROUNDS:
        return False
    spent = sum(sum(block) for arm in ARMS for block in samples[arm])
    due = rounds * sum(max(block_seconds * 1e3, min(map(min, samples[arm]))) for arm in ARMS)
    return spent > OVERTIME * due


def log_ratios(samples: Samples) -> NDArray[np.float64]:
    """Return the logarithm of each round's speed-up: the median of its fp32 block over that of its variant block."""
    variant, fp32 = (np.median(samples[arm], axis=1) for arm in ARMS)
    return np.asarray(np.log(fp32 / variant))
