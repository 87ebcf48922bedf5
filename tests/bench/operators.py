"""Print where int8-smooth spends its time, operator by operator, and how far that is from what this machine can do.

The limit is the time of all products at the speed of one large product: int8 for the Linears, bf16 for attention.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from timm.models import VisionTransformer
from torch.profiler import ProfilerActivity, profile

from dinoquant.export import export, load
from dinoquant.model import info, seeded
from dinoquant.recipes import smooth

ARCHITECTURE = "vit_small_patch16_224"
OPTIONS = {"recipe": "int8-smooth", "attention": "bf16"}
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


def peaks() -> tuple[float, float]:
    """Return the multiply-adds per second of a large int8 product and of a large bf16 product."""
    rows, width = 2048, 1536
    weight = torch.ops.onednn.qlinear_prepack(torch.ones(width, width, dtype=torch.int8), None)
    inputs, scale, zeros = torch.ones(rows, width, dtype=torch.uint8), torch.ones(width), torch.zeros(width).long()
    product = torch.ops.onednn.qlinear_pointwise
    arguments = (inputs, 1.0, 0, weight, scale, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")
    left, right = torch.ones(rows, width, dtype=torch.bfloat16), torch.ones(width, width, dtype=torch.bfloat16)
    macs = rows * width * width
    return macs / seconds(lambda: product(*arguments)), macs / seconds(lambda: left @ right)


def macs(model: VisionTransformer) -> tuple[int, int]:
    """Return the multiply-adds for one image: of the Linears with the patch embedding, and of attention."""
    patches, width = model.patch_embed.num_patches, model.embed_dim
    tokens = patches + model.num_prefix_tokens
    linears = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)) * tokens
    attention = 2 * tokens * tokens * width * len(model.blocks)
    return linears + model.patch_embed.proj.weight.numel() * patches, attention


def main() -> None:
    """Print one table for batch 1 and one for batch 16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    warnings.simplefilter("ignore")  # of TorchScript, which is deprecated
    model = seeded(ARCHITECTURE, None, 0)
    images = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        described = info(model, ARCHITECTURE, "architecture", substitute=None, dropped=())
        export(smooth.quantize(model, OPTIONS, images), path, "int8-smooth", OPTIONS, described)
        file = load(path)
    int8, bf16 = peaks()
    linears, attention = macs(model)
    limit = linears / int8 + attention / bf16
    print(f"one large product: int8 {2e-12 * int8:.2f} TOP/s, bf16 {2e-12 * bf16:.2f} TOP/s")
    print(f"{ARCHITECTURE}: Linears {linears / 1e9:.2f} GMAC, attention {attention / 1e9:.2f} GMAC an image")
    print(f"limit: {1e3 * limit:.1f} ms an image\n")
    for batch in (1, 16):
        part = images[:batch]
        image = seconds(lambda part=part: file(part)) / batch  # type: ignore[misc]  # mypy cannot infer it
        print(f"batch {batch}: {1e3 * image:.2f} ms an image, {image / limit:.2f} times the limit; share of the time:")
        with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(5):
                file(part)
        events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        for event in events[:10]:
            print(f"  {event.self_cpu_time_total / total:6.1%}  {event.count // 5:4d} calls  {event.key}")


if __name__ == "__main__":
    main()
