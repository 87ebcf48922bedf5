"""Time one variant beside fp32, on one device and at one batch size."""

from contextlib import ExitStack, nullcontext
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
        from dinoquant.latency import Protocol, measure, noise_floor
        from dinoquant.recipes.base import engine
        from dinoquant.runtimes import TORCHSCRIPT, files
        from dinoquant.runtimes.remote import RemoteModel
        from dinoquant.torchscript import as_call, as_device_call, load, preparation, random_images, set_up

        config, wildcards = snakemake.params.config, snakemake.wildcards
        batch_size, device = config["batch_size"], wildcards.device
        model, fp32 = Path(snakemake.input.model), Path(snakemake.input.fp32)
        require_device(device)
        key = "thread_scaling" if snakemake.rule == "measure_scaling" else "threads"
        threads = resolve_threads(config["threads"], f"latency.{key}")
        card = read_card(model)
        fixed = {"allocator": allocator, **set_up(threads)}
        for file in (*files(model), fp32):
            read_through(file)  # so that no page of it has to come from the disk
        images = random_images(batch_size, card["image_size"], device, config["seed"])
        prepare = preparation(batch_size, card, device)
        passes = {"preprocess": prepare, "end_to_end": lambda: prepare() + call()}
        runtime = {"name": card["runtime"]}
        # Loading packs quantized weights for the engine in force, and PyTorch's default need not be the variant's.
        with engine(card["engine"]) if card["engine"] else nullcontext(), ExitStack() as stack, span("measure"):
            if card["runtime"] == TORCHSCRIPT:
                run = partial(load(model, device), images)
                call = as_call(run, device)
                if device == "cuda":
                    passes["device"] = as_device_call(run)
            else:
                remote = RemoteModel(model, batch_size=batch_size, threads=threads, timed=True)
                runtime |= stack.enter_context(remote).about()
                remote.ready(images)
                call = remote.time
            result = measure(
                {"variant": call, "fp32": as_call(partial(load(fp32, device), images), device)},
                batch_size=batch_size,
                protocol=Protocol(config["rounds"], config["block_seconds"], config["warmup_seconds"], config["seed"]),
                passes=passes,
                probe=preparation(1, card, device),
            )
        if wildcards.variant == "fp32":
            result["noise_floor"] = noise_floor(result)
        identity = {"variant": wildcards.variant, "device": device, "threads": threads, "engine": card["engine"]}
        write_json(
            snakemake.output.json, {**identity, "runtime": runtime, "fixed": fixed, **result, "machine": describe()}
        )
