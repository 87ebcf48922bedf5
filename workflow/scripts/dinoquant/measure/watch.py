"""Watch what else the machine does while something is timed: other processes, stolen time, frequency, throttling.

Reads Linux's /proc and /sys (proc(5), the kernel's Documentation/admin-guide/pm/cpufreq.rst); elsewhere nothing is
seen, and that is said. A look costs well below a millisecond; processes are listed at the beginning and at the end
only. Needs no PyTorch.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

# Above these a timing is called noisy; `tests/bench/repeatability.py` shows quiet and disturbed runs on either side.
# Processors that other processes use, on average. Snakemake itself takes some while it waits: see profiles/default.
MOST_FOREIGN = 0.2
MOST_STEAL = 0.05  # processors that the hypervisor gives to other guests, on average
MOST_FREQUENCY_DROP = 0.2  # of the highest frequency seen
# A probe is slow if it takes this many times as long as when the machine is at its best. On a virtual machine with two
# processors, work that both share took 1.9 times as long for minutes on end, which nothing in the guest shows (all of
# its processes were slow at the same time, pinned to processors or not, and work on one processor was as fast as ever),
# and which slows int8 more than fp32; otherwise 1.15 at most.
SLOW = 1.3
PROBES_PER_LOOK = 9
NAMED_PROCESSES = 3
NAMED_FROM = 0.02  # processors


class Process(NamedTuple):
    """A line of /proc/PID/stat: name, parent, and seconds of processor time so far."""

    name: str
    parent: int
    seconds: float


class Usage(NamedTuple):
    """Seconds that some processors have worked, and have been given to other guests, since the system started."""

    busy: float
    steal: float


def parse_usage(text: str, processors: Collection[int], ticks: int) -> Usage:
    """Add up the lines of ``processors`` in /proc/stat, whose unit is 1 / ``ticks`` seconds."""
    busy = steal = 0
    for line in text.splitlines():
        if found := re.match(r"cpu(\d+) (.*)", line):
            # Guests' time (the last two) is within user and nice; idle and iowait are not work.
            user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, found[2].split()[:8])
            if int(found[1]) in processors:
                busy += user + nice + system + irq + softirq
                steal += stolen
    return Usage(busy / ticks, steal / ticks)


def parse_process(text: str, ticks: int) -> Process:
    """Read /proc/PID/stat; the name stands in brackets and may hold any character."""
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Process(name, int(fields[1]), (int(fields[11]) + int(fields[12])) / ticks)


def family(processes: Mapping[int, Process], root: int) -> set[int]:
    """Return ``root`` and all of its descendants."""
    members = {root}
    while more := {pid for pid, process in processes.items() if process.parent in members} - members:
        members |= more
    return members


@dataclass(frozen=True)
class State:
    """The machine at one moment; None is what could not be read."""

    moment: float  # monotonic seconds
    usage: Usage | None
    processes: Mapping[int, Process]
    load: float | None
    throttles: int | None


def compare(before: State, after: State, own: int, frequencies: Sequence[float]) -> dict[str, Any]:
    """Return what happened between two states, for JSON: averages in processors, frequencies in MHz.

    ``own`` is the id of the process that measures: its time and its children's is not foreign.
    """
    seconds = after.moment - before.moment
    if before.usage is None or after.usage is None:
        return {"seconds": seconds, "unseen": "this system has no /proc/stat"}
    used = {
        pid: process.seconds - before.processes[pid].seconds if pid in before.processes else process.seconds
        for pid, process in after.processes.items()
    }
    ours = family(after.processes, own)
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


def disturbances(seen: Mapping[str, Any], processors: int) -> list[str]:
    """Return what was too much in what a watch has seen, in words with numbers."""
    found = []
    if seen.get("foreign", 0.0) > MOST_FOREIGN:
        names = ", ".join(f"{p['name']} {p['pid']}: {p['processors']:.2f}" for p in seen["foreign_processes"])
        found.append(
            f"other processes used {seen['foreign']:.2f} of {processors} processors"
            + (f" ({names})" if names else " (none that is visible here)")
        )
    if seen.get("steal", 0.0) > MOST_STEAL:
        found.append(f"the hypervisor took {seen['steal']:.2f} of {processors} processors")
    if seen.get("frequency_mhz"):
        low, high = seen["frequency_mhz"]
        if low < (1 - MOST_FREQUENCY_DROP) * high:
            found.append(f"the clock frequency varied from {low:.0f} to {high:.0f} MHz")
    if seen.get("throttles"):
        found.append(f"the processors were throttled {seen['throttles']} times")
    return found


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what several watches, one after the other, have seen together; ``probe_ms`` stays a list for each."""
    seconds = sum(part["seconds"] for part in parts)
    merged = {"seconds": seconds, "probe_ms": [part["probe_ms"] for part in parts]}
    if unseen := next((part["unseen"] for part in parts if "unseen" in part), None):
        return merged | {"unseen": unseen}
    used: Counter[tuple[str, int]] = Counter()
    for part in parts:
        for process in part["foreign_processes"]:
            used[process["name"], process["pid"]] += process["processors"] * part["seconds"] / seconds
    frequencies = [frequency for part in parts for frequency in part["frequency_mhz"] or ()]
    throttles = [part["throttles"] for part in parts]
    return merged | {
        "foreign": sum(part["foreign"] * part["seconds"] for part in parts) / seconds,
        "foreign_processes": [
            {"name": name, "pid": pid, "processors": processors}
            for (name, pid), processors in used.most_common(NAMED_PROCESSES)
        ],
        "steal": sum(part["steal"] * part["seconds"] for part in parts) / seconds,
        "load_average": [parts[0]["load_average"][0], parts[-1]["load_average"][1]],
        "frequency_mhz": [min(frequencies), max(frequencies)] if frequencies else None,
        "throttles": None if None in throttles else sum(throttles),
    }


