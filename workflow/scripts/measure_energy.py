"""Measure the energy that one variant takes for an image; this process does nothing else."""

from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoquant.files import write_json
from dinoquant.job import job, log, span
from dinoquant.machine import describe, require_device, resolve_threads
from dinoquant.measure.energy import Meter, Unreadable, find_meter, measure, nothing
from dinoquant.network.card import read_card

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def measured(meter: Meter, model: Path, device: str, config: dict[str, Any]) -> dict[str, Any]:
    """Run the model as it is timed, and return what the meter saw."""
    # Imported here because a machine without a meter needs none of it, and it takes seconds.
    from dinoquant.runtimes.allocator import keep_freed_memory

    keep_freed_memory()  # before PyTorch allocates anything
    from dinoquant.measure.rounds import warm_up
    from dinoquant.recipes.base import engine
    from dinoquant.runtimes import TORCHSCRIPT
    from dinoquant.runtimes.pytorch import as_call, load, random_images, set_up
    from dinoquant.runtimes.remote import RemoteModel

    require_device(device)
    threads, card = resolve_threads(config["threads"], "latency.threads"), read_card(model)
    set_up(threads)
    images = random_images(config["batch_size"], card["image_size"], device, seed=0)
    with engine(card["engine"]) if card["engine"] else nullcontext(), ExitStack() as stack, span("measure"):
        if card["runtime"] == TORCHSCRIPT:
            call = as_call(partial(load(model, device), images), device)
        else:
            remote = RemoteModel(model, batch_size=config["batch_size"], threads=threads, timed=True)
            stack.enter_context(remote).ready(images)
            call = remote.time
        warm_up(call, config["seconds"])
        return {"threads": threads, **measure(meter, call, config["batch_size"], config["seconds"])}


if __name__ == "__main__":
    with job(snakemake):
        wildcards, config = snakemake.wildcards, snakemake.params.config
        try:
            result = measured(find_meter(wildcards.device), Path(snakemake.input.model), wildcards.device, config)
        except Unreadable as reason:
            log.debug("no energy: %s", reason)
            result = nothing(str(reason))
        identity = {"variant": wildcards.variant, "device": wildcards.device, "batch_size": config["batch_size"]}
        write_json(snakemake.output.json, {**identity, **result, "machine": describe()})
