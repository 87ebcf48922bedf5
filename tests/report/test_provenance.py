"""The record of a run, and what a changed folder looks like beside it."""

import hashlib
import json
from pathlib import Path

import pytest

from dinoquant.machine import describe
from dinoquant.report import provenance
from dinoquant.report.provenance import differences, record

FILES = {
    "results/models/fp32/model.pt": "weights",
    "results/accuracy/fp32.json": "{}",
    "results/latency/cpu/fp32/batch1.json": json.dumps({"machine": {"node": "a"}}),
    "results/latency/cpu/fp32/batch2.json": json.dumps({"machine": {"node": "b"}}),
    "results/latency/cpu/fp32/batch4.json": json.dumps({"machine": {"node": "a"}}),
    "results/features/fp32.json": json.dumps({"seconds": 1, "machines": [{"node": "a"}, {"node": "only extracts"}]}),
    "results/summary.csv": "variant\n",
    "resources/a.zip": "archive",
}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The record of a folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    for path, text in FILES.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    digest = hashlib.sha256(b"archive").hexdigest()
    Path("receipt.json").write_text(json.dumps({"file": "resources/a.zip", "sha256": digest}))
    Path("pipeline.lock").write_text("torch==2")
    return record(
        deterministic=["results/models/fp32/model.pt", "results/accuracy/fp32.json"],
        varying=[path for path in FILES if path.startswith(("results/latency", "results/features", "results/summary"))],
        receipts={"dataset": "receipt.json"},
        locks=["pipeline.lock"],
        config={"seed": 0},
        snakemake="9",
    )


def test_an_untouched_folder_is_as_recorded(recorded: dict) -> None:
    assert differences(recorded) == {}


@pytest.mark.parametrize("path", FILES)
def test_every_changed_byte_is_noticed(recorded: dict, path: str) -> None:
    Path(path).write_text(FILES[path] + " ")
    assert differences(recorded) == {path: "changed"}


@pytest.mark.parametrize("path", FILES)
def test_a_missing_result_is_noticed_and_an_input_need_not_be_there(recorded: dict, path: str) -> None:
    Path(path).unlink()
    assert differences(recorded) == ({path: "missing"} if path.startswith("results") else {})


def test_the_record_says_what_everything_was_made_from(recorded: dict) -> None:
    assert recorded["inputs"]["dataset"]["file"] == "resources/a.zip"
    assert recorded["locks"] == {"pipeline.lock": hashlib.sha256(b"torch==2").hexdigest()}
    assert recorded["measured_on"] == [{"node": "a"}, {"node": "b"}, {"node": "only extracts"}]
    assert recorded["recorded_on"]["node"] == describe()["node"]
    assert recorded["deterministic"]["results/accuracy/fp32.json"] == hashlib.sha256(b"{}").hexdigest()


def test_without_a_commit_the_record_says_why(recorded: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"deterministic": [], "varying": [], "receipts": {}, "locks": [], "config": {}}
    for git in (None, {"commit": "abc", "dirty": True}):
        monkeypatch.setattr(provenance, "describe", lambda git=git: {"node": "a", "git": git})
        recorded = record(**empty, snakemake="9")["git"]
        assert recorded == git if git else (recorded["commit"] is None and "git" in recorded["reason"])