def full_speed(probe_ms: Sequence[Sequence[float]]) -> list[list[bool]]:
    """Say which rounds the machine was at its best for: by the looks before and after, one more than there are rounds.

    A list for each watch; the best is what one look in ten is faster than.
    """
    best = quantile([probe for probes in probe_ms for probe in probes], 0.1)
    return [[max(around) <= SLOW * best for around in pairwise(probes)] for probes in probe_ms]


def slower(probe: float, best: float) -> str | None:
    """Return what to say of a timing whose median probe took ``probe`` ms, where that of another one took ``best``.

    A machine that was slow all the time shows only beside other timings on it.
    """
    if probe <= SLOW * best:
        return None
    return f"the machine was slower than for other rows: the same piece of work took {probe:.2f}, not {best:.2f} ms"


def quantile(values: Sequence[float], level: float) -> float:
    """Return the nearest of ``values`` to their quantile ``level``."""
    return sorted(values)[round(level * (len(values) - 1))]


class Watch:
    """Look at the machine before and after timed calls; `report` says what happened since the watch was made.

    ``probe`` does a fixed, short piece of work with as many threads as what is timed, and returns its milliseconds.
    """

    def __init__(
        self,
        probe: Callable[[], float] | None = None,
        proc: Path = Path("/proc"),
        system: Path = Path("/sys/devices/system/cpu"),
    ) -> None:
        self._probe, self._proc, self._system = probe, proc, system
        everything = set(range(os.cpu_count() or 1))
        self._processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else everything
        self._ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._frequencies: list[float] = []
        self._probes: list[float] = []
        self._before = self._state()

    def look(self) -> None:
        """Note the clock frequency of the fastest processor (others may be idle and slow), and run the probe."""
        if frequencies := self._read_frequencies():
            self._frequencies.append(max(frequencies))
        if self._probe:
            self._probes.append(quantile([self._probe() for _ in range(PROBES_PER_LOOK)], 0.5))

    def report(self) -> dict[str, Any]:
        """Return what was seen, for JSON, with the probe's median ms at each look."""
        return {**compare(self._before, self._state(), os.getpid(), self._frequencies), "probe_ms": self._probes}

    def _state(self) -> State:
        usage, load = _read(self._proc / "stat"), _read(self._proc / "loadavg")
        return State(
            moment=time.monotonic(),
            usage=parse_usage(usage, self._processors, self._ticks) if usage else None,
            processes=dict(self._read_processes()),
            load=float(load.split()[0]) if load else None,
            throttles=self._read_throttles(),
        )

    def _read_processes(self) -> Iterator[tuple[int, Process]]:
        for path in self._proc.glob("[0-9]*/stat"):
            if text := _read(path):  # None if it has ended meanwhile
                yield int(path.parent.name), parse_process(text, self._ticks)

    def _read_frequencies(self) -> list[float]:
        """Return the frequencies in MHz; a virtual machine often states the nominal one, whatever it gets."""
        files = [self._system / f"cpu{n}" / "cpufreq" / "scaling_cur_freq" for n in self._processors]
        if kilohertz := [int(text) for text in map(_read, files) if text]:
            return [value / 1e3 for value in kilohertz]
        return [
            float(value) for value in re.findall(r"^cpu MHz\s*: ([\d.]+)", _read(self._proc / "cpuinfo") or "", re.M)
        ]

    def _read_throttles(self) -> int | None:
        files = [file for n in self._processors for file in (self._system / f"cpu{n}").glob("thermal_throttle/*_count")]
        counts = [int(text) for text in map(_read, files) if text]
        return sum(counts) if counts else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
