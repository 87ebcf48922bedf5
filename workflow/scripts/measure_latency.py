"""Time one variant beside fp32, on one device and at one batch size."""

from typing import TYPE_CHECKING

from dinoquant.files import write_json
from dinoquant.job import job, record_span
from dinoquant.machine import compute_threads, resolve_threads
from dinoquant.measure.intervals import combine, noise_floor
from dinoquant.measure.process import Request, in_process, repeat
from dinoquant.measure.rounds import TimingProtocol

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        config, wildcards = snakemake.params.config, snakemake.wildcards
        variant, device, batch_size = wildcards.variant, wildcards.device, config["batch_size"]
        key = "thread_scaling" if snakemake.rule == "measure_scaling" else "threads"
        threads = resolve_threads(config["threads"], f"latency.{key}")
        protocol = TimingProtocol(**config["protocol"])
        request = Request(snakemake.input.model, snakemake.input.fp32, device, threads, batch_size, protocol)
        parts = repeat(lambda process, counts: in_process(request, process, counts), protocol)
        for part in parts:
            record_span("measure", part["started"], part["finished"])
        idle = compute_threads() - (threads if device == "cpu" else 1)  # a GPU is fed by one
        result = combine(parts, batch_size=batch_size, protocol=protocol, idle=idle)
        if variant == "fp32":
            result["noise_floor"] = noise_floor(result)
        identity = {"variant": variant, "device": device, "threads": threads}
        same = {name: parts[0][name] for name in ("engine", "runtime", "fixed", "machine", "started")}
        write_json(snakemake.output.json, {**identity, **same, **result, "finished": parts[-1]["finished"]})
