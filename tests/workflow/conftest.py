"""A small run of the whole workflow, made once, that tests copy and change."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import Checkout
from filelock import FileLock
from warm import WarmSnakemake

from samples import copy_workflow


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
