"""Time fp32, bf16, fp16 and int8 files and compiled models on a GPU, and check their features, within eight minutes.

    make bench-gpu

Takes a GPU, PyTorch 2.11 or newer and timm (which builds the model), and no network: see docs/gpu. Every variant runs
in a process of its own with a limit in seconds; what does not fit in is listed as left out. Last come the products of
one block by themselves, bfloat16, int8 and fp8. The weights are random,
since speed does not depend on them; the cosine then says whether kernels compute what they should, not more.
`--device cpu --small` goes through the same plan with a small model in a minute.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

LIMIT_SECONDS = 460  # for everything: `make bench-gpu` ends within eight minutes
TIMED_SECONDS, FEWEST_CALLS = 1.0, 10  # for a row, and before it for the warm-up
BATCHES = (256, 1, 64, 16)  # what saturates a GPU first, should time run out
IMAGES = 16  # whose features are compared
PRODUCTS = ((384, 1152), (384, 384), (384, 1536), (1536, 384))  # inputs and outputs of the Linears in a ViT-S block
PREFIX = "ROW "


class Variant(NamedTuple):
    """What to run: a recipe's file, or the network compiled in a precision; for how long, and how close to fp32."""

    recipe: str
    compiled: bool
    seconds: float
    cosine: float


VARIANTS = {
    "fp32": Variant("fp32", False, 40, 0.99999),
    "bf16": Variant("bf16", False, 40, 0.999),
    "fp16": Variant("fp16", False, 40, 0.999),
    "int8-per-token": Variant("int8-per-token", False, 40, 0.997),
    "compiled-bf16": Variant("bf16", True, 125, 0.999),
    "compiled-fp16": Variant("fp16", True, 125, 0.999),
}
# Row by row at the first of BATCHES: the one should have at least the speed of the other.
BARS = (("bf16", "compiled-bf16"), ("fp16", "compiled-fp16"), ("int8-per-token", "bf16"))


class Row(NamedTuple):
    """A timing: the median of calls, each until the features are there, and the mean cosine to fp32's features."""

    variant: str
    batch: int
    ms: float
    cosine: float


def make(folder: Path, architecture_name: str) -> None:
    """Write the file of every recipe."""
    from dinoquant.network import architecture
    from dinoquant.network.export import export
    from dinoquant.recipes.base import load_recipe

    network = architecture.seeded(architecture_name, None, 0)
    info = architecture.info(network, architecture_name, "imagenet", substitute="seeded weights")
    for recipe in {variant.recipe for variant in VARIANTS.values()}:
        options = {"recipe": recipe, "attention": "bf16", "portable": False}  # portable or not is about x86
        export(load_recipe(recipe).quantize(network, options, None), folder / f"{recipe}.pt", recipe, options, info)


def run(name: str, folder: Path, architecture_name: str, batches: list[int], device: str) -> None:
    """Time one variant and print its rows; the first, fp32, leaves the features that the others are compared with."""
    import torch

    from dinoquant.machine import compute_threads
    from dinoquant.network import architecture
    from dinoquant.recipes.cast import DTYPES, Cast
    from dinoquant.runtimes.torchscript import as_call, load, random_images, set_up

    set_up(1 if device == "cpu" else compute_threads())  # on a CPU only the plan is tried
    variant, reference = VARIANTS[name], folder / "features.pt"
    network = architecture.seeded(architecture_name, None, 0)
    size = architecture.side(network)
    for batch in batches:
        torch._dynamo.reset()  # a compiled model is for one batch size
        images = random_images(batch, size, device, seed=0)
        if variant.compiled:
            cast = Cast(network.to(device, DTYPES[variant.recipe]), DTYPES[variant.recipe])
            model: Callable[..., torch.Tensor] = torch.compile(cast, mode="max-autotune", dynamic=False)
        else:
            model = load(folder / f"{variant.recipe}.pt", device)
        with torch.inference_mode():
            features = model(images).float().cpu()
        if not reference.exists():
            torch.save(features, reference)
        expected = torch.load(reference)
        common = min(len(features), len(expected), IMAGES)
        cosine = torch.nn.functional.cosine_similarity(features[:common], expected[:common]).mean()
        ms = timed(as_call(partial(model, images), device), 0.0 if device == "cpu" else TIMED_SECONDS)
        print(PREFIX + json.dumps(Row(name, batch, ms, float(cosine))), flush=True)


def timed(call: Callable[[], float], seconds: float) -> float:
    """Return the median ms of calls, after as many to warm up."""
    for _ in range(2):
        calls, start = [], time.perf_counter()
        while time.perf_counter() - start < seconds or len(calls) < FEWEST_CALLS:
            calls.append(call())
    return statistics.median(calls)


