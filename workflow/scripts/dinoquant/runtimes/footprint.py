"""What a model takes on disk and in memory, and how long a fresh process waits for its first answer.

`measure` starts that process, and `dinoquant.runtimes.worker` calls `observe` there. Needs no PyTorch.
"""

import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from dinoquant.files import read_through
from dinoquant.runtimes import checked_card, files

MB = 1e6
KIB = 1024
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


class Footprint(TypedDict):
    """Sizes in 1e6 bytes and times in ms.

    ``peak_rss_mb`` is the host's memory, the highest value during load and first inference minus ``baseline_rss_mb``,
    what the process held before; ``peak_rss_source`` says where it was read. ``gpu_memory_mb`` is the most that was
    held on the GPU; None without a GPU. ``load_ms`` is the time from the page cache, not from the disk. The first
    inference includes the runtime's profiling and compiling and the start of its threads, as it does for a user.
    """

    size_mb: float
    load_ms: float
    first_inference_ms: float
    peak_rss_mb: float
    peak_rss_source: str
    baseline_rss_mb: float
    gpu_memory_mb: float | None


def measure(model: Path, device: str, threads: int) -> Footprint:
    """Return the footprint of a model that a rule of this workflow made, in a fresh process that runs nothing else.

    Raises UserError and RuntimeError as `dinoquant.runtimes.remote.Remote` does.
    """
    from dinoquant.runtimes.remote import Remote  # which starts the process where this module's `observe` runs

    card = checked_card(model)
    size = card["image_size"]
    image = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    with Remote(card["runtime"], threads, device=device) as process:
        footprint, _ = process.ask("footprint", image, model=str(model), card=card)
    return cast(Footprint, footprint)


def observe(model: Path, load: Callable[[], Callable[[], object]], device: str = "cpu") -> Footprint:
    """Load a model, run it once on one image, and return what that took in this process.

    All files of the model are read once beforehand. ``load`` loads them and returns a function that runs the model on
    an image that is ready and waits for the result; a GPU's context exists already: it is the same for every model. The
    allocator is left as the system has it, unlike in timings (`dinoquant.runtimes.allocator`).
    """
    for file in files(model):
        read_through(file)
    source = restart_peak()
    baseline = rss_bytes()
    start = time.perf_counter()
    run = load()
    loaded = time.perf_counter()
    run()
    finished = time.perf_counter()
    peak = peak_rss_bytes()
    return {
        "size_mb": sum(file.stat().st_size for file in files(model)) / MB,
        "load_ms": (loaded - start) * 1e3,
        "first_inference_ms": (finished - loaded) * 1e3,
        "peak_rss_mb": (peak - baseline) / MB,
        "peak_rss_source": source,
        "baseline_rss_mb": baseline / MB,
        "gpu_memory_mb": gpu_bytes() / MB if device == "cuda" else None,
    }


def gpu_bytes() -> int:
    """Return the most that PyTorch has held on the GPU; no other runtime is measured there."""
    import torch

    return torch.cuda.max_memory_reserved()


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
        line = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(line[1]) * KIB if line else None


def _max_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB  # bytes on macOS, KiB elsewhere
