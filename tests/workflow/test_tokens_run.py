"""A run whose models give all tokens: image-level numbers are those of features, and patches are asked for too."""

import csv
import json

import numpy as np
import torch
from checkout import Checkout

OVERLAY = {
    "model": {"output": "tokens"},
    "variants": {"fp16": None, "int8-smooth": {}},
    "energy": {"seconds": 0},
    "attention": {"images": 0},
}
ANSWER = ("results/summary.csv", "results/recommendation.json")
SAME = ("knn_top1", "probe_top1", "retrieval_map", "cosine_mean", "patch_cosine_mean")


def rows(run: Checkout) -> dict[str, dict[str, str]]:
    with (run.folder / "results/summary.csv").open(newline="") as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


def test_a_run_whose_models_give_tokens(run: Checkout) -> None:
    before, results = rows(run), run.folder / "results"
    features = np.load(results / "features/int8-static.npz")["query"]
    done = run.snakemake(*ANSWER, overlay=OVERLAY)
    assert done.returncode == 0, done.stdout
    after = rows(run)
    for name in SAME:
        assert float(after["fp32"][name]) == float(before["fp32"][name])
    np.testing.assert_allclose(np.load(results / "features/int8-static.npz")["query"], features, rtol=1e-5)
    info = json.loads((results / "models/fp32/info.json").read_text())
    image = torch.zeros(1, 3, info["image_size"], info["image_size"])
    tokens = torch.jit.load(results / "models/int8-smooth/model.pt")(image)
    assert tokens.shape == (1, info["tokens"], info["feature_dim"])
    kept = np.load(results / "patches/int8-smooth.npz")["patches"]
    assert kept.shape == (4, info["tokens"] - info["prefix_tokens"], info["feature_dim"])
    smooth = after["int8-smooth"]
    assert 0.9 < float(smooth["patch_cosine_min"]) <= float(smooth["patch_cosine_p5"]) < 1
    assert float(after["fp32"]["patch_cosine_min"]) == 1
    assert json.loads((results / "recommendation.json").read_text())["budget"]["patch_cosine"] == 0.995
