"""Time one variant beside fp32, on one device and at one batch size."""

from typing import TYPE_CHECKING

from dinoquant.files import write_json
from dinoquant.job import job, record_span
from dinoquant.machine import resolve_threads
from dinoquant.measure.process import in_process
from dinoquant.measure.rounds import Protocol, combine, noise_floor, repeat

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        config, wildcards = snakemake.params.config, snakemake.wildcards
        variant, device, batch_size = wildcards.variant, wildcards.device, config["batch_size"]
        key = "thread_scaling" if snakemake.rule == "measure_scaling" else "threads"
        threads = resolve_threads(config["threads"], f"latency.{key}")
        protocol = Protocol(**config["protocol"])
        request = {"device": device, "threads": threads, "batch_size": batch_size, "protocol": config["protocol"]}
        request |= {"model": snakemake.input.model, "fp32": snakemake.input.fp32}
        parts = repeat(lambda process, counts: in_process(**request, process=process, counts=counts), protocol)
        for part in parts:
            record_span("measure", part["started"], part["finished"])
        result = combine(parts, batch_size=batch_size, protocol=protocol)
        if variant == "fp32":
            result["noise_floor"] = noise_floor(result)
        identity = {"variant": variant, "device": device, "threads": threads}
        same = {name: parts[0][name] for name in ("engine", "runtime", "fixed", "machine", "started")}
        write_json(snakemake.output.json, {**identity, **same, **result, "finished": parts[-1]["finished"]})
