"""Watch what else the machine does while something is timed: other processes, stolen time, frequency, throttling.

Processes and processor times are psutil's. Frequency and throttling come from /sys (the kernel's
Documentation/admin-guide/pm/cpufreq.rst): psutil knows nothing of throttling, and for the frequency it reads three
files of every processor and all of /proc/cpuinfo, which takes too long between rounds. An observation costs well below
a millisecond; processes are listed at the beginning and at the end only. Needs no PyTorch.
"""

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import psutil

from dinoquant.machine import PROCESSORS, throttled_periods

# A probe is slow if it takes this many times as long as when the machine is at its best. On a virtual machine with two
# processors, work that both share took 1.9 times as long for minutes on end, which nothing in the guest shows (all of
# its processes were slow at the same time, pinned to processors or not, and work on one processor was as fast as ever),
# and which slows int8 more than fp32; otherwise 1.15 at most.
SLOW = 1.3
FEWEST_ROUNDS = 6  # that make an interval
PROBES_PER_OBSERVATION = 9
NAMED_PROCESSES = 3
NAMED_FROM = 0.02  # processors
WORK = (
    "user",
    "nice",
    "system",
    "irq",
    "softirq",
)  # idle and iowait are not work; guests' time is within user and nice


class Process(NamedTuple):
    """A process by its name, and its seconds of processor time so far."""

    name: str
    seconds: float


class Usage(NamedTuple):
    """Seconds that some processors have worked, and have been given to other guests, since the system started."""

    busy: float
    steal: float


class ForeignProcess(TypedDict):
    """A process beside the timing, and how many processors it used on average."""

    name: str
    pid: int
    processors: float


class MachineActivity(TypedDict):
    """What happened over some seconds: averages in processors, frequencies in MHz; or ``unseen``: why none is known."""

    seconds: float
    unseen: NotRequired[str]
    foreign: NotRequired[float]
    foreign_processes: NotRequired[list[ForeignProcess]]
    steal: NotRequired[float]
    load_average: NotRequired[list[float | None]]  # at the beginning and at the end
    frequency_mhz: NotRequired[list[float] | None]  # lowest and highest
    throttles: NotRequired[int | None]


class Activity(MachineActivity):
    """The same beside the rounds of one process, with the probe's median ms at each observation.

    ``load`` is how many processors others had between one observation and the next: other processes, other guests.
    """

    probe_ms: list[float]
    load: list[float]


class Activities(MachineActivity):
    """The same beside all of a timing's processes, one after the other."""

    probe_ms: list[list[float]]
    load: list[list[float]]


@dataclass(frozen=True)
class MachineState:
    """The machine at one moment; None is what could not be read."""

    moment: float  # monotonic seconds
    usage: Usage | None
    processes: Mapping[int, Process]
    load: float | None
    throttles: int | None


def activity(
    before: MachineState, after: MachineState, ours: Collection[int], frequencies: Sequence[float]
) -> MachineActivity:
    """Return what happened between two states; what the processes with the ids ``ours`` did is not foreign."""
    seconds = after.moment - before.moment
    if before.usage is None or after.usage is None:
        return {"seconds": seconds, "unseen": "this system does not tell what its processors do"}
    used = {
        pid: process.seconds - before.processes[pid].seconds if pid in before.processes else process.seconds
        for pid, process in after.processes.items()
    }
    foreign = after.usage.busy - before.usage.busy - sum(used.get(pid, 0.0) for pid in ours)
    others = sorted(((time, pid) for pid, time in used.items() if pid not in ours), reverse=True)
    return {
        "seconds": seconds,
        "foreign": max(0.0, foreign / seconds),
        "foreign_processes": [
            {"name": after.processes[pid].name, "pid": pid, "processors": time / seconds}
            for time, pid in others[:NAMED_PROCESSES]
            if time / seconds >= NAMED_FROM
        ],
        "steal": (after.usage.steal - before.usage.steal) / seconds,
        "load_average": [before.load, after.load],
        "frequency_mhz": [min(frequencies), max(frequencies)] if frequencies else None,
        "throttles": None
        if before.throttles is None or after.throttles is None
        else after.throttles - before.throttles,
    }


def merge(parts: Sequence[Activity]) -> Activities:
    """Return what happened beside several processes of a timing together; what is a list stays one for each."""
    seconds = sum(part["seconds"] for part in parts)
    probes, loads = [part["probe_ms"] for part in parts], [part["load"] for part in parts]
    if unseen := next((part["unseen"] for part in parts if "unseen" in part), None):
        return {"seconds": seconds, "probe_ms": probes, "load": loads, "unseen": unseen}
    used: dict[tuple[str, int], float] = defaultdict(float)
    for part in parts:
        for process in part["foreign_processes"]:
            used[process["name"], process["pid"]] += process["processors"] * part["seconds"] / seconds
    frequencies = [frequency for part in parts for frequency in part["frequency_mhz"] or ()]
    throttles = [part["throttles"] for part in parts]
    known_throttles = [count for count in throttles if count is not None]
    return {
        "seconds": seconds,
        "probe_ms": probes,
        "load": loads,
        "foreign": sum(part["foreign"] * part["seconds"] for part in parts) / seconds,
        "foreign_processes": [
            {"name": name, "pid": pid, "processors": processors}
            for (name, pid), processors in sorted(used.items(), key=lambda item: -item[1])[:NAMED_PROCESSES]
        ],
        "steal": sum(part["steal"] * part["seconds"] for part in parts) / seconds,
        "load_average": [parts[0]["load_average"][0], parts[-1]["load_average"][1]],
        "frequency_mhz": [min(frequencies), max(frequencies)] if frequencies else None,
        "throttles": None if None in throttles else sum(known_throttles),
    }


