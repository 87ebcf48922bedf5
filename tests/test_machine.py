"""The description of the machine, and the limits on threads and devices."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dinoquant import machine
from dinoquant.errors import UserError

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimddp i8mm bf16\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"


@pytest.fixture
def one_processor() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity masks")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_processor")
def test_threads_come_from_the_affinity_mask() -> None:
    assert machine.compute_threads() == 1
    assert machine.resolve_threads("auto", "latency.threads") == 1
    assert len(machine.describe()["affinity"]) == 1


@pytest.mark.usefixtures("one_processor")
def test_more_threads_than_the_mask_allows_is_a_readable_error() -> None:
    with pytest.raises(UserError, match=r"latency\.threads is 2, .* only 1 processor"):
        machine.resolve_threads(2, "latency.threads")


def test_threads_without_affinity_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.compute_threads() == 3
    assert machine.resolve_threads(2, "latency.threads") == 2
    assert machine.describe()["affinity"] is None


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
