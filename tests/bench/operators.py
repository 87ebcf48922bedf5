"""Print where int8-smooth spends its time, operator by operator, and how far that is from what this machine can do.

So for its TorchScript file and for its package of machine code, whose fused operators are named by their parts.
The limit is that of `results/limits.csv`: the time of all products at the speed of one large product.
"""

import argparse
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dinoquant.measure import limits, peaks
from dinoquant.network import audit, operations
from dinoquant.network.architecture import info, seeded
from dinoquant.network.export import export, load
from dinoquant.recipes import smooth
from dinoquant.recipes.int8 import compiled, transformer
from dinoquant.runtimes.allocator import keep_freed_memory
from dinoquant.runtimes.inductor import compile_package

ARCHITECTURE = "vit_small_patch16_224"
OPTIONS = {"recipe": "int8-smooth", "attention": "bf16", "portable": True}
CALLS, PROFILED = 20, 5


@torch.inference_mode()
def seconds(function: Callable[[], object]) -> float:
    """Return the median seconds of a call, after a few to warm up."""
    taken = []
    for _ in range(3 + CALLS):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return sorted(taken[3:])[CALLS // 2]


def in_parts(run: Callable[[torch.Tensor], object], images: torch.Tensor) -> None:
    """Run a model on as many images at a call as `runtimes.inductor` does; a TorchScript file parts them itself."""
    for part in images.split(transformer.Patches.IMAGES):
        run(part)


def described(name: str) -> str:
    """Return an operator's name; of one that the compiler fused, what it consists of."""
    fused = re.search(r"cpp_fused_(\w+?)_\d+$", name)
    return f"fused: {re.sub('__+', '_', fused[1])[:70]}" if fused else name


def print_shares(run: Callable[[], object]) -> None:
    """Print the operators that take most of a call's time."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            run()
    taken, calls = Counter[str](), Counter[str]()
    for event in seen.key_averages():
        taken[described(event.key)] += event.self_cpu_time_total
        calls[described(event.key)] += event.count
    for name, microseconds in taken.most_common(10):
        print(f"  {microseconds / taken.total():6.1%}  {calls[name] // PROFILED:4d} calls  {name}")


def main() -> None:
    """Print two tables for batch 1 and two for batch 16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    keep_freed_memory()
    warnings.simplefilter("ignore")  # of TorchScript, which is deprecated
    machine = peaks.measure("cpu", threads)
    model = seeded(ARCHITECTURE, None, 0)
    images = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    card = info(model, ARCHITECTURE, "architecture", substitute=None)
    with tempfile.TemporaryDirectory() as folder:
        path, audited, package = (Path(folder) / name for name in ("model.pt", "audit.csv", "model.pt2"))
        quantized = smooth.quantize(model, OPTIONS, images)
        export(quantized, path, "int8-smooth", OPTIONS, card)
        audit.write(audited, model, "int8-smooth", quantized)
        needed = operations.needed(model, operations.macs(model))
        macs = limits.macs_by_precision(needed, limits.read_precisions(audited))
        variant, script = limits.Model(macs, path.stat().st_size), load(path)
        with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
            compile_package(compiled.rebuilt(model, script), package, {**card, "recipe": "int8-smooth"}, None)
        runs = {"TorchScript": script, "package": torch._inductor.aoti_load_package(str(package))}
    speeds = machine["gemm_flops"]
    print(f"one large product: int8 {1e-12 * speeds['int8']:.2f} TOP/s, bf16 {1e-12 * speeds['bf16']:.2f} TOP/s")
    print(f"{ARCHITECTURE}, GMAC an image: {', '.join(f'{count / 1e9:.2f} in {kind}' for kind, count in macs.items())}")
    for batch in (1, 16):
        limit = limits.limit(variant, batch, card["image_size"], card["feature_dim"], machine)
        limit_ms = limit["limit_ms"] / batch
        print(f"\nbatch {batch}: the limit, of {limit['bound']}, is {limit_ms:.2f} ms an image")
        for name, run in runs.items():
            call = partial(in_parts, run, images[:batch])
            image = 1e3 * seconds(call) / batch
            print(f"{name}: {image:.2f} ms an image, {image / limit_ms:.2f} times the limit; share of the time:")
            print_shares(call)


if __name__ == "__main__":
    main()
