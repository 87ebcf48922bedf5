"""The page on faults says nothing that no test sees."""

import re
from pathlib import Path

import pytest

from faults.kill import LOCKED

ROOT = Path(__file__).parents[2]
TESTS = "".join((ROOT / "tests" / name).read_text() for name in ("workflow/test_faults.py", "cluster/test_slurm.py"))
PAGE = (ROOT / "docs" / "faults" / "README.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_its_test_and_quotes_what_it_sees(row: list[str]) -> None:
    _, told, _, test = row
    [body] = [part for part in TESTS.split("\n\n\n") if f"def {test.strip('`')}(" in part]
    body = body.replace("LOCKED", LOCKED)
    for words in re.findall("`(.*?)`", told):
        assert words in body
