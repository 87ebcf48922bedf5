"""One run with much that is unusual, which several tests look at: photographs without labels, a processor without
bfloat16, and a variant that chooses by the analysis of single modules."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from checkout import Checkout
from PIL import Image

from dinoquant.data.manifest import UNLABELLED
from dinoquant.files import read_json

CAPS = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AUTO = {"recipe": "int8-auto", "cosine": 0.99}
VARIANTS = {"int8-static": None, "fp16": None, "bf16": {"recipe": "bf16"}, "int8-auto": AUTO}
OVERLAY = {
    "dataset": {"source": "photographs", "queries": 8, "calibration_images": 4},
    "variants": VARIANTS,
    "latency": {"thread_scaling": [1]},
    "attention": {"images": 1},
    "sensitivity": {"images": 4},
}
ANALYSIS = "measure_sensitivity"
FIGURE = "draw_figure figure=sensitivity"
OF_THE_VARIANT = {
    "quantize variant=int8-auto",
    "extract_features variant=int8-auto",
    "evaluate_accuracy variant=int8-auto",
    "evaluate_probe variant=int8-auto",
    "extract_attention variant=int8-auto",
    "measure_patches variant=int8-auto",
    "measure_latency device=cpu, variant=int8-auto, batch=1",
    "measure_scaling device=cpu, variant=int8-auto, threads=1",
    "measure_footprint device=cpu, variant=int8-auto",
    "measure_energy device=cpu, variant=int8-auto",
}


@pytest.fixture(scope="module")
def unusual(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The finished run: read only."""
    run = checkout.copy(tmp_path_factory.mktemp("unusual") / "workflow")
    photographs = run.folder / "photographs"
    photographs.mkdir()
    for n in range(14):
        noise = Image.effect_noise((40 + n, 30), 90).resize((400 + 10 * n, 300))
        noise.convert("RGB").save(photographs / f"{n}.jpg")
    done = run.snakemake(overlay=OVERLAY, **CAPS)
    assert done.returncode == 0, done.stdout
    assert UNLABELLED in done.stdout
    return run


@pytest.fixture(scope="module")
def rows(unusual: Checkout) -> dict[str, dict[str, str]]:
    """The summary's, by variant."""
    with (unusual.folder / "results" / "summary.csv").open(newline="") as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


def test_a_model_made_again_is_the_same_bytes(unusual: Checkout, tmp_path: Path) -> None:
    """Also one of which parts are scripted, not traced."""
    again, model = unusual.copy(tmp_path / "workflow"), "results/models/int8-auto/model.pt"
    before = (again.folder / model).read_bytes()
    done = again.snakemake(model, "--forcerun", "quantize", overlay=OVERLAY, **CAPS)
    assert done.returncode == 0, done.stdout
    assert "rule quantize" in done.stdout
    assert (again.folder / model).read_bytes() == before


def test_images_are_packed_again_for_a_checkpoint_that_may_want_another_size(unusual: Checkout, tmp_path: Path) -> None:
    again = unusual.copy(tmp_path / "workflow")
    (again.folder / "mine.pth").write_bytes(b"another model")
    assert {"verify_checkpoint", "pack_images"} <= set(
        again.stale(overlay=OVERLAY | {"model": {"checkpoint": "mine.pth"}})
    )
    both = {"dataset": OVERLAY["dataset"] | {"queries": 7}, "model": {"pooling": "avg"}}
    assert "pack_images" in again.stale(overlay=OVERLAY | both), "its own change, beside one that exports the model"
    sized = again.stale(overlay=OVERLAY | {"model": {"checkpoint": "mine.pth", "image_size": 64}})
    assert "pack_images" in sized, "another size"


