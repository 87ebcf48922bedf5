"""Measure what this machine can do at most on one device: the roofs that models stay below."""

from typing import TYPE_CHECKING

from dinoquant.files import write_json
from dinoquant.job import job, span
from dinoquant.machine import describe, require_device, resolve_threads

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.runtimes.allocator import keep_freed_memory

        allocator = keep_freed_memory()  # before PyTorch allocates anything
        from dinoquant.measure.peaks import measure

        device = snakemake.wildcards.device
        require_device(device)
        threads = resolve_threads(snakemake.params.config["threads"], "latency.threads")
        with span("measure"):
            result = measure(device, threads)
        write_json(snakemake.output.json, {**result, "allocator": allocator, "machine": describe()})
