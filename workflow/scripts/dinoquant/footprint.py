"""What a model takes on disk and in memory, and how long a fresh process waits for its first answer.

Call `measure` once, in a process that has imported PyTorch and done nothing else with it.
"""

import re
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dinoquant.files import read_through

MB = 1e6
KIB = 1024
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def measure(model: Path, *, image_size: int, device: str, threads: int) -> dict[str, Any]:
    """Load the TorchScript file ``model``, run it once on one image, and return sizes in 1e6 bytes and times in ms.

    The file is read once beforehand, so that ``load_ms`` is the time from the page cache, not from the disk. On cuda
    the context exists before anything is measured: it is the same for every model. ``peak_rss_mb`` is the host's
    memory, the highest value during load and first inference minus ``baseline_rss_mb``, what the process held before;
    ``peak_rss_source`` says where it was read. The first inference includes TorchScript's profiling and the start of
    the thread pool, as it does for a user.
    """
    torch.set_num_threads(threads)
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    read_through(model)
    source = restart_peak()
    baseline = rss_bytes()
    start = time.perf_counter()
    module = torch.jit.load(model, map_location=device).eval()  # type: ignore[no-untyped-call]  # not typed in torch
    _wait_for(device)
    loaded = time.perf_counter()
    with torch.inference_mode():
        module(image)
    _wait_for(device)
    finished = time.perf_counter()
    peak = peak_rss_bytes()
    return {
        "device": device,
        "size_mb": model.stat().st_size / MB,
        "load_ms": (loaded - start) * 1e3,
        "first_inference_ms": (finished - loaded) * 1e3,
        "peak_rss_mb": (peak - baseline) / MB,
        "peak_rss_source": source,
        "baseline_rss_mb": baseline / MB,
        "threads": threads,
    }


def restart_peak() -> str:
    """Let the peak count from now on, as Linux can (proc(5), clear_refs), and return what it is read from.

    Elsewhere, or where /proc is read-only, it counts from the start of the process: an import that took more than the
    model would hide the model.
    """
    with suppress(OSError):
        CLEAR_REFS.write_text("5")
        return "VmHWM"
    return "ru_maxrss since process start" if _status_bytes("VmHWM") is None else "VmHWM since process start"


def rss_bytes() -> int:
    """Return how much memory this process holds in bytes; the peak where the system tells no more."""
    current = _status_bytes("VmRSS")
    return _max_rss_bytes() if current is None else current


def peak_rss_bytes() -> int:
    """Return the most memory this process has held, in bytes, since `restart_peak` where that can be had."""
    peak = _status_bytes("VmHWM")
    return _max_rss_bytes() if peak is None else peak


def _status_bytes(key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * KIB if found else None


def _max_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB  # bytes on macOS, KiB elsewhere


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
