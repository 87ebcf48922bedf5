"""Measure the energy that one variant takes for an image; this process does nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoquant.files import write_json
from dinoquant.job import job, log, span
from dinoquant.machine import describe, require_device, resolve_threads
from dinoquant.measure.energy import Meter, Unreadable, find_meter, measure, unmeasured
from dinoquant.runtimes.emulation import emulated

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def measured(meter: Meter, path: Path, device: str, config: dict[str, Any]) -> dict[str, Any]:
    """Run the model as it is timed, and return what the meter read."""
    # Imported here because a machine without a meter needs none of it, and it takes seconds.
    from dinoquant.runtimes.allocator import keep_freed_memory

    keep_freed_memory()  # before PyTorch allocates anything
    from dinoquant.measure.rounds import warm_up
    from dinoquant.runtimes.opened import open_model
    from dinoquant.runtimes.torchscript import random_images

    require_device(device)
    threads, batch_size = resolve_threads(config["threads"], "latency.threads"), config["batch_size"]
    with span("measure"), open_model(path, device, threads=threads, batch_size=batch_size, timed=True) as model:
        model.ready(random_images(batch_size, model.card["image_size"], device, seed=0))
        warm_up(model.time, config["seconds"])
        return {"threads": threads, **measure(meter, model.time, batch_size, config["seconds"])}


if __name__ == "__main__":
    with job(snakemake):
        wildcards, config = snakemake.wildcards, snakemake.params.config
        try:
            meter, model = find_meter(wildcards.device), Path(snakemake.input.model)
            if emulation := emulated(model, wildcards.device):
                raise Unreadable(emulation)
            result = measured(meter, model, wildcards.device, config)
        except Unreadable as reason:
            log.debug("no energy: %s", reason)
            result = unmeasured(str(reason))
        identity = {"variant": wildcards.variant, "device": wildcards.device, "batch_size": config["batch_size"]}
        write_json(snakemake.output.json, {**identity, **result, "machine": describe()})
