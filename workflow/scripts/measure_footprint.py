"""Measure what one variant takes on disk and in memory, and its first answer, in a fresh process."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import write_json
from dinoquant.job import job, span
from dinoquant.machine import describe, require_device, resolve_threads
from dinoquant.network.card import read_card
from dinoquant.runtimes.emulation import emulated
from dinoquant.runtimes.footprint import measure

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        model, wildcards = Path(snakemake.input.model), snakemake.wildcards
        require_device(wildcards.device)
        threads = resolve_threads(snakemake.params.config["threads"], "latency.threads")
        result: Mapping[str, object]
        if reason := emulated(model, wildcards.device):
            result = {"unsupported": reason}
        else:
            with span("measure"):
                result = measure(model, wildcards.device, threads)
        engine = read_card(model)["engine"]
        identity = {"variant": wildcards.variant, "device": wildcards.device, "threads": threads, "engine": engine}
        write_json(snakemake.output.json, {**identity, **result, "machine": describe()})
