"""A copy of the workflow's files, in which tests run Snakemake."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml
from warm import WarmSnakemake

ROOT = Path(__file__).parents[2]
TARGETS = ("all", "download", "models", "figures", "sensitivity", "verify")
# A job of a dry run: its rule, and its wildcards if it has some.
JOB = re.compile(r"^(?:local)?rule (\w+):\n(?:    (?!wildcards).*\n)*(?:    wildcards: (.*)\n)?", re.MULTILINE)


@dataclass(frozen=True)
class Checkout:
    """A copy of the workflow's files in a folder of its own, with or without results."""

    folder: Path
    warm: WarmSnakemake

    def snakemake(self, *arguments: str, overlay: dict | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on the small config, with `overlay` on top of it; stdout and stderr together."""
        configs = ["config/demo.yaml", "tests/small.yaml"]
        if overlay is not None:
            (self.folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
            configs.append("overlay.yaml")
        output = self.folder / "output.txt"
        # Snakemake ends only after such a timespan, for which the profile has three seconds.
        quick = ("--max-jobs-per-timespan", "100/1s")
        return self.warm.run(
            *("--cores", "2", *quick, *arguments, "--configfile", *configs), folder=self.folder, output=output, env=env
        )

    def stale(self, *arguments: str, overlay: dict | None = None) -> Counter[str]:
        """Return the jobs that a run would do now, as `rule` or `rule wildcard=value,...`; targets do not count."""
        done = self.snakemake("--dry-run", *arguments, overlay=overlay)
        assert done.returncode == 0, done.stdout
        jobs = JOB.findall(done.stdout)
        return Counter(f"{rule} {wildcards}".strip() for rule, wildcards in jobs if rule not in TARGETS)

    def copy(self, folder: Path) -> "Checkout":
        shutil.copytree(self.folder, folder, symlinks=True)  # keeps time stamps
        return Checkout(folder, self.warm)
