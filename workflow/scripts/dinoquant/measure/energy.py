"""How much energy an image takes, from the counters of the processor (RAPL) or of the GPU (NVML). Needs no PyTorch."""

import ctypes
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from dinoquant.machine import cuda_driver

# https://docs.kernel.org/power/powercap/powercap.html; AMD's processors are there under the same names.
POWERCAP = Path("/sys/class/powercap")
MICROJOULES_PER_MILLIJOULE = 1000


class Unreadable(Exception):
    """No energy can be read here; the text says why."""


class Energy(TypedDict):
    """The energy of an image, or why there is none."""

    energy_mj_per_image: float | None
    energy_source: str | None
    energy_reason: str | None
    domains: NotRequired[list[str]]
    images: NotRequired[int]
    seconds: NotRequired[float]
    power_w: NotRequired[float]
    idle_power_w: NotRequired[float]


@dataclass(frozen=True)
class EnergyCounter:
    """A count of microjoules that grows; past ``largest`` it starts again from 0 (None: it does not)."""

    name: str
    read: Callable[[], int]
    largest: int | None = None

    def grown(self, before: int, after: int) -> int:
        """Return the microjoules between two readings, which must be closer than two turns of the counter."""
        return after - before + (self.largest if self.largest and after < before else 0)


@dataclass(frozen=True)
class Meter:
    """All counters of a device, and what they come from."""

    source: str
    counters: Sequence[EnergyCounter]

    def read(self) -> list[int]:
        """Return what every counter says now."""
        return [counter.read() for counter in self.counters]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the energy between two readings."""
        readings = zip(self.counters, before, after, strict=True)
        return sum(counter.grown(*pair) for counter, *pair in readings) / 1e6


def find_meter(device: str) -> Meter:
    """Return what measures the energy of ``device``: "cpu" or "cuda". Raises Unreadable."""
    return nvml() if device == "cuda" else rapl()


def rapl(root: Path = POWERCAP) -> Meter:
    """Return the counters of all processor packages: cores, caches, memory controllers, whoever uses them.

    Raises Unreadable where there are none or one of them may not be read.
    """
    zones = sorted(zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1)  # the others are parts
    try:
        counters = [_zone(zone) for zone in zones if (zone / "name").read_text(encoding="ascii").startswith("package-")]
        for counter in counters:
            counter.read()
    except PermissionError as error:
        raise Unreadable(
            f"{error.filename} may not be read: most systems let only root (who may chmod a+r it)"
        ) from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"RAPL below {root} cannot be read: {error}") from error
    if not counters:
        raise Unreadable(
            f"no RAPL domain of a processor package under {root}: a virtual machine, a container that hides it, or a "
            "processor or kernel without it"
        )
    return Meter("RAPL", counters)


def _zone(zone: Path) -> EnergyCounter:
    energy = zone / "energy_uj"
    largest = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
    name = (zone / "name").read_text(encoding="ascii").strip()
    return EnergyCounter(name, lambda: int(energy.read_text(encoding="ascii")), largest)


def nvml() -> Meter:
    """Return the counter of the GPU that CUDA calls device 0: the whole board, memory included (Volta or newer).

    https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html. Raises Unreadable where there is none.
    """
    import pynvml  # here, since only a GPU needs it

    name = _gpu_name()
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)

        def read() -> int:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * MICROJOULES_PER_MILLIJOULE

        read()
    except pynvml.NVMLError as error:
        raise Unreadable(f"NVML, which comes with NVIDIA's driver, tells no energy of {name}: {error}") from error
    return Meter("NVML", [EnergyCounter(name, read)])


def _gpu_name() -> str:
    """Return what NVML calls CUDA's device 0, which depends on CUDA_VISIBLE_DEVICES, as NVML's own numbers do not.

    By ctypes, as the CUDA driver alone obeys that variable and `pynvml` does not ask it.
    """
    driver, device, identity = cuda_driver(), ctypes.c_int(), ctypes.create_string_buffer(16)
    if (
        driver is None
        or driver.cuDeviceGet(ctypes.byref(device), 0) != 0
        or driver.cuDeviceGetUuid(identity, device) != 0
    ):
        raise Unreadable("the CUDA driver shows no device")
    return f"GPU-{uuid.UUID(bytes=identity.raw)}"


def measure(meter: Meter, call: Callable[[], object], batch_size: int, seconds: float) -> Energy:
    """Return the energy per image of ``call`` over ``seconds``, and the power of as long a time in which nothing ran.

    A call runs a model, warmed up, on ``batch_size`` images, and returns when it is done. The energy is all that the
    counters saw, what the device takes when idle included: nothing is subtracted.
    """
    before, start = meter.read(), time.perf_counter()
    time.sleep(seconds)
    idle = meter.joules(before, meter.read()) / (time.perf_counter() - start)
    calls, before, start = 0, meter.read(), time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        call()
        calls += 1
    joules = meter.joules(before, meter.read())
    if joules <= 0:
        return unmeasured(f"{meter.source}'s counters stand still")
    return {
        "energy_mj_per_image": 1e3 * joules / (calls * batch_size),
        "energy_source": meter.source,
        "energy_reason": None,
        "domains": [counter.name for counter in meter.counters],
        "images": calls * batch_size,
        "seconds": taken,
        "power_w": joules / taken,
        "idle_power_w": idle,
    }


def unmeasured(reason: str) -> Energy:
    """Return the result where no energy can be read."""
    return {"energy_mj_per_image": None, "energy_source": None, "energy_reason": reason}
