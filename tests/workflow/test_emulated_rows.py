"""A run on a processor that has no bfloat16: it finishes, and the row says why there is nothing in it."""

import csv
import json

import numpy as np

from conftest import Checkout
from dinoquant.files import read_json

CAPS = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
OVERLAY = {
    "variants": {"bf16": {"recipe": "bf16"}},
    "latency": {"thread_scaling": [1, 2]},
    "attention": {"images": 1},
}


def test_bf16_is_unsupported_where_it_is_emulated(run: Checkout) -> None:
    done = run.snakemake(overlay=OVERLAY, **CAPS)
    assert done.returncode == 0, done.stdout
    results = run.folder / "results"
    with (results / "summary.csv").open(newline="") as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream)}
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
    assert set(run.stale(overlay=OVERLAY)) == set()
