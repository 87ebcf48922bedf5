"""What this machine can do at most: the speed of one large matrix product in each precision, and of memory.

These are the roofs of the roofline model (Williams, Waterman & Patterson, "Roofline: an insightful visual performance
model for multicore architectures", CACM 52(4), 2009), measured instead of taken from a data sheet, so that clock,
number of threads, neighbours and libraries are those that a model meets too.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TypedDict

import torch
from torch import Tensor

from dinoquant.machine import PROCESSORS
from dinoquant.recipes.base import deprecations_known
from dinoquant.recipes.int8.processor import bfloat16_is_native, int8_is_exact
from dinoquant.runtimes.torchscript import set_up

CACHES = Path("/sys/devices/system/cpu")
# Rows, columns and depth of a product. The largest that matters is the one that a call still finishes in time.
SIZES = (512, 1024, 2048, 4096, 8192)
# Everything is tried again some seconds later, and the best counts: what disturbs for a while must not lower a roof.
ROUNDS = 3
PRODUCT_SECONDS = 0.05  # spent in a round on each size of a product
MIN_CALLS = 3
MEMORY_SECONDS = 0.1
DISTURBED = 0.8  # of a peak, below which a round of the same product makes one doubt that the machine was quiet
# Of the last-level caches together, for each array, as STREAM asks (https://www.cs.virginia.edu/stream/ref.html).
TIMES_THE_CACHE = 4
ARRAY_BYTES = (64 << 20, 512 << 20)  # at least and at most: three arrays must fit where a job gets 4 GB
UNKNOWN_CACHE_BYTES = 32 << 20

Call = Callable[[], object]
# Makes the product of one size; several ways to compute it compete for each precision.
Kernel = Callable[[int], Call]


class Speed(TypedDict):
    """Operations/s of square products of one size, by the median call."""

    size: int
    calls: int
    flops: float


class Product(Speed):
    """The same, with the kernel and the round."""

    precision: str
    kernel: str
    round: int


class Bandwidth(TypedDict):
    """Bytes/s by what was done, on arrays of ``array_bytes`` each."""

    array_bytes: int
    cache_bytes: int | None
    bytes_per_s: dict[str, float]


class Peaks(TypedDict):
    """What a machine can do at most, with all that was tried."""

    device: str
    threads: int
    gemm_flops: dict[str, float | None]  # by precision
    bandwidth_bytes_per_s: float
    int8_exact: bool
    products: list[Product]
    memory: list[Bandwidth]
    notes: dict[str, str]
    started: float
    finished: float


def measure(device: str, threads: int) -> Peaks:
    """Return operations/s of large products by precision and bytes/s of memory.

    A multiply-add is two operations. A peak is the median speed of the best size by the best kernel in the best round;
    None where none works, with the reason in ``notes``. Takes a few seconds.
    """
    set_up(threads)
    started = time.time()
    timer = _cuda_seconds if device == "cuda" else _cpu_seconds
    exact = device == "cuda" or int8_is_exact(portable=True)
    products: list[Product] = []
    memory: list[Bandwidth] = []
    notes: dict[str, str] = {}
    with torch.inference_mode():
        for number in range(ROUNDS):
            for precision, name, kernel in kernels(device, exact):
                try:
                    by_size = list(speeds(kernel, timer, PRODUCT_SECONDS))
                except (RuntimeError, NotImplementedError, AttributeError) as error:  # not in this build or processor
                    notes[name] = str(error).strip().splitlines()[0]
                else:
                    products += [
                        {"precision": precision, "kernel": name, "round": number, **speed} for speed in by_size
                    ]
            memory.append(bandwidth(device, timer))
    if (cache := memory[-1]["cache_bytes"]) and cache > memory[-1]["array_bytes"] / 2:
        notes["memory"] = f"caches of {cache / 1e6:.0f} MB hold much of the arrays: the bandwidth is partly theirs"
    if disturbed := disturbance(products):
        notes["rounds"] = disturbed
    if not exact:
        notes["onednn::qlinear_pointwise"] = "its int8 sums would be wrong here: models that call it compute in float32"
    best = {product["precision"]: product["flops"] for product in sorted(products, key=lambda each: each["flops"])}
    return {
        "device": device,
        "threads": threads,
        "gemm_flops": {precision: best.get(precision) for precision in ("fp32", "bf16", "fp16", "int8")},
        "bandwidth_bytes_per_s": max(max(each["bytes_per_s"].values()) for each in memory),
        "int8_exact": exact,
        "products": products,
        "memory": memory,
        "notes": notes,
        "started": started,
        "finished": time.time(),
    }


def kernels(device: str, int8_exact: bool) -> Iterator[tuple[str, str, Kernel]]:
    """Yield precision, name and maker of every product to try on ``device``."""
    if device == "cuda":
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
            yield precision, "aten::mm", _mm(dtype, device)
        yield "int8", "aten::_int_mm", _int_mm
        return
    dtypes = {"fp32": torch.float32}
    if bfloat16_is_native():  # emulated, products take seconds, and are no roof
        dtypes["bf16"] = torch.bfloat16
    for precision, dtype in dtypes.items():
        yield precision, "aten::mm", _mm(dtype, device)  # MKL for float32, which is slow on AMD
        yield precision, "mkldnn::_linear_pointwise", _onednn(dtype)
    if int8_exact:
        yield "int8", "onednn::qlinear_pointwise", _qlinear
    else:
        yield "int8", "quantized::linear", _quantized_linear


def speeds(kernel: Kernel, timer: Callable[[Call], float], seconds: float) -> Iterator[Speed]:
    """Yield size, calls and operations/s (by the median call) of growing products, until a call takes too long."""
    for size in SIZES:
        call = kernel(size)
        taken = _repeat(call, timer, seconds)
        yield {"size": size, "calls": len(taken), "flops": 2 * size**3 / median(taken)}
        if min(taken) * 8 * MIN_CALLS > 4 * seconds:  # twice the size is eight times the work
            return


def disturbance(products: Sequence[Product]) -> str | None:
    """Return by how much the rounds of the products that set the peaks differ, if that is much."""
    kinds: dict[tuple[str, str, int], list[float]] = {}  # the speeds of the same product in all rounds
    for product in products:
        kinds.setdefault((product["precision"], product["kernel"], product["size"]), []).append(product["flops"])
    best = {precision: flops for (precision, *_), flops in sorted(kinds.items(), key=lambda kind: max(kind[1]))}
    worst = min((min(flops) / max(flops) for flops in best.values()), default=1.0)
    if worst >= DISTURBED:
        return None
    return f"the same product was {1 - worst:.0%} slower in another round: something else was running"


def bandwidth(device: str, timer: Callable[[Call], float]) -> Bandwidth:
    """Return bytes/s of reading, copying and STREAM's triad, on arrays far larger than the caches.

    Counted are the bytes that a program reads and writes. What the hardware moves besides is not: where a written line
    is read first (write-allocate), a copy moves 3 bytes for 2 counted. Reading has no such part and is usually best.
    """
    cache = _gpu_cache_bytes() if device == "cuda" else cache_bytes()
    low, high = ARRAY_BYTES
    size = min(max(TIMES_THE_CACHE * (cache or UNKNOWN_CACHE_BYTES), low), high)
    a, b, c = (torch.ones(size // 4, device=device) for _ in range(3))
    calls: dict[str, tuple[int, Call]] = {
        "read": (1, lambda: b.sum()),
        "copy": (2, lambda: a.copy_(b)),
        "triad": (3, lambda: torch.add(b, c, alpha=3.0, out=a)),
    }
    speeds = {
        name: arrays * size / median(_repeat(call, timer, MEMORY_SECONDS)) for name, (arrays, call) in calls.items()
    }
    return {"array_bytes": size, "cache_bytes": cache, "bytes_per_s": speeds}


def cache_bytes(root: Path = CACHES) -> int | None:
    """Return the size of all last-level caches that this process's processors use, together; None if not known."""
    processors = range(os.cpu_count() or 1) if PROCESSORS is None else PROCESSORS
    last: dict[str, int] = {}  # by the processors that share it
    for processor in processors:
        levels = {_read(path / "level"): path for path in (root / f"cpu{processor}/cache").glob("index*")}
        size = _read(levels[max(levels)] / "size") if levels else ""
        if size.endswith("K"):
            last[_read(levels[max(levels)] / "shared_cpu_list")] = int(size[:-1]) << 10
    return sum(last.values()) or None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _gpu_cache_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def _repeat(call: Call, timer: Callable[[Call], float], seconds: float) -> list[float]:
    """Return the seconds of every call, at least a few, after one that warms up; about ``seconds`` in all."""
    call()
    taken: list[float] = []
    while len(taken) < MIN_CALLS or sum(taken) < seconds:
        taken.append(timer(call))
    return taken


