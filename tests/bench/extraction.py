"""Print what feature extraction costs over the model alone on ready input: images per second, and the overhead.

Comparing with the seconds inside the extraction's own model calls would hide that preparing images empties the caches
and so slows these calls down. The model therefore also runs alone, over the same batches, in turns with the extraction.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch

from dinoquant.judge.features import extract, prepared

ARCHITECTURE = "vit_small_patch16_224"
INFO = {"image_size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "feature_dim": 384}
BAR = 0.15


def traced_models() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the model in fp32, and in dynamic int8, about four times as fast: the faster, the larger the overhead."""
    torch.manual_seed(0)
    fp32 = timm.create_model(ARCHITECTURE, num_classes=0).eval()
    int8 = torch.ao.quantization.quantize_dynamic(fp32, {torch.nn.Linear}, dtype=torch.qint8)
    example = torch.zeros(2, 3, 224, 224)
    return {name: torch.jit.freeze(torch.jit.trace(m, example)) for name, m in (("fp32", fp32), ("int8", int8))}


@torch.inference_mode()
def seconds_alone(model: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor]) -> float:
    """Return the seconds that the model takes over ready batches."""
    start = time.perf_counter()
    for batch in batches:
        model(batch)
    return time.perf_counter() - start


def main() -> None:
    """Measure both models in turns and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of the deprecated quantization and TorchScript, and of tracing

    indices = np.arange(options.images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        shape = (options.images, 3, 64, 64)  # Tiny ImageNet's
        np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        images = np.load(path, mmap_mode="r")
        batches = list(prepared(images, indices, options.batch_size, INFO, "cpu"))

        def seconds_extracting(model: Callable[[torch.Tensor], torch.Tensor]) -> float:
            _, timing = extract(
                model, images, indices, batch_size=options.batch_size, info=INFO, device="cpu", variant="bench"
            )
            return timing.seconds

        print(f"{ARCHITECTURE}, {options.threads} threads, batches of {options.batch_size}, {options.rounds} rounds")
        print("model  alone images/s  extracting images/s  overhead (median, quartiles over rounds)")
        for name, model in traced_models().items():
            seconds_alone(model, batches[:2])
            alone, extracting = np.array(
                [(seconds_alone(model, batches), seconds_extracting(model)) for _ in range(options.rounds)]
            ).T
            low, median, high = np.quantile(extracting / alone - 1, [0.25, 0.5, 0.75])
            rates = [options.images / np.median(seconds) for seconds in (alone, extracting)]
            print(
                f"{name:5}  {rates[0]:14.1f}  {rates[1]:19.1f}  {median:+.1%} ({low:+.1%} to {high:+.1%})"
                f"  {'below' if median < BAR else 'ABOVE'} the bar of {BAR:.0%}"
            )


if __name__ == "__main__":
    main()
