"""Time one variant beside fp32, on one device and at one batch size."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import write_json
from dinoquant.job import job, span
from dinoquant.machine import describe, require_device, resolve_threads
from dinoquant.model_file import read_card

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.latency import Protocol, measure
        from dinoquant.recipes.base import engine

        config, wildcards = snakemake.params.config, snakemake.wildcards
        model = Path(snakemake.input.model)
        require_device(wildcards.device)
        card = read_card(model)
        # Loading packs quantized weights for the engine in force, and PyTorch's default need not be the variant's.
        with engine(card["engine"]) if card["engine"] else nullcontext(), span("measure"):
            result = measure(
                model,
                Path(snakemake.input.fp32),
                image_size=card["image_size"],
                batch_size=int(wildcards.batch),
                device=wildcards.device,
                threads=resolve_threads(config["threads"], "latency.threads"),
                protocol=Protocol(config["rounds"], config["block_seconds"], config["warmup_seconds"], config["seed"]),
            )
        write_json(
            snakemake.output.json,
            {"variant": wildcards.variant, "engine": card["engine"], **result, "machine": describe()},
        )
