"""Time one variant beside fp32, on one device and at one batch size."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoquant.files import write_json
from dinoquant.job import job, record_span
from dinoquant.machine import describe, processors, resolve_threads
from dinoquant.measure.intervals import combine, noise_floor
from dinoquant.measure.process import Request, in_process, repeat
from dinoquant.measure.rounds import TimingProtocol
from dinoquant.runtimes.emulation import emulated

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def timed(request: Request, baseline: bool) -> dict[str, Any]:
    """Return the result of all processes; ``baseline``: with the noise floor, as the variant is fp32 itself."""
    parts = repeat(lambda process, counts: in_process(request, process, counts), request.protocol)
    for part in parts:
        record_span("measure", part["started"], part["finished"])
    # Of the processors that are watched: a container with a quota may run on all, whoever else is busy on some.
    idle = processors() - (request.threads if request.device == "cpu" else 1)  # a GPU is fed by one
    result = combine(parts, batch_size=request.batch_size, protocol=request.protocol, idle=idle)
    if baseline:
        result["noise_floor"] = noise_floor(result)
    same = {name: parts[0][name] for name in ("engine", "runtime", "fixed", "machine", "started")}
    return {**same, **result, "finished": parts[-1]["finished"]}


if __name__ == "__main__":
    with job(snakemake):
        config, wildcards = snakemake.params.config, snakemake.wildcards
        variant, device, batch_size = wildcards.variant, wildcards.device, config["batch_size"]
        key = "thread_scaling" if snakemake.rule == "measure_scaling" else "threads"
        threads = resolve_threads(config["threads"], f"latency.{key}")
        protocol = TimingProtocol(**config["protocol"])
        request = Request(snakemake.input.model, snakemake.input.fp32, device, threads, batch_size, protocol)
        if reason := emulated(Path(request.model), device):
            result = {"batch_size": batch_size, "unsupported": reason, "machine": describe()}
        else:
            result = timed(request, baseline=variant == "fp32")
        write_json(snakemake.output.json, {"variant": variant, "device": device, "threads": threads, **result})
