"""Fixtures that more than one kind of test uses."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and weights named by DINOQUANT_REAL_DATA; without it the test is skipped."""
    folder = os.environ.get("DINOQUANT_REAL_DATA")
    if not folder:
        pytest.skip("DINOQUANT_REAL_DATA is not set: no real images and weights here")
    return Path(folder)
