"""Variants of other runtimes: a run with some, what they depend on, and a run without their environment."""

import csv
import json
from pathlib import Path

import pytest
from checkout import ROOT, Checkout
from test_staleness import AGGREGATE, append, attention, draw, whole

from dinoquant import runtimes

PEERS = {
    "ort": {"runtime": "onnxruntime", "recipe": "int8-static"},
    "ov": {"runtime": "openvino", "recipe": "int8-nncf", "rest": "fp32"},  # bf16 is refused on many processors
}
OVERLAY = {"variants": {"int8-static": None, **PEERS}}
ADDED = {"export_onnx", "convert_onnxruntime variant=ort", "convert_openvino variant=ov"}
# Only TorchScript files are quantized by `quantize`, and can be watched while they attend.
ADDED |= whole(*PEERS) - {f"quantize variant={variant}" for variant in PEERS} - attention(*PEERS)


def summary(run: Checkout) -> dict[str, dict[str, str]]:
    with (run.folder / "results/summary.csv").open(newline="") as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def with_peers(finished: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The finished run with two peers added to it."""
    if reason := runtimes.missing("openvino"):
        pytest.skip(reason)
    run = finished.copy(tmp_path_factory.mktemp("peers") / "workflow")
    (run.folder / ".venv-peers").symlink_to(ROOT / ".venv-peers")
    assert set(run.stale(overlay=OVERLAY)) == ADDED | draw("attention", "patches") | AGGREGATE, (
        "a new peer runs what is its own"
    )
    done = run.snakemake(overlay=OVERLAY)
    assert done.returncode == 0, done.stdout
    return run


def test_peers_have_rows_like_any_other(with_peers: Checkout) -> None:
    rows, results = summary(with_peers), with_peers.folder / "results"
    for variant, options in PEERS.items():
        row = rows[variant]
        assert row["status"] != "unsupported"
        assert row["runtime"] == options["runtime"]
        assert float(row["speedup"]) > 0
        assert float(row["peak_rss_mb"]) > 0
        assert float(row["convert_s"]) > 0
        assert 0.9 < float(row["cosine_mean"]) < 0.99999
        assert row["quantized_modules"] == row["patch_cosine_mean"] == ""
        assert row["patch_reason"].startswith(f"{options['runtime']}'s file gives features only")
        timing = json.loads((results / f"latency/cpu/{variant}/batch1.json").read_text())
        assert timing["runtime"]["name"] == options["runtime"]
        assert timing["runtime"][options["runtime"]][0].isdigit()  # its version
        assert timing["runtime"]["allocator"] == timing["fixed"]["allocator"]
    size = sum((results / f"models/ov/model{suffix}").stat().st_size for suffix in (".xml", ".bin"))
    assert float(rows["ov"]["size_mb"]) == pytest.approx(size / 1e6, rel=1e-4)
    assert "ort" in (results / "report.html").read_text()


def test_nothing_is_stale_and_what_changes_concerns_one_runtime(with_peers: Checkout, tmp_path: Path) -> None:
    run = with_peers.copy(tmp_path / "workflow")
    assert set(run.stale(overlay=OVERLAY)) == set()
    append(run, "workflow/scripts/dinoquant/runtimes/openvino.py")
    ours = whole("ov") - {"quantize variant=ov"} - attention("ov") | {"convert_openvino variant=ov"}
    assert set(run.stale(overlay=OVERLAY)) == (ours | AGGREGATE) - draw("audit"), "another runtime's files have none"


@pytest.mark.parametrize("file", ["model.bin", "card.json"])
def test_what_is_measured_depends_on_all_that_the_model_is_loaded_with(
    with_peers: Checkout, tmp_path: Path, file: str
) -> None:
    """The file that is opened may be the same with other weights, or for other options."""
    run = with_peers.copy(tmp_path / "workflow")
    with (run.folder / "results/models/ov" / file).open("ab") as stream:
        stream.write(b"\n")
    measured = whole("ov") - {"quantize variant=ov", "derive_limits", *draw("audit")} - attention("ov")
    assert measured <= set(run.stale(overlay=OVERLAY))


def test_the_peers_lock(with_peers: Checkout, tmp_path: Path) -> None:
    run = with_peers.copy(tmp_path / "workflow")
    append(run, "envs/peers.lock")
    assert set(run.stale(overlay=OVERLAY)) == (ADDED | AGGREGATE) - draw("audit")


def test_without_the_environment_rows_say_how_to_get_it(run: Checkout) -> None:
    assert not (run.folder / ".venv-peers").exists()
    overlay = {"variants": {**PEERS}}
    assert set(run.stale(overlay=overlay)) == {"derive_limits"} | AGGREGATE | draw("attention", "patches", "audit")
    done = run.snakemake("results/summary.csv", overlay=overlay)
    assert done.returncode == 0, done.stdout
    for row in map(summary(run).get, PEERS):
        assert (row["status"], row["latency_p50_ms"], row["size_mb"]) == ("unsupported", "", "")
        assert row["reason"] == "the peers' environment is missing: make peers"
    one = run.snakemake(f"results/latency/cpu/{next(iter(PEERS))}/batch1.json", overlay=overlay)
    assert one.returncode
    assert f"{next(iter(PEERS))}: the peers' environment is missing: make peers" in one.stdout
