"""Energy of an image from counters that wrap around, stand still, may not be read, or are not there."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from dinoquant import machine
from dinoquant.measure import energy
from dinoquant.measure.energy import EnergyCounter, Meter, Unreadable


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages, a part of one, the platform, and a second way to the first package, as the kernel has them."""
    for zone, name, value in [
        ("intel-rapl:0", "package-0", 1_000),
        ("intel-rapl:1", "package-1", 2_000),
        ("intel-rapl:0:0", "core", 500),
        ("intel-rapl:2", "psys", 9_000),
        ("intel-rapl-mmio:0", "package-0", 1_000),
    ]:
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    return tmp_path


def test_every_package_counts_once(powercap: Path) -> None:
    meter = energy.rapl(powercap)
    assert [counter.name for counter in meter.counters] == ["package-0", "package-1"]
    before = meter.read()
    (powercap / "intel-rapl:0/energy_uj").write_text("3001000\n")
    (powercap / "intel-rapl:1/energy_uj").write_text("1002000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(4.0)


def test_a_counter_that_starts_again_has_grown(powercap: Path) -> None:
    counter = powercap / "intel-rapl:0/energy_uj"
    counter.write_text("262142328850\n")  # a joule below its largest value
    meter = energy.rapl(powercap)
    before = meter.read()
    counter.write_text("500000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(1.5)


def test_no_domain_is_a_reason(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Unreadable, match=r"no RAPL domain of a processor package .* a virtual machine"):
            energy.rapl(root)


def test_what_may_not_be_read_is_a_reason(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = powercap / "intel-rapl:1/energy_uj"
    read_text = Path.read_text

    def as_a_user(path: Path, *args: Any, **kwargs: Any) -> str:
        if path == denied:  # chmod would stop nobody who runs the tests as root
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", as_a_user)
    with pytest.raises(Unreadable, match=r"intel-rapl:1/energy_uj may not be read: .* root"):
        energy.rapl(powercap)


def test_a_broken_counter_is_a_reason(powercap: Path) -> None:
    (powercap / "intel-rapl:0/energy_uj").write_text("")
    with pytest.raises(Unreadable, match="cannot be read: invalid literal"):
        energy.rapl(powercap)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only sleeping and the calls of a model move on."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return now


def call_of(clock: list[float], seconds: float) -> Callable[[], None]:
    def call() -> None:
        clock[0] += seconds

    return call


def test_energy_is_that_of_the_calls_and_idle_power_stands_beside_it(clock: list[float]) -> None:
    def watts() -> int:  # 10 W for the first 4 s, 30 W from then on
        return round(1e6 * (10 * min(clock[0], 4) + 30 * max(clock[0] - 4, 0)))

    found = energy.measure(
        Meter("RAPL", [EnergyCounter("package-0", watts)]), call_of(clock, 0.5), batch_size=8, seconds=4
    )
    assert found["images"] == 8 * 8
    assert found["energy_mj_per_image"] == pytest.approx(1e3 * 4 * 30 / 64)
    assert (found["idle_power_w"], found["power_w"]) == pytest.approx((10, 30))
    assert (found["energy_source"], found["energy_reason"], found["domains"]) == ("RAPL", None, ["package-0"])


def test_a_counter_that_stands_still_measures_nothing(clock: list[float]) -> None:
    found = energy.measure(Meter("RAPL", [EnergyCounter("package-0", lambda: 7)]), call_of(clock, 0.5), 1, 1)
    assert found == energy.unmeasured("RAPL's counters stand still")
    assert found["energy_mj_per_image"] is None


class FakeCuda:
    """Stands in for libcuda: its device 0 has the UUID 00010203-…"""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        return 0

    def cuDeviceGetUuid(self, identity: Any, device: Any) -> int:
        identity.raw = bytes(range(16))
        return 0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which CUDA shows one GPU."""
    monkeypatch.setattr(energy, "cuda_driver", FakeCuda)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A driver with one GPU, whose counter is in millijoules and goes up by 1,500 a reading; whom it was asked for."""
    asked: list[str] = []
    readings = itertools.count(1500, 1500)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", asked.append)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: next(readings))
    return asked


def test_nvml_reads_the_gpu_that_cuda_uses(cuda: None, nvml: list[str]) -> None:
    meter = energy.find_meter("cuda")
    assert meter.source == "NVML"
    assert nvml == ["GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"]
    assert meter.joules(meter.read(), meter.read()) == pytest.approx(1.5)


def test_a_gpu_without_counter_is_a_reason(cuda: None, nvml: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", unsupported)
    with pytest.raises(Unreadable, match=r"no energy of GPU-00010203-.*: Not Supported"):
        energy.find_meter("cuda")


def test_no_library_of_the_driver_is_a_reason(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with pytest.raises(Unreadable, match=r"NVML, which comes with NVIDIA's driver.*Not Found"):
        energy.find_meter("cuda")


def test_no_gpu_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "cuda_driver", lambda: None)
    with pytest.raises(Unreadable, match="the CUDA driver shows no device"):
        energy.find_meter("cuda")


def test_a_machine_without_meter_costs_no_import_of_torch() -> None:
    code = "import sys, json; sys.path.insert(0, sys.argv[1]); import measure_energy; print('torch' in sys.modules)"
    scripts = Path(machine.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, scripts], check=True, env=environment, capture_output=True)
    assert done.stdout.strip() == b"False"
