"""Two runs differ only where the difference is more than noise, and what cannot be compared is said."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinoquant.errors import UserError
from dinoquant.report.compare import compare
from samples import Samples, write_samples, write_tables

SCRIPT = Path(__file__).parents[2] / "workflow/scripts/compare.py"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Samples, Samples]:
    """Two equal runs."""
    return write_samples(tmp_path / "a"), write_samples(tmp_path / "b")


def change(samples: Samples, pattern: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace keys of the result files below `results` whose path fits."""
    paths = list((samples.root / "results").glob(pattern))
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | edit(content)))


def compared(runs: tuple[Samples, Samples]) -> str:
    for samples in runs:
        write_tables(samples)
        (samples.root / "results/summary.csv").write_text((samples.root / "summary.csv").read_text())
    return compare(*(samples.root / "results" for samples in runs))


def verdict(text: str, variant: str, batch: int = 1) -> str:
    (line,) = (line for line in text.splitlines() if line.split()[:3] == [variant, "cpu", str(batch)])
    header = next(line for line in text.splitlines() if line.startswith("variant "))
    return line[header.index("verdict") :]


def times(factor: float, *names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Scale measurements together with their intervals."""
    return lambda content: {key: factor * content[key] for key in content if key.startswith(names) and content[key]}


def test_equal_runs_have_not_changed(runs: tuple[Samples, Samples]) -> None:
    text = compared(runs)
    assert verdict(text, "bf16") == "no change"
    assert verdict(text, "fp16") == "unsupported in both"
    assert "Machine, versions and commit: the same; inputs and config are not known" in text
    assert text.endswith("0 of 18 rows changed beyond noise, or cannot be judged.")


def test_a_timing_has_changed_if_its_intervals_are_disjoint(runs: tuple[Samples, Samples]) -> None:
    change(runs[1], "latency/cpu/bf16/batch1.json", times(1.2, "latency_p50"))
    change(runs[1], "latency/cpu/bf16/batch16.json", times(1.03, "latency_p50"))  # intervals of -1.5 to +2 %
    change(runs[1], "latency/cpu/int8-static/batch1.json", times(1.1, "speedup"))
    text = compared(runs)
    assert verdict(text, "bf16") == "p50 +20.0%"
    assert verdict(text, "bf16", 16) == "no change"
    assert verdict(text, "int8-static") == "speed-up +10.0%"
    assert "18.00 -> 21.60" in text


@pytest.mark.parametrize("disturbed", [0, 1])
@pytest.mark.parametrize("factor", [1.2, 1 / 1.2])
def test_the_noise_floor_of_either_run_counts(runs: tuple[Samples, Samples], disturbed: int, factor: float) -> None:
    change(runs[1], "latency/cpu/bf16/batch1.json", times(factor, "speedup"))
    change(runs[disturbed], "latency/cpu/fp32/batch1.json", lambda _: {"noise_floor": 0.25})
    assert verdict(compared(runs), "bf16") == "no change"


def test_a_change_that_no_noise_floor_was_measured_for_says_so(runs: tuple[Samples, Samples]) -> None:
    change(runs[1], "latency/cpu/bf16/batch1.json", times(1.2, "speedup"))
    change(runs[1], "latency/cpu/fp32/batch1.json", lambda _: {"noise_floor": None})
    assert verdict(compared(runs), "bf16") == "speed-up +20.0%, without a noise floor to judge by"


def test_what_does_not_depend_on_the_moment_is_compared_exactly(runs: tuple[Samples, Samples]) -> None:
    change(runs[1], "accuracy/bf16.json", lambda content: {"cosine_mean": content["cosine_mean"] - 0.00002})
    change(runs[1], "accuracy/int8-static.json", lambda _: {"knn_top1": 20.0})
    model = next(path for path in runs[1].models if path.parent.name == "int8-weight-only")
    with model.open("r+b") as stream:
        stream.truncate(25_000_000)
    text = compared(runs)
    assert verdict(text, "bf16") == "cosine -2e-05"
    assert verdict(text, "int8-static") == "k-NN +1.9"
    assert verdict(text, "int8-weight-only", 16) == "size +1.9"


def test_doubt_is_part_of_the_verdict(runs: tuple[Samples, Samples]) -> None:
    doubt = {"verdict": "disturbed", "verdict_reason": "5 % stolen"}
    change(runs[1], "latency/cpu/bf16/batch1.json", lambda _: doubt)
    for samples in runs:
        change(samples, "latency/cpu/int8-static/batch1.json", lambda _: doubt)
    change(runs[1], "latency/cpu/int8-static/batch1.json", times(2, "latency_p50"))
    text = compared(runs)
    assert verdict(text, "bf16") == "status ok -> disturbed"
    assert verdict(text, "int8-static") == "p50 +100.0%, timings disturbed"


def test_without_intervals_nothing_is_called_noise_or_change(runs: tuple[Samples, Samples]) -> None:
    change(runs[0], "latency/cpu/bf16/batch1.json", lambda _: {"speedup_ci_low": None, "speedup_ci_high": None})
    assert verdict(compared(runs), "bf16") == "speed-up +0.0%, without intervals to judge by"


def test_machines_versions_and_commits_that_differ_are_named(runs: tuple[Samples, Samples]) -> None:
    def elsewhere(content: dict[str, Any]) -> dict[str, Any]:
        git = content["machine"]["git"] | {"commit": "fedcba"}
        return {"machine": content["machine"] | {"cpu": "Xeon", "torch": "2.16.0", "git": git}}

    change(runs[1], "latency/cpu/*/*.json", elsewhere)
    text = compared(runs)
    assert "  cpu: AMD EPYC 9B45 -> Xeon" in text
    assert "  torch: 2.15.0 -> 2.16.0" in text
    assert "  commit: 0123456789abcdef0123456789abcdef01234567 -> fedcba" in text
    assert "  timm:" not in text


def test_inputs_and_config_that_differ_are_named(runs: tuple[Samples, Samples]) -> None:
    assert "inputs and config are not known" in compared(runs)
    record = {"inputs": {"checkpoint": {"sha256": 64 * "a"}}, "config": {"accuracy": {"k": 10}, "variants": {"x": {}}}}
    other = {
        "inputs": {"checkpoint": {"sha256": 64 * "b"}},
        "config": {"accuracy": {"k": 20}, "variants": {"y": {"a": 1}}},
    }
    for samples, content in zip(runs, (record, other), strict=True):
        (samples.root / "results/provenance.json").write_text(json.dumps(content))
    differing = "What differs:\n  checkpoint: aaaaaaaaaaaa -> bbbbbbbbbbbb\n  accuracy.k: 10 -> 20\n\n"
    assert differing in compared(runs)
    (runs[1].root / "results/provenance.json").write_text(json.dumps(record))
    assert "Machine, versions, commit, inputs and config: the same\n" in compared(runs)


@pytest.mark.parametrize("keep", [0, 500])
def test_a_summary_that_is_cut_off_is_an_error(runs: tuple[Samples, Samples], keep: int) -> None:
    compared(runs)
    summary = runs[1].root / "results/summary.csv"
    summary.write_text(summary.read_text()[: len(summary.read_text().splitlines()[0]) + keep])
    with pytest.raises(UserError, match="is broken"):
        compare(runs[0].root / "results", summary.parent)


def test_that_nothing_can_be_compared_is_said(runs: tuple[Samples, Samples]) -> None:
    compared(runs)
    summary = runs[1].root / "results/summary.csv"
    summary.write_text(summary.read_text().replace(",cpu,", ",cuda,"))
    assert compare(runs[0].root / "results", summary.parent).endswith("No row is in both: nothing is compared.")


def test_rows_that_only_one_has_and_older_results(runs: tuple[Samples, Samples]) -> None:
    compared(runs)
    summaries = [samples.root / "results/summary.csv" for samples in runs]
    lines = summaries[0].read_text().splitlines()
    column = lines[0].split(",").index("noise_floor")
    older = [line.split(",") for line in lines if not line.startswith("int8-static")]
    summaries[0].write_text("\n".join(",".join(cells[:column] + cells[column + 1 :]) for cells in older))
    text = compare(*(path.parent for path in summaries))
    assert "Only in B: int8-static cpu 1, int8-static cpu 16" in text
    assert verdict(text, "bf16") == "no change"


def test_from_the_command_line(runs: tuple[Samples, Samples], tmp_path: Path) -> None:
    text = compared(runs)
    command = [sys.executable, SCRIPT, *(samples.root / "results" for samples in runs)]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == text
    with pytest.raises(UserError, match="nowhere has no summary"):
        compare("nowhere", tmp_path)
    assert subprocess.run([*command[:2], "nowhere", "nowhere"], capture_output=True).returncode == 1
