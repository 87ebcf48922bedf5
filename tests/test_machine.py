"""The description of the machine, and the limits on threads and devices."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinoquant import machine
from dinoquant.errors import UserError

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimddp i8mm bf16\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"


TWO = pytest.mark.skipif((machine.PROCESSORS is None) or len(machine.PROCESSORS) < 2, reason="takes two processors")


def in_python(program: str, **variables: str) -> Any:
    """Return what a program prints as JSON, run by a Python of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return json.loads(subprocess.check_output([sys.executable, "-c", program], env=environment))


def test_threads_come_from_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(machine, "PROCESSORS", frozenset({7}))
    assert machine.compute_threads() == 1
    assert machine.resolve_threads("auto", "latency.threads") == 1
    assert machine.describe()["affinity"] == [7]
    with pytest.raises(UserError, match=r"latency\.threads is 2, .* only 1 processor\(s\) of [^(]*\. Set"):
        machine.resolve_threads(2, "latency.threads")


@pytest.mark.parametrize(("quota", "threads"), [(4.0, 3), (2.5, 2), (1.0, 1), (0.5, 1)])
def test_threads_come_from_the_quota_as_well(monkeypatch: pytest.MonkeyPatch, quota: float, threads: int) -> None:
    monkeypatch.setattr(machine, "PROCESSORS", frozenset({0, 1, 2}))
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.compute_threads() == threads
    assert machine.describe()["cpu_quota"] == quota
    with pytest.raises(UserError, match=rf"the quota of its control group is {quota:g}"):
        machine.resolve_threads(4, "latency.threads")


def test_threads_without_affinity_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROCESSORS", None)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.compute_threads() == 3
    assert machine.resolve_threads(2, "latency.threads") == 2
    assert machine.describe()["affinity"] is None
    machine.require_processors(3)


def control_groups(folder: Path, own: str, mounts: list[str], files: dict[str, str]) -> Path:
    """Write a process's files in /proc, and those of its control groups, whose mount points are below ``folder``."""
    (folder / "cgroup").write_text(own)
    (folder / "mountinfo").write_text("".join(f"{line.replace('@', str(folder))}\n" for line in mounts))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V2 = "30 24 0:26 / @/sys rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 24 0:27 / @/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
UNIFIED = "32 24 0:28 / @/unified rw - cgroup2 cgroup2 rw"
INSIDE_V1 = "31 24 0:27 /docker/abc @/cpu ro - cgroup cgroup rw,cpu"
PERIODS = "nr_periods 9\nnr_throttled {}\nthrottled_usec 7\n"


@pytest.mark.parametrize(
    ("own", "mounts", "files", "quota", "throttled"),
    [
        ("0::/a/b\n", [V2], {"sys/a/b/cpu.max": "max 100000\n", "sys/a/b/cpu.stat": "usage_usec 1\n"}, None, None),
        # The tightest of all levels counts, and each may throttle.
        (
            "0::/a/b\n",
            [V2],
            {
                "sys/a/b/cpu.max": "300000 100000\n",
                "sys/a/b/cpu.stat": PERIODS.format(2),
                "sys/a/cpu.max": "75000 50000\n",
                "sys/a/cpu.stat": PERIODS.format(3),
            },
            1.5,
            5,
        ),
        # Version 1, beside an empty version 2.
        (
            "4:memory:/m\n3:cpu,cpuacct:/job\n0::/\n",
            [V1, UNIFIED],
            {
                "cpu/job/cpu.cfs_quota_us": "50000\n",
                "cpu/job/cpu.cfs_period_us": "100000\n",
                "cpu/job/cpu.stat": PERIODS.format(1),
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "unified/cgroup.procs": "1\n",
            },
            0.5,
            1,
        ),
        # A container: the process is named as the host sees it, and only its own part of the hierarchy is mounted.
        (
            "3:cpu:/docker/abc\n",
            [INSIDE_V1],
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2.0,
            None,
        ),
        ("3:cpu:/elsewhere\n", [INSIDE_V1], {"cpu/cpu.cfs_quota_us": "200000\n"}, 2.0, None),
        ("0::/\n", [], {}, None, None),
    ],
)
def test_quota_of_control_groups(
    tmp_path: Path, own: str, mounts: list[str], files: dict[str, str], quota: float | None, throttled: int | None
) -> None:
    proc = control_groups(tmp_path, own, mounts, files)
    assert machine.cpu_quota(proc) == quota
    assert machine.throttled_periods(proc) == throttled


def test_no_control_groups(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path) is None
    assert machine.throttled_periods(tmp_path) is None


def test_variables_that_change_speed_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"OMP_PROC_BIND": "close", "ATEN_CPU_CAPABILITY": "avx2", "LD_PRELOAD": "", "TORCHINDUCTOR_FREEZING": "1"}
    for name, value in {**chosen, "HOME": "/root", "MY_OMP_": "1"}.items():
        monkeypatch.setenv(name, value)
    recorded = machine.describe()["environment"]
    assert {f"{name}={value}" for name, value in chosen.items()} <= set(recorded)
    assert not [entry for entry in recorded if entry.startswith(("HOME=", "MY_OMP_="))]


