"""Every bad input ends with its message: nothing is executed, nothing escapes, nothing hangs."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cases import Case
from snakemake.common.configfile import load_configfile
from table import CASES, CHECK, made_with, row

PAGE = Path(__file__).parents[2] / "docs" / "hostile-input" / "README.md"
COMMAND = "PYTHONPATH=workflow/scripts:tests .venv/bin/python tests/hostile/table.py > docs/hostile-input/README.md"


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")  # PyTorch and zipfile warn about some of these
@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.what}" for case in CASES])
def test_bad_input(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    message = case.message(folder)
    assert case.words in message
    assert [path for path in tmp_path.rglob("*") if path.name in ("ran", "escaped")] == []
    assert [path.name for path in folder.parent.iterdir()] == ["c"]
    assert not Path("/tmp/escaped").exists()
    if made_with() in PAGE.read_text():
        assert row(case, message) in PAGE.read_text().splitlines(), f"the page is out of date: {COMMAND}"


@pytest.mark.parametrize("key", ["__use_yte__", r'"\x5f_use_yte\x5f_"'], ids=["plain", "disguised"])
def test_a_config_that_is_a_program_is_found_by_the_check_of_the_page(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = Path("theirs.yaml")
    check = [sys.executable, *shlex.split(CHECK)[1:]]
    program.write_text("seed: 1\n")
    assert subprocess.run(check, check=True, capture_output=True, text=True).stdout == "False\n"
    program.write_text(f"{key}: true\nseed: ?__import__('pathlib').Path('ran').touch()\n")
    assert subprocess.run(check, check=True, capture_output=True, text=True).stdout == "True\n"
    assert not Path("ran").exists()
    load_configfile(program)  # as Snakemake does first of all
    assert Path("ran").exists()


def test_the_page_was_made_with_these_versions() -> None:
    if made_with() not in PAGE.read_text():
        pytest.skip(f"the page was made with other versions than {made_with()}: its rows were not compared")


def test_the_page_has_no_rows_of_other_cases() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(CASES) + 3  # and the heads