def _cpu_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Call) -> float:
    """Return the seconds between two events around the call: the GPU's own, without the time to launch it."""
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # not typed in torch
        for _ in range(2)
    )
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _matrix(size: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Return numbers as a model has them: an operand of zeros lets a GPU draw less power and clock higher."""
    if dtype.is_floating_point:
        return torch.randn(size, size, device=device).to(dtype)
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, (size, size), dtype=dtype, device=device)


def _mm(dtype: torch.dtype, device: str) -> Kernel:
    def make(size: int) -> Call:
        left, right = _matrix(size, dtype, device), _matrix(size, dtype, device)
        return lambda: torch.mm(left, right)

    return make


def _onednn(dtype: torch.dtype) -> Kernel:
    def make(size: int) -> Call:
        inputs = _matrix(size, dtype)
        weight = torch.ops.mkldnn._reorder_linear_weight(_matrix(size, dtype), None)
        return lambda: torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")

    return make


def _qlinear(size: int) -> Call:
    """u8 x s8 to bfloat16 where the processor has it, else float32, as in `dinoquant.recipes.int8.layers`."""
    dtype = torch.bfloat16 if bfloat16_is_native() else torch.float32
    inputs, scale, zeros = _matrix(size, torch.uint8), torch.ones(size), torch.zeros(size, dtype=torch.int64)
    weight = torch.ops.onednn.qlinear_prepack(_matrix(size, torch.int8), None)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        inputs, 1.0, 0, weight, scale, zeros, None, 1.0, 0, dtype, "none", [], ""
    )


def _quantized_linear(size: int) -> Call:
    """u8 x s8 to u8 through PyTorch's quantization engine; 7 bit inputs, so that no sum saturates."""
    with deprecations_known():
        inputs = torch.quantize_per_tensor(torch.rand(size, size), 1 / 127, 0, torch.quint8)
        weight = torch.quantize_per_tensor(torch.randn(size, size), 1 / 32, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    return lambda: torch.ops.quantized.linear(inputs, packed, 1.0, 64)


def _int_mm(size: int) -> Call:
    left, right = _matrix(size, torch.int8, "cuda"), _matrix(size, torch.int8, "cuda").t()
    return lambda: torch._int_mm(left, right)
