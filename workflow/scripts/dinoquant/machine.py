"""What the machine is and how much of it this process may use. Needs no PyTorch."""

import ctypes
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from dinoquant.errors import UserError

# Those that decide which kernels run and how fast int8 and bf16 are. Names as in /proc/cpuinfo: x86, then Arm.
INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "svei8mm", "svebf16", "sve", "sve2"),
)
WORKFLOW = Path(__file__).resolve().parents[2]


class GitState(TypedDict):
    """The commit that the workflow is checked out from, and whether anything in it differs from that."""

    commit: str
    dirty: bool


class Machine(TypedDict):
    """What a measurement depends on; None is what cannot be found out."""

    node: str
    os: str
    cpu: str | None
    architecture: str
    cores: int | None
    affinity: list[int] | None
    instruction_sets: list[str] | None
    memory_gb: float | None  # of 1e9 bytes
    gpu: str | None
    python: str
    torch: str | None
    torchvision: str | None
    timm: str | None
    git: GitState | None


def compute_threads() -> int:
    """Return how many processors this process may run on: its affinity mask, or all where there are no masks."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_threads(asked: int | str, key: str) -> int:
    """Return the number of compute threads for the value ``asked`` of the config key ``key``; "auto" means all.

    Raises UserError for more threads than processors: such timings would measure the scheduler.
    """
    available = compute_threads()
    if asked == "auto":
        return available
    threads = int(asked)
    if threads > available:
        raise UserError(
            f"{key} is {threads}, but this process may use only {available} processor(s) of {platform.node()}. "
            f'Set {key} to {available} or less, or to "auto"; under a batch system, ask for more CPUs per task.'
        )
    return threads


def cuda_driver() -> ctypes.CDLL | None:
    """Return CUDA's driver, started (https://docs.nvidia.com/cuda/cuda-driver-api/); None where there is none.

    By ctypes: unlike NVML it obeys CUDA_VISIBLE_DEVICES, and PyTorch would take seconds to import.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def cuda_devices() -> int:
    """Return the number of CUDA devices that the driver shows to this process; 0 without a driver.

    Asks the driver itself, which obeys CUDA_VISIBLE_DEVICES.
    """
    driver = cuda_driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def require_device(device: str) -> None:
    """Raise UserError if ``device`` is "cuda" and PyTorch cannot use one."""
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"devices lists cuda, but PyTorch {torch.__version__} finds no usable CUDA device on {platform.node()} "
            f"(the driver shows {cuda_devices()}). Remove cuda from devices, or run on a machine with an NVIDIA GPU, "
            "its driver, and a CUDA build of PyTorch."
        )


def describe() -> Machine:
    """Return what a measurement depends on.

    The GPU is named only if this process has used it: asking would otherwise start PyTorch and a CUDA context.
    """
    cpuinfo = _cpuinfo()
    return {
        "node": platform.node(),
        "os": platform.platform(),
        "cpu": cpuinfo.get("model name") or platform.processor() or None,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "instruction_sets": _instruction_sets(cpuinfo),
        "memory_gb": _memory_gb(),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "timm": _version("timm"),
        "git": _git_state(),
    }


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return the first processor's entries; empty where there is no such file (not Linux)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.strip().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _instruction_sets(cpuinfo: dict[str, str]) -> list[str] | None:
    listed = cpuinfo.get("flags") or cpuinfo.get("Features")  # x86, Arm
    if listed is None:
        return None
    present = set(listed.split())
    return [name for name in INSTRUCTION_SETS if name in present]


def _memory_gb() -> float | None:
    """Return the physical memory in units of 1e9 bytes."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):  # not a POSIX system, or it does not tell
        return None


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return str(torch.cuda.get_device_name())


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git_state(folder: Path = WORKFLOW) -> GitState | None:
    """Return the commit that ``folder`` is checked out from, and whether anything in it differs from that commit.

    None where git, the repository or the commit is missing, and where an unrelated repository surrounds ``folder``.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-files"):
        return None
    status = _git(folder, "status", "--porcelain", "--", ".")
    return None if status is None else {"commit": commit, "dirty": bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's answer, or None; takes no lock, since other jobs ask at the same time."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
