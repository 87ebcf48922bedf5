"""Fixtures that more than one kind of test uses."""

import os
from pathlib import Path

import pytest

# Before PyTorch is imported. The workers share the processors, and a thread that finds its own taken makes all others
# wait for it, spinning: with two threads in each of two processes most tests of PyTorch take ten times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# These files take minutes: begun last, one would be left to a single worker.
FIRST = ("cluster/test_slurm.py", "workflow/test_unusual_run.py", "workflow/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((n for n, start in enumerate(FIRST) if path.startswith(start)), len(FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and weights named by DINOQUANT_REAL_DATA; without it the test is skipped."""
    folder = os.environ.get("DINOQUANT_REAL_DATA")
    if not folder:
        pytest.skip("DINOQUANT_REAL_DATA is not set: no real images and weights here")
    return Path(folder)
