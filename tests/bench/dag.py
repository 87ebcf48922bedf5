"""Print what planning a large matrix costs: seconds and resident memory of `snakemake -n`, by the number of variants.

Planned are two devices and six batch sizes, for a cluster, whose devices this machine need not have: first with nothing
done, then with everything done (empty files stand for results), where Snakemake compares every job with its record.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
BAR_SECONDS = 15
# Snakemake's own --touch, except that it makes the files too and does not wait for the clock after each.
FINISH = """
import sys
from pathlib import Path
from snakemake.cli import main
from snakemake.executors import touch
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

def run_job(self, job):
    for path in job.output:
        path.touch_or_create()
        if path.endswith(".json"):  # the rules themselves read receipts
            Path(path).write_text('{"source": "another"}')
    self.report_job_submission(SubmittedJobInfo(job=job))
    self.report_job_success(SubmittedJobInfo(job=job))

touch.Executor.run_job = run_job
main(["--touch", "--no-hooks", *sys.argv[1:]])
"""


def write_config(path: Path, variants: int) -> None:
    """Write a config of so many variants, fp32 among them, all of which run on both devices."""
    config = {
        "dataset": {"source": "generated", "bank_per_class": 5, "queries": 60, "calibration_images": 16},
        "model": {"checkpoint": "seeded"},
        "devices": ["cpu", "cuda"],
        "latency": {"batch_sizes": [1, 2, 4, 8, 16, 32]},
        "presets": ["fp32"],
        "variants": {f"v{n:03d}": {"recipe": "bf16"} for n in range(1, variants)},
    }
    path.write_text(yaml.safe_dump(config))


def timed(command: list[str]) -> tuple[str, float, float, float]:
    """Run a command; return what it printed, its wall and processor time in s, and its peak resident memory in MB."""
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        printed.seek(0)
        text = printed.read()
    if status:
        raise SystemExit(text)
    kib = 1 if sys.platform == "darwin" else 1024
    return text, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kib / 1e6


def rows(variants: int) -> list[dict[str, object]]:
    """Return the measurements for so many variants, with nothing and with everything done."""
    with tempfile.TemporaryDirectory() as name:
        write_config(Path(name) / "config.yaml", variants)
        cluster = ["--executor", "slurm", "--jobs", "50", "--workflow-profile", "profiles/slurm"]
        arguments = [*cluster, "--directory", name, "--configfile", f"{name}/config.yaml"]
        plan = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", *arguments]
        found = []
        for done in ("nothing", "everything"):
            if done == "everything":
                timed([sys.executable, "-c", FINISH, *arguments])
            text, wall, processor, memory = timed(plan)
            total = re.search(r"^total +(\d+)$", text, re.MULTILINE)
            found.append(
                {
                    "variants": variants,
                    "done": done,
                    "jobs to run": int(total[1]) if total else 0,
                    "wall s": wall,
                    "processor s": processor,
                    "memory MB": memory,
                    "below the bar": wall < BAR_SECONDS,
                }
            )
    return found


def main() -> None:
    """Print a row for each size of the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, nargs="+", default=[10, 50, 200])
    table = pd.DataFrame([row for variants in parser.parse_args().variants for row in rows(variants)])
    print(f"2 devices, 6 batch sizes; the bar is {BAR_SECONDS} s of wall time")
    print(table.to_string(index=False, float_format="%.1f"))


if __name__ == "__main__":
    main()
