"""The terminal table is aligned, fits, and says why a row is empty."""

from pathlib import Path

import pandas as pd
import pytest

from dinoquant.report.summary import summarise, write_summary
from dinoquant.report.table import render
from samples import write_samples

AT = "node1,AMD EPYC 9B45"  # the columns node and cpu


@pytest.fixture
def csv_path(tmp_path: Path) -> Path:
    samples = write_samples(tmp_path, devices=("cpu", "cuda"))
    table = summarise(
        samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models, samples.summary_config
    )
    write_summary(table, tmp_path / "summary.csv")
    return tmp_path / "summary.csv"


def test_every_row_is_there_and_fits(csv_path: Path) -> None:
    lines = render(csv_path).splitlines()
    assert len(lines) == 1 + 9 * 2 * 2
    assert max(map(len, lines)) <= 120


def test_measured_rows_are_aligned(csv_path: Path) -> None:
    lines = render(csv_path).splitlines()
    assert len({len(line) for line in lines if "unsupported" not in line}) == 1
    bf16 = next(line for line in lines if line.startswith("bf16"))
    assert bf16.split() == ["bf16", "cpu", "1", "18.00", "3.12", "[3.05,", "3.18]", "43.5", "23.55", "0.9999"]


def test_unsupported_rows_say_why_within_the_width(csv_path: Path) -> None:
    lines = render(csv_path).splitlines()
    static = next(line for line in lines if line.startswith("int8-static") and "cuda" in line)
    assert "unsupported: quantized::linear_dynamic has no CUDA kernel" in static
    assert static.endswith("…")


def test_a_name_seen_only_in_unsupported_rows_keeps_the_alignment(csv_path: Path) -> None:
    csv_path.write_text(
        csv_path.read_text().replace("fp16,torchscript,cpu", "a-name-of-twenty-nine-letters,torchscript,cpu")
    )
    header, *lines = render(csv_path).splitlines()
    assert {line.split()[1] for line in lines} == {"cpu", "cuda"}
    assert all(line[header.index("device") :].startswith(("cpu", "cuda")) for line in lines)


def test_missing_values_are_dashes_and_long_names_are_cut(csv_path: Path) -> None:
    text = (
        csv_path.read_text()
        .replace("bf16,torchscript,cpu", f"{'b' * 60},torchscript,cpu")
        .replace(",0.98,1.02,", ",,,")
    )
    csv_path.write_text(text)
    lines = render(csv_path).splitlines()
    fp32 = next(line for line in lines if line.startswith("fp32"))
    assert "[" not in fp32
    assert any(line.startswith("b" * 29 + "… ") for line in lines)
    assert next(line for line in lines if line.startswith("fp16 ") and "ok" not in line and "cuda" in line).endswith(
        "-"
    )


def test_a_doubtful_timing_is_marked_and_explained_below(csv_path: Path) -> None:
    plain = render(csv_path).splitlines()
    rows = csv_path.read_text().replace(
        f"bf16,torchscript,cpu,1,2,{AT},ok,", f"bf16,torchscript,cpu,1,2,{AT},disturbed,5 % stolen"
    )
    csv_path.write_text(
        rows.replace(f"int8-static,torchscript,cpu,1,2,{AT},ok,", f"int8-static,torchscript,cpu,1,2,{AT},wide,+9 %")
    )
    lines = render(csv_path).splitlines()
    assert lines[len(plain) :] == [
        "~ wide: a second run may differ by more than 5 %: raise latency.rounds and latency.processes",
        "! disturbed: something else moved the speed-up: delete its file in results/latency and run again",
    ]
    marked = next(line for line in lines if line.startswith("bf16"))
    assert marked.split()[4:8] == ["3.12", "[3.05,", "3.18]!", "43.5"]
    assert len({len(line) for line in lines[: len(plain)] if "unsupported" not in line}) == 1


def test_what_the_machine_did_is_one_line(csv_path: Path) -> None:
    table = pd.read_csv(csv_path)
    timed = table["status"] != "unsupported"
    table.loc[timed, ["foreign_processors", "stolen_processors", "rounds_set_aside"]] = 0.1, 0.0, 0.25
    table.loc[timed.idxmax(), "foreign_processors"] = 0.9
    write_summary(table, csv_path)
    assert render(csv_path).splitlines()[-1].startswith("node1 meanwhile: other processes had 0.1")
    assert "(at most 0.90), other guests 0.00 (0.00); 25% of rounds" in render(csv_path)
