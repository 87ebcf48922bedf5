"""A small run of the whole workflow, made once, that tests copy and change."""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from warm import WarmSnakemake

from samples import copy_workflow

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


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmSnakemake]:
    """Snakemake, imported."""
    warm = WarmSnakemake()
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def checkout(warm: WarmSnakemake, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The workflow's files without any results."""
    folder = tmp_path_factory.mktemp("checkout") / "workflow"
    copy_workflow(folder)
    return Checkout(folder, warm)


@pytest.fixture(scope="session")
def finished(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A finished run of the small config, the same for all workers of pytest-xdist: read only, copy it to change it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    run, printed = Checkout(base / "finished", checkout.warm), base / "finished" / "stdout.txt"
    with FileLock(base / "finished.lock"):
        if not printed.exists():
            checkout.copy(run.folder)
            done = run.snakemake()
            assert done.returncode == 0, done.stdout
            printed.write_text(done.stdout)
    return run


@pytest.fixture
def run(finished: Checkout, tmp_path: Path) -> Checkout:
    """The finished small run, to be changed."""
    return finished.copy(tmp_path / "workflow")


@pytest.fixture
def fresh(checkout: Checkout, tmp_path: Path) -> Checkout:
    """The workflow's files without results, to be changed."""
    return checkout.copy(tmp_path / "workflow")
