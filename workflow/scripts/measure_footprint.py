"""Measure what one variant takes on disk and in memory, and its first answer; this process is the fresh one.

The models of other runtimes get one of theirs.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import write_json
from dinoquant.job import job, span
from dinoquant.machine import describe, require_device, resolve_threads
from dinoquant.network.card import read_card

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import torch

        from dinoquant.recipes.base import engine
        from dinoquant.runtimes import TORCHSCRIPT
        from dinoquant.runtimes.footprint import measure
        from dinoquant.runtimes.pytorch import as_call, load, random_images, set_up, wait_for
        from dinoquant.runtimes.remote import footprint

        model, wildcards = Path(snakemake.input.model), snakemake.wildcards
        device = wildcards.device
        require_device(device)
        card = read_card(model)
        threads = resolve_threads(snakemake.params.config["threads"], "latency.threads")
        set_up(threads)
        image = random_images(1, card["image_size"], device, seed=0)

        def load_model() -> Callable[[], object]:
            module = load(model, device)
            wait_for(device)
            return as_call(lambda: module(image), device)

        # Loading packs quantized weights for the engine in force, and PyTorch's default need not be the variant's.
        with engine(card["engine"]) if card["engine"] else nullcontext(), span("measure"):
            if card["runtime"] == TORCHSCRIPT:
                result = measure([model], load_model, torch.cuda.max_memory_reserved if device == "cuda" else None)
            else:
                result = footprint(model, threads=threads)
        identity = {"variant": wildcards.variant, "device": device, "threads": threads, "engine": card["engine"]}
        write_json(snakemake.output.json, {**identity, **result, "machine": describe()})
