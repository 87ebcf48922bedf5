"""Measure what one variant takes on disk and in memory, and its first answer; this process is the fresh one."""

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
        from dinoquant.footprint import measure
        from dinoquant.recipes.base import engine

        model, wildcards = Path(snakemake.input.model), snakemake.wildcards
        require_device(wildcards.device)
        card = read_card(model)
        # Loading packs quantized weights for the engine in force, and PyTorch's default need not be the variant's.
        with engine(card["engine"]) if card["engine"] else nullcontext(), span("measure"):
            result = measure(
                model,
                image_size=card["image_size"],
                device=wildcards.device,
                threads=resolve_threads(snakemake.params.config["threads"], "latency.threads"),
            )
        write_json(
            snakemake.output.json,
            {"variant": wildcards.variant, "engine": card["engine"], **result, "machine": describe()},
        )