@TWO
@pytest.mark.parametrize("variable", ["OMP_PROC_BIND=true", "OMP_PLACES=cores", "GOMP_CPU_AFFINITY=0-1"])
def test_what_is_started_gets_the_processors_that_the_job_was_given(variable: str) -> None:
    """PyTorch's OpenMP binds the main thread, whose mask children inherit."""
    program = """
import json, os, subprocess, sys
from dinoquant import machine
import torch
child = [sys.executable, "-c", "import json, os; print(json.dumps(sorted(os.sched_getaffinity(0))))"]
inherited = json.loads(subprocess.check_output(child))
with machine.given_processors():
    given = json.loads(subprocess.check_output(child))
after = sorted(os.sched_getaffinity(0))
print(json.dumps([machine.describe()["affinity"], inherited, given, after, machine.compute_threads()]))
"""
    described, inherited, given, after, threads = in_python(program, **dict([variable.split("=")]))
    assert len(inherited) == 1, "nothing was bound: the test tests nothing"
    assert described == given == sorted(machine.PROCESSORS or ())
    assert after == inherited
    assert threads == machine.compute_threads()


@TWO
@pytest.mark.parametrize(("variable", "fine"), [("OMP_PROC_BIND=true", True), ("GOMP_CPU_AFFINITY=0", False)])
def test_threads_that_share_a_processor_are_refused(variable: str, fine: bool) -> None:
    program = """
import json
from dinoquant import machine
from dinoquant.errors import UserError
import torch
torch.set_num_threads(2)
torch.ones(1000, 1000).exp()
try:
    machine.require_processors(2)
    print(json.dumps(None))
except UserError as error:
    print(json.dumps(str(error)))
"""
    answer = in_python(program, **dict([variable.split("=")]))
    assert answer is None if fine else variable in answer


@pytest.mark.parametrize(
    ("text", "cpu", "expected"),
    [
        (X86, "Some CPU", ["avx2", "avx512f", "avx512_vnni", "amx_int8"]),
        (ARM, None, ["asimddp", "i8mm", "bf16"]),
        ("processor : 0\n", None, None),
    ],
)
def test_instruction_sets(tmp_path: Path, text: str, cpu: str | None, expected: list[str] | None) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    cpuinfo = machine._cpuinfo(path)
    assert cpuinfo.get("model name") == cpu
    assert machine._instruction_sets(cpuinfo) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ({"flags": "fpu sme smep avx2 vaes"}, ["avx2", "vaes"]),
        ({"Features": "fp asimd sme"}, ["asimd", "sme"]),
        ({}, None),
    ],
)
def test_compiled_for(cpuinfo: dict[str, str], expected: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What protects memory on x86 is called as what multiplies matrices on Arm."""
    monkeypatch.setattr(machine, "_cpuinfo", lambda: cpuinfo)
    assert machine.compiled_for() == expected


def test_no_cpuinfo_is_unknown_not_empty(tmp_path: Path) -> None:
    assert machine._instruction_sets(machine._cpuinfo(tmp_path / "absent")) is None


def test_description_is_json_and_knows_the_libraries() -> None:
    described = json.loads(json.dumps(machine.describe(), allow_nan=False))
    assert described["node"]
    assert described["torch"].startswith("2.")
    assert described["memory_gb"] is None or described["memory_gb"] > 0.1


def test_a_missing_library_is_none() -> None:
    assert machine._version("no-such-distribution-here") is None


def test_does_not_import_torch() -> None:
    code = "import sys, dinoquant.machine as m; m.describe(); m.cuda_devices(); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


class FakeDriver:
    """Stands in for libcuda: returns the given statuses and writes the number of devices."""

    def __init__(self, init: int, devices: int) -> None:
        self.init, self.devices = init, devices

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: SimpleNamespace) -> int:
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize(("init", "devices", "expected"), [(0, 2, 2), (0, 0, 0), (100, 2, 0)])
def test_cuda_devices_asks_the_driver(monkeypatch: pytest.MonkeyPatch, init: int, devices: int, expected: int) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(init, devices))
    assert machine.cuda_devices() == expected


def test_no_driver_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert machine.cuda_devices() == 0


def test_the_driver_agrees_with_torch() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    assert machine.cuda_devices() == torch.cuda.device_count()


def test_a_missing_gpu_is_a_readable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine.require_device("cpu")
    with pytest.raises(UserError, match="devices lists cuda"):
        machine.require_device("cuda")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_git_state(tmp_path: Path) -> None:
    workflow, elsewhere = tmp_path / "workflow", tmp_path / "results"
    for folder in (workflow, elsewhere):
        folder.mkdir()
    git(tmp_path, "init")
    (workflow / "rule").write_text("one")
    assert machine._git_state(workflow) is None, "no commit yet"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    (elsewhere / "summary.csv").write_text("changes outside the workflow do not count")
    state = machine._git_state(workflow)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (workflow / "rule").write_text("two")
    assert machine._git_state(workflow) == {"commit": state["commit"], "dirty": True}
    assert machine._git_state(elsewhere) is None, "a folder that the repository does not know"


def test_no_repository_is_unknown(tmp_path: Path) -> None:
    assert machine._git_state(tmp_path) is None