def products(rows: int, device: str) -> str:
    """Return, as text, the ms of a block's products over ``rows`` tokens alone, by each of PyTorch's operators."""
    import torch

    from dinoquant.runtimes.torchscript import as_call

    lines = [f"{f'{rows} x':16} {'bf16':>9} {'int8':>9} {'fp8':>9}  ms"]
    for inputs, outputs in PRODUCTS:
        left, right = (torch.rand(size, inputs, device=device) for size in (rows, outputs))
        scales = torch.ones(rows, 1, device=device), torch.ones(1, outputs, device=device)
        half, small = ((left.to(kind), right.to(kind).t()) for kind in (torch.bfloat16, torch.float8_e4m3fn))
        integers = (100 * left).to(torch.int8), (100 * right).to(torch.int8).t()
        line = f"{f'{inputs} x {outputs}':16}"
        for call in (
            partial(torch.mm, *half),
            partial(torch._int_mm, *integers),
            partial(torch._scaled_mm, *small, *scales, out_dtype=torch.bfloat16),
        ):
            try:
                line += f" {timed(as_call(call, device), 0.0 if device == 'cpu' else TIMED_SECONDS / 10):9.4f}"
            except (RuntimeError, ValueError):  # older GPUs multiply no fp8
                line += f" {'-':>9}"
        lines.append(line)
    return "\n".join(lines)


def limited(command: list[str], seconds: float) -> tuple[list[Row], str]:
    """Return the rows that a process printed within its limit, and why it printed no more ("" if it ended well)."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    why = ""
    try:
        printed, errors = process.communicate(timeout=seconds)
        if process.returncode:
            why = (errors.strip().splitlines() or [f"ended with {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that compile
        printed, _ = process.communicate()
        why = f"not within {seconds:.0f} s"
    lines = [line.removeprefix(PREFIX) for line in printed.splitlines() if line.startswith(PREFIX)]
    return [Row(*json.loads(line)) for line in lines], why


def table(rows: list[Row], left_out: dict[str, str]) -> str:
    """Return the rows as text, what was left out and why, and which bars are met at the saturating batch."""
    fp32 = {row.batch: row.ms for row in rows if row.variant == "fp32"}
    lines = [f"{'variant':16} {'batch':>5} {'ms':>9} {'images/s':>10} {'x fp32':>7} {'cosine':>8}"]
    for row in sorted(rows, key=lambda row: (row.batch, list(VARIANTS).index(row.variant))):
        gain = f"{fp32[row.batch] / row.ms:7.2f}" if row.batch in fp32 else f"{'':7}"
        right = "" if is_right(row) else f"  WRONG: below {VARIANTS[row.variant].cosine}"
        speed = 1e3 * row.batch / row.ms
        lines.append(f"{row.variant:16} {row.batch:5} {row.ms:9.3f} {speed:10.1f} {gain} {row.cosine:8.5f}{right}")
    lines += [f"left out: {name}: {why}" for name, why in left_out.items()]
    batch = max((row.batch for row in rows), default=0)
    ms = {row.variant: row.ms for row in rows if row.batch == batch}
    for one, other in BARS:
        verdict = "not measured" if not {one, other} <= ms.keys() else "met" if ms[one] <= ms[other] else "MISSED"
        lines.append(f"bar, batch {batch}: {one} at least as fast as {other}: {verdict}")
    return "\n".join(lines)


def is_right(row: Row) -> bool:
    """Tell whether the features are as close to fp32's as the variant's should be."""
    return row.cosine >= VARIANTS[row.variant].cosine


def main() -> None:
    """Run every variant within its limit and print the table; status 1 if features are wrong or nothing was timed."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="a small model at batch 2 and 1")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"default: {','.join(VARIANTS)}")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds for everything")
    parser.add_argument("--run", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = "test_vit" if options.small else "vit_small_patch16_224"
    batches = [2, 1] if options.small else list(BATCHES)
    if options.run:
        run(options.run[0], Path(options.run[1]), name, batches, options.device)
        return
    from dinoquant.machine import describe, require_device

    require_device(options.device)
    machine, rows, left_out = describe(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), name)
        for variant in options.variants.split(","):
            left = options.limit - (time.monotonic() - start)
            seconds = min(VARIANTS[variant].seconds, left)
            command = [sys.executable, __file__, *sys.argv[1:], "--run", variant, folder]
            done, why = limited(command, seconds) if seconds > 0 else ([], "no time left")
            rows += done
            if missing := [str(batch) for batch in batches if batch not in {row.batch for row in done}]:
                left_out[f"{variant} at batch {', '.join(missing)}"] = why or "the process printed nothing"
            print(f"{variant}: {len(done)} rows, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"{name}, {gpu_name(options.device) or machine['cpu']}, torch {machine['torch']}, timm {machine['timm']}")
    print(table(rows, left_out))
    print(products(batches[0] * (32 if options.small else 197), options.device))
    sys.exit(not rows or not all(map(is_right, rows)))


def gpu_name(device: str) -> str:
    """Return the name of the GPU in use, "" without one."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else ""


if __name__ == "__main__":
    main()
