"""What is seen of the machine during a timing, in made-up contents of /proc and /sys."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dinoquant.measure import watch
from dinoquant.measure.watch import (
    MachineState,
    MachineWatch,
    Process,
    Usage,
    activity,
    full_speed,
    merge,
)

STAT = """cpu  9999 9999 9999 9999 9999 9999 9999 9999 0 0
cpu0 100 20 30 5000 70 5 6 40 0 0
cpu1 1000 0 0 0 0 0 0 200 1000 0
cpu2 7 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc with three processors, and no processes."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "stat").write_text(STAT)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder))
    monkeypatch.setattr(watch, "running_processes", dict)
    monkeypatch.setattr(watch, "own_processes", list)
    return folder


def test_usage_is_that_of_the_processors_asked_for(proc: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert watch.usage({0}) == pytest.approx((161 / ticks, 40 / ticks))
    assert watch.usage({0, 1}) == pytest.approx((1161 / ticks, 240 / ticks))


def test_running_processes_have_names_and_times() -> None:
    start = time.process_time()
    while time.process_time() < start + 0.05:  # so that the clock of the system has ticked
        pass
    own = watch.running_processes()[os.getpid()]
    assert own.name
    assert own.seconds > 0


def state(
    moment: float, busy: float, steal: float, seconds: dict[int, float], throttles: int | None = None
) -> MachineState:
    names = {10: "me", 11: "my worker", 20: "backup", 21: "shell"}
    processes = {pid: Process(names[pid], used) for pid, used in seconds.items()}
    return MachineState(moment, Usage(busy, steal), processes, 0.5, throttles)


def test_a_quiet_machine_is_not_disturbed() -> None:
    before = state(0.0, 100.0, 5.0, {10: 3.0, 11: 0.0, 20: 9.0})
    after = state(10.0, 120.3, 5.1, {10: 13.0, 11: 10.0, 20: 9.1})
    during = activity(before, after, {10, 11}, [3000.0, 2900.0])
    assert during["foreign"] == pytest.approx(0.03)
    assert during["steal"] == pytest.approx(0.01)
    assert during["foreign_processes"] == []
    assert during["frequency_mhz"] == [2900.0, 3000.0]


def test_other_processes_are_named_with_what_they_used() -> None:
    before = state(0.0, 100.0, 5.0, {10: 3.0, 20: 9.0})
    after = state(10.0, 120.0, 5.0, {10: 14.0, 20: 17.0, 21: 1.0})  # a shell that came later
    during = activity(before, after, {10, 11}, [])
    assert during["foreign"] == pytest.approx(0.9)
    assert [(p["name"], p["pid"]) for p in during["foreign_processes"]] == [("backup", 20), ("shell", 21)]
    assert [p["processors"] for p in during["foreign_processes"]] == pytest.approx([0.8, 0.1])


def test_children_are_not_foreign(tmp_path: Path) -> None:
    machine = MachineWatch(None, tmp_path / "sys")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        while sum(psutil.Process(child.pid).cpu_times()[:2]) < 0.2:  # user and system
            time.sleep(0.05)
        report = machine.report()
        child.kill()
    assert child.pid not in [process["pid"] for process in report["foreign_processes"]]


def test_processes_outside_the_container_count_without_a_name() -> None:
    during = activity(state(0.0, 0.0, 0.0, {10: 0.0}), state(10.0, 15.0, 0.0, {10: 10.0}), {10, 11}, [])
    assert (during["foreign"], during["foreign_processes"]) == (pytest.approx(0.5), [])


def test_steal_and_throttling_are_counted() -> None:
    before, after = state(0.0, 0.0, 0.0, {10: 0.0}, throttles=7), state(10.0, 10.0, 2.0, {10: 10.0}, throttles=9)
    during = activity(before, after, {10, 11}, [3000.0, 2000.0])
    assert (during["steal"], during["frequency_mhz"], during["throttles"]) == (0.2, [2000.0, 3000.0], 2)


def test_what_others_had_is_known_for_every_round(proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors are 30 and 10 s busy between observations, 5 s of which are stolen; this process has none."""
    seconds, moments = iter([(100.0, 5.0)] * 2 + [(125.0, 10.0), (135.0, 10.0)]), iter([0.0, 0.0, 20.0, 40.0])
    monkeypatch.setattr(watch, "usage", lambda processors: Usage(*next(seconds, (135.0, 10.0))))
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(moments, 41.0))
    machine = MachineWatch(None, tmp_path / "sys")
    for _ in range(3):
        machine.observe()
    assert machine.report()["load"] == [1.5, 0.5]


def fake_system(folder: Path, megahertz: int, throttled: int) -> None:
    for n in (0, 1):
        cpu = folder / f"cpu{n}"
        (cpu / "cpufreq").mkdir(parents=True, exist_ok=True)
        (cpu / "thermal_throttle").mkdir(exist_ok=True)
        (cpu / "cpufreq/scaling_cur_freq").write_text(f"{1000 * megahertz // (1 + n)}\n")
        (cpu / "thermal_throttle/core_throttle_count").write_text(f"{throttled}\n")


def test_frequency_and_throttling_come_from_sys(proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PROCESSORS", {0, 1})
    monkeypatch.setattr(watch, "throttled_periods", iter((7, 10)).__next__)
    fake_system(tmp_path / "sys", 3000, 5)
    machine = MachineWatch(None, tmp_path / "sys")
    machine.observe()
    fake_system(tmp_path / "sys", 2000, 6)
    machine.observe()
    report = machine.report()
    assert report["frequency_mhz"] == [2000.0, 3000.0]  # of the faster processor
    assert report["throttles"] == 2 + 3, "two processors too hot once, and three periods over the quota"


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ([[0.14, 0.16, 0.15]], [[True, True]]),
        ([[0.14, 0.9] + [0.14] * 7], [[False, False] + [True] * 6]),
        ([[0.14] * 8, [0.27] * 3], [[True] * 7, [False, False]]),
        ([[0.14] * 8, [0.27] * 9], [[True] * 7, [True] * 8]),  # most are slow
        ([[0.14] * 5 + [0.27] * 3], [[True] * 7]),  # fewer than six are not
        ([[0.27] * 3], [[True, True]]),  # nothing to compare it with
    ],
)
def test_the_probe_tells_the_rounds_at_full_speed(probes: list[list[float]], expected: list[list[bool]]) -> None:
    assert full_speed(probes) == expected


def test_watches_are_added_up_by_their_length() -> None:
    backup = {"name": "backup", "pid": 20, "processors": 0.8}
    quiet = {
        "seconds": 3.0,
        "foreign": 0.0,
        "foreign_processes": [],
        "steal": 0.0,
        "load_average": [0.1, 0.2],
        "frequency_mhz": [2900.0, 3000.0],
        "throttles": 1,
        "probe_ms": [0.1, 0.2],
        "load": [0.5],
    }
    busy = quiet | {
        "seconds": 1.0,
        "foreign": 0.8,
        "foreign_processes": [backup],
        "steal": 0.4,
        "load_average": [0.9, 1.5],
        "frequency_mhz": [2000.0, 2500.0],
        "throttles": 2,
    }
    assert merge([quiet, busy]) == {
        "seconds": 4.0,
        "foreign": pytest.approx(0.2),
        "foreign_processes": [backup | {"processors": pytest.approx(0.2)}],
        "steal": pytest.approx(0.1),
        "load_average": [0.1, 1.5],
        "frequency_mhz": [2000.0, 3000.0],
        "throttles": 3,
        "probe_ms": [[0.1, 0.2], [0.1, 0.2]],
        "load": [[0.5], [0.5]],
    }
    assert merge([quiet | {"frequency_mhz": None, "throttles": None}])["frequency_mhz"] is None
    assert merge([quiet, quiet | {"throttles": None}])["throttles"] is None


def test_the_probe_runs_at_every_observation(tmp_path: Path) -> None:
    times = iter([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] + [2.0] * 9)
    machine = MachineWatch(lambda: next(times), tmp_path / "sys")
    machine.observe()
    machine.observe()
    report = machine.report()
    assert report["probe_ms"] == [1.0, 2.0]


def test_without_proc_nothing_is_claimed(proc: Path, tmp_path: Path) -> None:
    (proc / "stat").unlink()
    machine = MachineWatch(None, tmp_path / "sys")
    machine.observe()
    report = machine.report()
    assert report["unseen"] == "this system does not tell what its processors do"
    together = merge([report, report])
    assert together["unseen"] == report["unseen"]
    assert report["load"] == []


def test_the_real_machine_can_be_read() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("no /proc here")
    machine = MachineWatch()
    machine.observe()
    report = machine.report()
    assert report["foreign"] >= 0
    assert report["load_average"][0] >= 0