def full_speed(probe_ms: Sequence[Sequence[float]]) -> list[list[bool]]:
    """Return which rounds the machine was at its best for: by the probes before and after, one more than rounds.

    A list for each process; the best is what one probe in ten is faster than. All rounds count where these are less
    than half, or fewer than six.
    """
    best = quantile([probe for probes in probe_ms for probe in probes], 0.1)
    fast = [[max(around) <= SLOW * best for around in pairwise(probes)] for probes in probe_ms]
    if sum(map(sum, fast)) < max(sum(map(len, fast)) / 2, FEWEST_ROUNDS):
        return [[True] * len(rounds) for rounds in fast]
    return fast


def quantile(values: Sequence[float], level: float) -> float:
    """Return the nearest of ``values`` to their quantile ``level``."""
    return sorted(values)[round(level * (len(values) - 1))]


class MachineWatch:
    """Observe the machine before and after timed calls; `report` says what happened since the watch was made.

    ``probe`` does a fixed, short piece of work with as many threads as what is timed, and returns its milliseconds.
    """

    def __init__(
        self, probe: Callable[[], float] | None = None, system: Path = Path("/sys/devices/system/cpu")
    ) -> None:
        self._probe, self._system = probe, system
        everything = set(range(os.cpu_count() or 1))
        self._processors = everything if PROCESSORS is None else PROCESSORS
        self._frequencies: list[float] = []
        self.probe_ms: list[float] = []  # the median of each observation
        self._own = own_processes()  # looked up once, as that takes milliseconds
        self._others: list[tuple[float, float]] = []
        self._before = self._state()

    def observe(self) -> None:
        """Note the clock frequency of the fastest processor (others may be idle and slow), and run the probe.

        Before the probe, note how long the processors have worked for others.
        """
        if self._before.usage and (busy := usage(self._processors)):
            own = sum(time.user + time.system for time in (process.cpu_times() for process in self._own))
            self._others.append((time.monotonic(), busy.busy + busy.steal - own))
        if frequencies := self._read_frequencies():
            self._frequencies.append(max(frequencies))
        if self._probe:
            self.probe_ms.append(quantile([self._probe() for _ in range(PROBES_PER_OBSERVATION)], 0.5))

    def report(self) -> Activity:
        """Return what happened."""
        ours = [process.pid for process in own_processes()] if self._before.usage else ()
        load = [max(0.0, (late - early) / (end - start)) for (start, early), (end, late) in pairwise(self._others)]
        during = activity(self._before, self._state(), ours, self._frequencies)
        return {**during, "probe_ms": self.probe_ms, "load": load}

    def _state(self) -> MachineState:
        busy = usage(self._processors)
        return MachineState(
            moment=time.monotonic(),
            usage=busy,
            processes=running_processes() if busy else {},
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            throttles=self._read_throttles(),
        )

    def _read_frequencies(self) -> list[float]:
        """Return the frequencies in MHz; a virtual machine often states the nominal one, whatever it gets."""
        files = [self._system / f"cpu{n}" / "cpufreq" / "scaling_cur_freq" for n in self._processors]
        if kilohertz := [int(text) for text in map(_read, files) if text]:
            return [value / 1e3 for value in kilohertz]
        cpuinfo = _read(Path(psutil.PROCFS_PATH, "cpuinfo")) or ""
        return [float(value) for value in re.findall(r"^cpu MHz\s*: ([\d.]+)", cpuinfo, re.M)]

    def _read_throttles(self) -> int | None:
        """Return how often so far processors were too hot, or the quota of a control group was used up."""
        files = [file for n in self._processors for file in (self._system / f"cpu{n}").glob("thermal_throttle/*_count")]
        counts = [int(text) for text in map(_read, files) if text]
        if (periods := throttled_periods()) is not None:
            counts.append(periods)
        return sum(counts) if counts else None


def usage(processors: Collection[int]) -> Usage | None:
    """Return what the processors with these numbers have done so far; None where the system does not tell."""
    try:
        times = [each for number, each in enumerate(psutil.cpu_times(percpu=True)) if number in processors]
    except OSError:
        return None
    busy = sum(getattr(each, kind, 0.0) for each in times for kind in WORK)
    return Usage(busy, sum(getattr(each, "steal", 0.0) for each in times))


def running_processes() -> dict[int, Process]:
    """Return the processes that are visible here, by their ids."""
    listed = psutil.process_iter(["name", "cpu_times"])
    return {
        process.pid: Process(process.info["name"], process.info["cpu_times"].user + process.info["cpu_times"].system)
        for process in listed
        if process.info["cpu_times"]  # not if it may not be looked at
    }


def own_processes() -> list[psutil.Process]:
    """Return this process and all that descend from it."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
