"""The parts of other stages' result files that the report reads, as types.

Written down here rather than imported from those stages: a change of how something is measured must not make a figure
or a page stale that shows the same file.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from dinoquant.files import read_json

Facts = Mapping[str, object]  # by name, for printing


class Calls(TypedDict):
    """The ms of single calls, by round."""

    variant: Sequence[Sequence[float]]


class SetAside(TypedDict):
    """The ms of calls that do not count, by round."""

    fp32: Sequence[Sequence[float]]


class Watch(TypedDict, total=False):
    """Processors that others had during a timing, on average: processes, and other guests."""

    foreign: float
    steal: float


class Timing(TypedDict):
    """`results/latency/{device}/{variant}/batch{n}.json`, and those of the thread scaling."""

    variant: str
    device: str
    batch_size: int
    threads: int
    latency_p50_ms: float
    throughput_ips: float
    samples_ms: Calls
    speedup_ci_low: float | None
    speedup_ci_high: float | None
    verdict: str
    verdict_reason: str
    second_run: float | None
    rounds: NotRequired[int]
    set_aside: NotRequired[SetAside]
    slow_shift: NotRequired[float | None]
    watch: NotRequired[Watch]
    probe_ms: NotRequired[float | None]
    noise_floor: NotRequired[float | None]  # of fp32 only
    started: float
    finished: float
    machine: Facts


class Refusal(TypedDict):
    """The same file where the machine would have emulated the variant's precision, and timed nothing."""

    variant: str
    device: str
    batch_size: int
    threads: int
    unsupported: str  # the reason
    machine: Facts


class Saturation(TypedDict):
    """How far int8 features are from those that the same integers give exactly."""

    saturates: bool
    cosine: float


class Peaks(TypedDict):
    """`results/machine/{device}.json`."""

    device: str
    gemm_flops: Mapping[str, float | None]  # operations per second, by precision
    bandwidth_bytes_per_s: float


class ClassAccuracy(TypedDict):
    """The k-NN top-1 of one class in %, and what it lost, in points."""

    wnid: str
    queries: int
    knn_top1: float
    knn_top1_fp32: float
    drop: float
    drop_ci_low: float
    drop_ci_high: float


class Accuracy(TypedDict):
    """`results/accuracy/{variant}.json`."""

    variant: str
    per_class: Sequence[ClassAccuracy]  # those that lose most first
    saturation: Saturation | None  # of int8 models of other runtimes


def read_timings(paths: Iterable[str | Path]) -> list[Timing]:
    """Return the timings, with all their calls; those that were refused are left out."""
    return [record for record in map(read_json, paths) if "unsupported" not in record]
