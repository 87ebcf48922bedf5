"""Print where int8-smooth spends its time, operator by operator, and how far that is from what this machine can do.

So for its TorchScript file and for its package of machine code, whose fused operators are named by their parts.
The limit is that of `results/limits.csv`: the time of all products at the speed of one large product.
"""

import argparse
import re
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
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
WARMUPS, CALLS, PROFILED = 3, 20, 5


@torch.inference_mode()
def milliseconds(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median time of each call, by name; they take turns, after a few to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WARMUPS + CALLS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times[WARMUPS:]) for name, times in taken.items()}


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
    speeds = [f"{kind} {1e-12 * flops:.2f} TOP/s" for kind, flops in machine["gemm_flops"].items() if flops]
    print(f"one large product: {', '.join(speeds)}")
    print(f"{ARCHITECTURE}, GMAC an image: {', '.join(f'{count / 1e9:.2f} in {kind}' for kind, count in macs.items())}")
    for batch in (1, 16):
        bound = limits.limit(variant, batch, card["image_size"], card["feature_dim"], machine)
        print(f"\nbatch {batch}: the limit, of {bound['bound']}, is {bound['limit_ms']:.2f} ms")
        calls = {name: partial(in_parts, run, images[:batch]) for name, run in runs.items()}
        for name, taken in milliseconds(calls).items():
            print(f"{name}: {taken:.2f} ms, {taken / bound['limit_ms']:.2f} times the limit; share of the time:")
            print_shares(calls[name])


if __name__ == "__main__":
    main()
