"""Fixtures that more than one kind of test uses."""

import os
from pathlib import Path

import pytest

# Before PyTorch is imported. The workers share the processors, and a thread that finds its own taken makes all others
# wait for it, spinning: with two threads in each of two processes most tests of PyTorch take ten times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and weights named by DINOQUANT_REAL_DATA; without it the test is skipped."""
    folder = os.environ.get("DINOQUANT_REAL_DATA")
    if not folder:
        pytest.skip("DINOQUANT_REAL_DATA is not set: no real images and weights here")
    return Path(folder)
