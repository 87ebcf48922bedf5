"""Print where int8-smooth spends its time, operator by operator, and how far that is from what this machine can do.

The limit is that of `results/limits.csv`: the time of all products at the speed of one large product.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dinoquant.measure import limits, peaks
from dinoquant.network import audit, operations
from dinoquant.network.architecture import info, seeded
from dinoquant.network.export import export, load
from dinoquant.recipes import smooth
from dinoquant.runtimes.allocator import keep_freed_memory

ARCHITECTURE = "vit_small_patch16_224"
OPTIONS = {"recipe": "int8-smooth", "attention": "bf16", "portable": True}
CALLS = 20


@torch.inference_mode()
def seconds(function: Callable[[], object]) -> float:
    """Return the median seconds of a call, after a few to warm up."""
    taken = []
    for _ in range(3 + CALLS):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return sorted(taken[3:])[CALLS // 2]


def main() -> None:
    """Print one table for batch 1 and one for batch 16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    keep_freed_memory()
    warnings.simplefilter("ignore")  # of TorchScript, which is deprecated
    machine = peaks.measure("cpu", threads)
    model = seeded(ARCHITECTURE, None, 0)
    images = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    described = info(model, ARCHITECTURE, "architecture", substitute=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        quantized = smooth.quantize(model, OPTIONS, images)
        export(quantized, path, "int8-smooth", OPTIONS, described)
        audit.write(Path(folder) / "audit.csv", model, "int8-smooth", quantized)
        needed = operations.needed(model, operations.macs(model))
        macs = limits.macs_by_precision(needed, limits.read_precisions(Path(folder) / "audit.csv"))
        variant, file = limits.Model(macs, path.stat().st_size), load(path)
    speeds = machine["gemm_flops"]
    print(f"one large product: int8 {1e-12 * speeds['int8']:.2f} TOP/s, bf16 {1e-12 * speeds['bf16']:.2f} TOP/s")
    print(f"{ARCHITECTURE}, GMAC an image: {', '.join(f'{count / 1e9:.2f} in {kind}' for kind, count in macs.items())}")
    for batch in (1, 16):
        part = images[:batch]
        image = 1e3 * seconds(lambda part=part: file(part)) / batch  # type: ignore[misc]  # mypy cannot infer it
        found = limits.limit(variant, batch, described["image_size"], described["feature_dim"], machine)
        limit = found["limit_ms"] / batch
        print(f"\nbatch {batch}: the limit, of {found['bound']}, is {limit:.2f} ms an image")
        print(f"{image:.2f} ms an image, {image / limit:.2f} times the limit; share of the time:")
        with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(5):
                file(part)
        events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        for event in events[:10]:
            print(f"  {event.self_cpu_time_total / total:6.1%}  {event.count // 5:4d} calls  {event.key}")


if __name__ == "__main__":
    main()