def test_photographs_without_labels_have_cosines_alone(unusual: Checkout, rows: dict[str, dict[str, str]]) -> None:
    """Everything that needs labels is empty and says why."""
    results = unusual.folder / "results"
    dataset = read_json(results / "data" / "dataset.json")
    assert dataset["unlabelled"] == UNLABELLED
    assert dataset["splits"] == {"bank": 0, "query": 8, "calibration": 4}
    side = read_json(results / "models" / "fp32" / "info.json")["image_size"] * 256 / 224
    assert (dataset["resized"], dataset["height"], dataset["width"]) == (True, round(side), round(side))
    assert rows.keys() == {"fp32", "bf16", "int8-auto"}
    for row in (rows["fp32"], rows["int8-auto"]):
        assert 0.5 < float(row["cosine_mean"]) <= 1
        empty = [name for name in row if name.startswith(("knn", "probe", "mcnemar", "retrieval"))]
        assert len(empty) >= 18
        assert {row[name] for name in empty} == {""}
        assert row["accuracy_reason"] == UNLABELLED
    assert f"No k-NN and no probe: {UNLABELLED}" in (results / "report.html").read_text()
    assert "nan" not in (results / "report.md").read_text()


def test_bf16_is_unsupported_where_it_is_emulated(unusual: Checkout, rows: dict[str, dict[str, str]]) -> None:
    """The run finishes, and the row says why there is nothing in it."""
    results = unusual.folder / "results"
    reason = rows["bf16"]["reason"]
    assert rows["bf16"]["status"] == "unsupported"
    assert reason.startswith("bf16 would be emulated")
    assert {rows["bf16"][name] for name in ("latency_p50_ms", "speedup", "cosine_mean", "peak_rss_mb")} == {""}
    assert float(rows["bf16"]["compression"]) > 1.5
    assert float(rows["fp32"]["speedup"]) > 0
    for file in ("latency/cpu/bf16/batch1", "scaling/cpu/bf16/threads1", "footprint/cpu/bf16", "features/bf16"):
        assert read_json(results / f"{file}.json")["unsupported"] == reason
    assert read_json(results / "energy/cpu/bf16.json")["energy_mj_per_image"] is None
    assert len(np.load(results / "features/bf16.npz")["query"]) == 0
    assert str(np.load(results / "attention/bf16.npz")["reason"]) == reason
    assert read_json(results / "patches/bf16.json")["patch_reason"] == reason
    recommendation = json.loads((results / "recommendation.json").read_text())["devices"]["cpu"]
    assert recommendation["rejected"]["bf16"] == f"does not run here: {reason}"
    assert "bf16 would be emulated" in (results / "report.html").read_text()


def test_nothing_is_stale(unusual: Checkout) -> None:
    assert set(unusual.stale(overlay=OVERLAY)) == set()


def test_the_report_says_why_a_module_is_what_it_is(unusual: Checkout) -> None:
    assert 'class="muted">(int8: 1 - cosine' in (unusual.folder / "results/report.html").read_text()


def test_another_budget_concerns_the_variant_and_not_the_analysis(unusual: Checkout) -> None:
    stale = set(unusual.stale(overlay=OVERLAY | {"variants": VARIANTS | {"int8-auto": {**AUTO, "cosine": 0.98}}}))
    assert not {ANALYSIS, FIGURE} & stale
    assert {job for job in stale if "variant=" in job} == OF_THE_VARIANT


def test_another_analysis_concerns_the_variant(unusual: Checkout) -> None:
    stale = set(unusual.stale(overlay=OVERLAY | {"sensitivity": {"images": 5}}))
    assert {ANALYSIS, FIGURE} <= stale
    assert {job for job in stale if "variant=" in job} == OF_THE_VARIANT


def test_the_figure_of_the_analysis_depends_on_its_own_keys(unusual: Checkout) -> None:
    assert not {ANALYSIS, FIGURE} & set(unusual.stale(overlay=OVERLAY | {"figures": {"batch_size": 1}}))
    assert FIGURE in set(unusual.stale(overlay=OVERLAY | {"figures": {"dpi": 60}}))
