"""Print what a run would take, for its stale jobs: `make estimate CONFIG=my.yaml`. Not part of the workflow."""

import argparse
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from snakemake.utils import update_config

from dinoquant.config import complete
from dinoquant.errors import UserError
from dinoquant.machine import compute_threads, resolve_threads
from dinoquant.report.estimate import Job, Measured, render, stages

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("all", "download", "models", "figures", "sensitivity")
# A job of a dry run: its rule, and its wildcards if it has some.
JOB = re.compile(r"^(?:local)?rule (\w+):\n(?:    (?!wildcards).*\n)*(?:    wildcards: (.*)\n)?", re.MULTILINE)


def read_config(files: Sequence[Path]) -> dict[str, Any]:
    """Return the config as the Snakefile completes it; UserError for a file that is none."""
    config: dict[str, Any] = {}
    for file in (ROOT / "config" / "config.yaml", *files):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise UserError(f"{file}: found {str(content)[:80]!r}, expected keys with values, as in config/config.yaml")
        update_config(config, content)
    return complete(config, yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8")))


def jobs_of(dry_run: str) -> list[Job]:
    """Return the jobs of a dry run's output."""
    return [
        (rule, dict(pair.split("=", 1) for pair in wildcards.split(", ")) if wildcards else {})
        for rule, wildcards in JOB.findall(dry_run)
        if rule not in TARGETS
    ]


def stale_jobs(files: Sequence[Path], cores: str) -> list[Job]:
    """Return the jobs that Snakemake would run now."""
    configs = ["--configfile", *map(str, files)] if files else []
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", cores]
    command += ["--snakefile", str(ROOT / "Snakefile"), *configs]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise UserError(done.stdout)
    return jobs_of(done.stdout)


def seconds_of(call: Callable[[], object]) -> float:
    """Return the median of a few calls, after one that does not count, within about three seconds."""
    call()
    end, times = time.perf_counter() + 3, []
    while len(times) < 3 or (len(times) < 10 and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def measure(config: Mapping[str, Any]) -> Measured:
    """Build the float32 network with seeded weights, and time it and a process start on this machine's processors."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import timm"], check=True)
    started = time.perf_counter() - start
    import torch

    from dinoquant.network import architecture

    model = config["model"]
    network = architecture.seeded(model["architecture"], model["image_size"], config["seed"], model["pooling"]).eval()
    side, accuracy = architecture.side(network), config["accuracy"]

    def call(count: int) -> float:
        batch = torch.zeros(count, 3, side, side)
        return seconds_of(lambda: network(batch))

    with torch.inference_mode():
        torch.set_num_threads(resolve_threads(config["latency"]["threads"], "latency.threads"))
        calls = {count: call(count) for count in config["latency"]["batch_sizes"]}
        torch.set_num_threads(min(accuracy["threads"], compute_threads()))
        image = call(accuracy["batch_size"]) / accuracy["batch_size"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    linears = sum(isinstance(module, torch.nn.Linear) for module in network.modules())
    return Measured(calls, image, started, parameters, linears, peak)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, nargs="+", default=[], help="what differs from config/config.yaml")
    parser.add_argument("--cores", default="all", help="as for Snakemake")
    options = parser.parse_args()
    try:
        config = read_config(options.configfile)
        jobs = stale_jobs(options.configfile, options.cores)
        measured = measure(config) if jobs else None
    except UserError as error:
        sys.exit(str(error))
    if measured is None:
        print("Nothing to be done.")
    else:
        cores = compute_threads() if options.cores == "all" else int(options.cores)
        print(render(stages(jobs, config, measured), config, measured, cores))
