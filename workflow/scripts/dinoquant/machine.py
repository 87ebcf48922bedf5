"""What the machine is and how much of it this process may use. Needs no PyTorch."""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from dinoquant.errors import UserError

# Those that decide which kernels run and how fast int8 and bf16 are. Names as in /proc/cpuinfo: x86, then Arm.
INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "svei8mm", "svebf16", "sve", "sve2"),
)
# How an environment variable that changes speed begins: threads and where they are bound, the kernels chosen, memory.
SPEED_VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH", "PYTORCH_"),
    *("CUDA_", "NVIDIA_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"),
)
# What compilers make code of, by how its names begin: of x86, whose "sme" and "smep" protect memory, and of Arm.
X86 = ("sse", "ssse", "avx", "amx", "fma", "f16c", "bmi", "gfni", "vaes", "vpclmul", "movbe", "popcnt", "abm", "adx")
ARM = ("asimd", "sve", "sme", "i8mm", "bf16", "atomics")
WORKFLOW = Path(__file__).resolve().parents[2]
PROC = Path("/proc/self")


def _affinity() -> frozenset[int] | None:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


# The processors that this process was given; None where there are no masks. Taken now, since importing PyTorch binds
# the main thread to the first of them where the variables of a cluster ask for that (OMP_PROC_BIND, GOMP_CPU_AFFINITY,
# KMP_AFFINITY), and what is started afterwards would inherit just that one.
PROCESSORS = _affinity()


class GitState(TypedDict):
    """The commit that the workflow is checked out from, and whether anything in it differs from that commit."""

    commit: str
    dirty: bool


class Machine(TypedDict):
    """What a measurement depends on; None is what cannot be found out."""

    node: str
    os: str
    cpu: str | None
    architecture: str
    cores: int | None
    affinity: list[int] | None  # the processors that this process was given
    cpu_quota: float | None  # processors' worth of time that its control groups allow
    environment: list[str]  # NAME=value of the variables that change speed
    instruction_sets: list[str] | None
    memory_gb: float | None  # of 1e9 bytes
    gpu: str | None
    python: str
    torch: str | None
    torchvision: str | None
    timm: str | None
    git: GitState | None


def processors() -> int:
    """Return how many processors this process may run on, by its affinity mask."""
    return len(PROCESSORS) if PROCESSORS is not None else os.cpu_count() or 1


def compute_threads() -> int:
    """Return how many threads have a processor each: by the affinity mask, and by a container's quota.

    A quota of 2.5 processors is 2 threads: a third one would have all of them throttled.
    """
    quota = cpu_quota()
    return processors() if quota is None else max(1, min(processors(), int(quota)))


def resolve_threads(asked: int | str, key: str) -> int:
    """Return the number of compute threads for the value ``asked`` of the config key ``key``; "auto" means all.

    Raises UserError for more threads than processors: such timings would measure the scheduler.
    """
    available = compute_threads()
    if asked == "auto":
        return available
    threads = int(asked)
    if threads > available:
        quota = cpu_quota()
        raise UserError(
            f"{key} is {threads}, but this process may use only {available} processor(s) of {platform.node()}"
            + ("" if quota is None else f" (the quota of its control group is {quota:g})")
            + f'. Set {key} to {available} or less, or to "auto"; under a batch system, ask for more CPUs per task.'
        )
    return threads


@contextmanager
def given_processors() -> Iterator[None]:
    """Let the calling thread, and so the processes that it starts, have the processors that this process was given."""
    before = _affinity()
    if before is None or PROCESSORS is None:
        yield
        return
    os.sched_setaffinity(0, PROCESSORS)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def require_processors(threads: int) -> list[int] | None:
    """Return the processors that this process's threads may run on now, all together; None where there are no masks.

    Raises UserError if these are fewer than ``threads``.
    """
    if PROCESSORS is None:
        return None
    bound: set[int] = set()
    for task in (PROC / "task").iterdir():
        with suppress(ProcessLookupError):  # if it has ended meanwhile
            bound |= os.sched_getaffinity(int(task.name))
    if len(bound) < threads:
        binding = [entry for entry in speed_variables() if "BIND" in entry or "AFFINITY" in entry or "PLACES" in entry]
        raise UserError(
            f"{threads} threads are to be timed, but those of this process are bound to processor(s) "
            f"{', '.join(map(str, sorted(bound)))}" + (f" ({' '.join(binding)})" if binding else "") + ". Unset what "
            f"binds them, or set latency.threads to {len(bound)}."
        )
    return sorted(bound)


def speed_variables() -> list[str]:
    """Return NAME=value of the environment variables that change speed."""
    return sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(SPEED_VARIABLES))


def cpu_quota(proc: Path = PROC) -> float | None:
    """Return the least number of processors whose time the control groups of this process allow; None if there is none.

    The kernel's Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (version 1).
    """
    quotas = []
    for folder in _control_groups(proc):
        limit, period = (_read(folder / "cpu.max") or "").split() or (
            _read(folder / "cpu.cfs_quota_us") or "-1",
            _read(folder / "cpu.cfs_period_us") or "100000",
        )
        if limit != "max" and int(limit) > 0:
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def throttled_periods(proc: Path = PROC) -> int | None:
    """Return in how many periods so far the control groups of this process have used up their quota; None: no quota."""
    counts = [
        int(line.split()[1])
        for folder in _control_groups(proc)
        for line in (_read(folder / "cpu.stat") or "").splitlines()
        if line.startswith("nr_throttled ")
    ]
    return sum(counts) if counts else None


def _control_groups(proc: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that rule this process's processor time, from its own to the outermost.

    A container sees a part of the hierarchy only: which one is mounted, says mountinfo (proc(5), cgroups(7)).
    """
    mounts = []
    for line in (_read(proc / "mountinfo") or "").splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            mounts.append((kind, *mount.split()[3:5]))
    for line in (_read(proc / "cgroup") or "").splitlines():
        _, controllers, own = line.split(":", 2)
        version = "cgroup" if "cpu" in controllers.split(",") else "" if controllers else "cgroup2"
        for kind, root, point in mounts:
            if kind == version:
                inside = os.path.relpath(own, root)
                folder = Path(point) if inside.startswith("..") else Path(point, inside)
                yield folder
                yield from (parent for parent in folder.parents if parent.is_relative_to(point))


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
        "affinity": None if PROCESSORS is None else sorted(PROCESSORS),
        "cpu_quota": cpu_quota(),
        "environment": speed_variables(),
        "instruction_sets": _instruction_sets(cpuinfo),
        "memory_gb": _memory_gb(),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "timm": _version("timm"),
        "git": _git_state(),
    }


def _read(path: Path) -> str | None:
    """Return the text of a file; None where there is no such file, as on another system than Linux."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return the first processor's entries."""
    lines = (line.partition(":") for line in (_read(path) or "").strip().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def compiled_for() -> list[str] | None:
    """Return the instruction sets that code compiled for this very processor may use; None where it does not tell."""
    cpuinfo = _cpuinfo()
    for key, beginnings in (("flags", X86), ("Features", ARM)):
        if listed := cpuinfo.get(key):
            return sorted(flag for flag in set(listed.split()) if flag.startswith(beginnings))
    return None


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
