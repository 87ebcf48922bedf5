"""Time one variant beside fp32, on one device and at one batch size."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import read_through, write_json
from dinoquant.job import job, span
from dinoquant.machine import describe, require_device, resolve_threads
from dinoquant.model_file import read_card

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.allocator import keep_freed_memory

        allocator = keep_freed_memory()  # before PyTorch allocates anything
        from dinoquant.latency import Protocol, measure
        from dinoquant.recipes.base import engine
        from dinoquant.torchscript import as_call, load, random_images, set_up

        config, wildcards = snakemake.params.config, snakemake.wildcards
        batch_size, device = int(wildcards.batch), wildcards.device
        files = {"variant": Path(snakemake.input.model), "fp32": Path(snakemake.input.fp32)}
        require_device(device)
        threads = resolve_threads(config["threads"], "latency.threads")
        card = read_card(files["variant"])
        fixed = {"allocator": allocator, **set_up(threads)}
        for file in files.values():
            read_through(file)  # so that no page of it has to come from the disk
        images = random_images(batch_size, card["image_size"], device, config["seed"])
        # Loading packs quantized weights for the engine in force, and PyTorch's default need not be the variant's.
        with engine(card["engine"]) if card["engine"] else nullcontext(), span("measure"):
            models = {arm: load(file, device) for arm, file in files.items()}
            result = measure(
                {arm: as_call(partial(model, images), device) for arm, model in models.items()},
                batch_size=batch_size,
                protocol=Protocol(config["rounds"], config["block_seconds"], config["warmup_seconds"], config["seed"]),
            )
        identity = {"variant": wildcards.variant, "device": device, "threads": threads, "engine": card["engine"]}
        write_json(snakemake.output.json, {**identity, "fixed": fixed, **result, "machine": describe()})
