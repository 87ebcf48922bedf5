"""What is seen of the machine during a timing, in made-up contents of /proc and /sys."""

import os
from pathlib import Path

import pytest

from dinoquant.measure import watch
from dinoquant.measure.watch import (
    Process,
    State,
    Usage,
    Watch,
    compare,
    disturbances,
    family,
    full_speed,
    merge,
    parse_process,
    parse_usage,
    slower,
)

STAT = """cpu  9999 9999 9999 9999 9999 9999 9999 9999 0 0
cpu0 100 20 30 5000 70 5 6 40 0 0
cpu1 1000 0 0 0 0 0 0 200 1000 0
cpu10 7 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


def test_usage_is_that_of_the_processors_asked_for() -> None:
    assert parse_usage(STAT, {0}, 100) == Usage(busy=1.61, steal=0.4)
    assert parse_usage(STAT, {0, 1}, 100) == Usage(busy=11.61, steal=2.4)


def test_the_name_of_a_process_may_hold_anything() -> None:
    fields = "S 7 1 1 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 1 0 100"
    assert parse_process(f"42 (a (b) c) {fields}", 100) == Process("a (b) c", 7, 3.0)


def test_a_family_is_all_that_descends() -> None:
    processes = {pid: Process("p", parent, 0.0) for pid, parent in {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20}.items()}
    assert family(processes, 10) == {10, 11, 12}
    assert family({}, 10) == {10}


def state(moment: float, busy: float, steal: float, seconds: dict[int, float], throttles: int | None = None) -> State:
    names = {10: ("me", 1), 11: ("my worker", 10), 20: ("backup", 1), 21: ("shell", 1)}
    processes = {pid: Process(*names[pid], used) for pid, used in seconds.items()}
    return State(moment, Usage(busy, steal), processes, 0.5, throttles)


def test_a_quiet_machine_is_not_disturbed() -> None:
    before = state(0.0, 100.0, 5.0, {10: 3.0, 11: 0.0, 20: 9.0})
    after = state(10.0, 120.3, 5.1, {10: 13.0, 11: 10.0, 20: 9.1})
    seen = compare(before, after, 10, [3000.0, 2900.0])
    assert seen["foreign"] == pytest.approx(0.03)
    assert seen["steal"] == pytest.approx(0.01)
    assert seen["foreign_processes"] == []
    assert seen["frequency_mhz"] == [2900.0, 3000.0]
    assert disturbances(seen, 2) == []


def test_other_processes_are_named_with_what_they_used() -> None:
    before = state(0.0, 100.0, 5.0, {10: 3.0, 20: 9.0})
    after = state(10.0, 120.0, 5.0, {10: 14.0, 20: 17.0, 21: 1.0})  # a shell that came later
    seen = compare(before, after, 10, [])
    assert seen["foreign"] == pytest.approx(0.9)
    assert [(p["name"], p["pid"]) for p in seen["foreign_processes"]] == [("backup", 20), ("shell", 21)]
    assert disturbances(seen, 2) == ["other processes used 0.90 of 2 processors (backup 20: 0.80, shell 21: 0.10)"]


def test_processes_outside_the_container_count_without_a_name() -> None:
    seen = compare(state(0.0, 0.0, 0.0, {10: 0.0}), state(10.0, 15.0, 0.0, {10: 10.0}), 10, [])
    assert disturbances(seen, 2) == ["other processes used 0.50 of 2 processors (none that is visible here)"]


def test_what_else_disturbs() -> None:
    before, after = state(0.0, 0.0, 0.0, {10: 0.0}, throttles=7), state(10.0, 10.0, 2.0, {10: 10.0}, throttles=9)
    assert disturbances(compare(before, after, 10, [3000.0, 2000.0]), 4) == [
        "the hypervisor took 0.20 of 4 processors",
        "the clock frequency varied from 2000 to 3000 MHz",
        "the processors were throttled 2 times",
    ]


def fake_system(folder: Path, megahertz: int, throttled: int) -> None:
    for n in (0, 1):
        cpu = folder / f"cpu{n}"
        (cpu / "cpufreq").mkdir(parents=True, exist_ok=True)
        (cpu / "thermal_throttle").mkdir(exist_ok=True)
        (cpu / "cpufreq/scaling_cur_freq").write_text(f"{1000 * megahertz // (1 + n)}\n")
        (cpu / "thermal_throttle/core_throttle_count").write_text(f"{throttled}\n")


def test_frequency_and_throttling_come_from_sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(STAT)
    fake_system(tmp_path / "sys", 3000, 5)
    seen = Watch(None, tmp_path / "proc", tmp_path / "sys")
    seen.look()
    fake_system(tmp_path / "sys", 2000, 6)
    seen.look()
    report = seen.report()
    assert report["frequency_mhz"] == [2000.0, 3000.0]  # of the faster processor
    assert report["throttles"] == 2
    assert report["load_average"] == [None, None]
    assert len(disturbances(report, 2)) == 2


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ([[0.14, 0.16, 0.15]], [[True, True]]),
        ([[0.14, 0.9, 0.14, 0.15]], [[False, False, True]]),
        ([[0.14] * 3, [0.27] * 3], [[True, True], [False, False]]),
        ([[0.27] * 3, [0.14, 0.27, 0.14]], [[False, False], [False, False]]),
        ([[0.27] * 3], [[True, True]]),  # nothing to compare it with: see `slower`
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
    }
    assert merge([quiet | {"frequency_mhz": None, "throttles": None}])["frequency_mhz"] is None
    assert merge([quiet, quiet | {"throttles": None}])["throttles"] is None


def test_the_probe_runs_at_every_look(tmp_path: Path) -> None:
    times = iter([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] + [2.0] * 9)
    seen = Watch(lambda: next(times), tmp_path / "proc", tmp_path / "sys")
    seen.look()
    seen.look()
    report = seen.report()
    assert report["probe_ms"] == [1.0, 2.0]


def test_slower_than_other_rows() -> None:
    assert slower(0.15, 0.14) is None
    assert "took 0.27, not 0.14 ms" in (slower(0.27, 0.14) or "")


def test_without_proc_nothing_is_claimed(tmp_path: Path) -> None:
    seen = Watch(None, tmp_path / "proc", tmp_path / "sys")
    seen.look()
    report = seen.report()
    assert report["unseen"] == "this system has no /proc/stat"
    together = merge([report, report])
    assert together["unseen"] == "this system has no /proc/stat"
    assert disturbances(together, 2) == []


def test_the_real_machine_can_be_read() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("no /proc here")
    seen = watch.Watch()
    seen.look()
    report = seen.report()
    assert report["foreign"] >= 0
    assert report["load_average"][0] >= 0
