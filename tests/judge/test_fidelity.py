"""Accuracy and fidelity: values that can be counted, intervals with known coverage, the script, and real images."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinoquant.data.manifest import UNLABELLED, evenly_spaced, read_split, read_wnids
from dinoquant.errors import UserError
from dinoquant.judge.fidelity import evaluate
from dinoquant.judge.paired import cosine

CONFIG = {"k": 1, "temperature": 0.07, "confidence": 0.95, "resamples": 1000, "seed": 0}
SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
# Six classes, a direction each; a query is classified as the axis it lies on.
AXES = np.eye(6, dtype=np.float32)
BANK_LABELS = np.arange(6)
WNIDS = {label: f"n{label}" for label in range(10)}


def on_axes(classes: list[int]) -> dict[str, np.ndarray]:
    """Return features whose queries are predicted as ``classes``."""
    return {"bank": AXES, "query": AXES[classes] * 2}


def test_values_that_can_be_counted() -> None:
    truth = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    fp32 = on_axes([0, 1, 2, 3, 4, 5, 0, 1, 0, 0])  # 8 of 10 right
    variant = on_axes([0, 1, 2, 3, 4, 0, 1, 0, 2, 1])  # 6 of 10 right, 5 like fp32

    result = evaluate(variant, fp32, {"bank": BANK_LABELS, "query": truth}, WNIDS, CONFIG)

    assert (result["bank"], result["queries"], result["k"], result["temperature"]) == (6, 10, 1, 0.07)
    assert result["knn_top1"] == pytest.approx(60)
    assert result["knn_top1_drop"] == pytest.approx(20)
    assert result["knn_agreement"] == pytest.approx(50)
    assert result["cosine_mean"] == pytest.approx(0.5)
    assert result["cosine_p5"] == 0
    # Wilson's interval of 6 of 10, as published tables have it.
    assert (result["knn_top1_ci_low"], result["knn_top1_ci_high"]) == pytest.approx((31.27, 83.18), abs=0.01)
    assert (result["mcnemar_lost"], result["mcnemar_gained"]) == (3, 1)
    assert result["mcnemar_p"] == pytest.approx(2 * (1 + 4) / 2**4)  # of 4 coins, 1 or none shows heads, or tails
    assert result["knn_top1_drop_ci_low"] < 20 < result["knn_top1_drop_ci_high"]
    assert result["cosine_mean_ci_low"] < 0.5 < result["cosine_mean_ci_high"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("labels", [BANK_LABELS, BANK_LABELS[:0]])
def test_a_feature_of_zeros_is_refused_with_labels_and_without(labels: np.ndarray) -> None:
    fp32, variant = on_axes([0, 1]), on_axes([0, 1])
    variant["query"] = variant["query"] * [[1], [0]]
    with pytest.raises(UserError, match="1 of 2 images are all zeros"):
        evaluate(variant, fp32, {"bank": labels, "query": np.array([0, 1])}, WNIDS, CONFIG)


def test_top5_counts_the_five_best_voted() -> None:
    # The query's similarity to class 0 is the highest, to class 5 the lowest.
    query = np.array([[6, 5, 4, 3, 2, 1]], dtype=np.float32)
    features = {"bank": AXES, "query": np.repeat(query, 6, axis=0)}
    result = evaluate(features, features, {"bank": BANK_LABELS, "query": np.arange(6)}, WNIDS, {**CONFIG, "k": 6})
    assert result["knn_top1"] == pytest.approx(100 / 6)
    assert result["knn_top5"] == pytest.approx(500 / 6)


def test_fp32_against_itself_is_exact() -> None:
    rng = np.random.default_rng(0)
    features = {"bank": rng.normal(size=(60, 33)), "query": rng.normal(size=(80, 33))}
    features = {split: values.astype(np.float32) for split, values in features.items()}
    labels = {"bank": rng.integers(5, size=60), "query": rng.integers(5, size=80)}
    result = evaluate(features, features, labels, WNIDS, CONFIG)
    for name, expected in {"knn_top1_drop": 0.0, "cosine_mean": 1.0}.items():
        assert [result[name + end] for end in ("", "_ci_low", "_ci_high")] == [expected] * 3
    assert result["cosine_p5"] == 1
    assert result["knn_agreement"] == result["knn_agreement_ci_high"] == 100
    assert (result["mcnemar_p"], result["mcnemar_lost"], result["mcnemar_gained"]) == (1, 0, 0)
    assert {entry["drop_ci_high"] for entry in result["per_class"]} == {0}


def test_no_changed_prediction_is_no_proof_of_no_loss() -> None:
    """Other features that change no prediction of 10 may still lose one in four: what was seen bounds what could be."""
    truth = np.tile(np.arange(5), 2)
    labels = {"bank": BANK_LABELS, "query": truth}
    fp32 = on_axes(truth.tolist())
    result = evaluate({**fp32, "query": fp32["query"] * 3}, fp32, labels, WNIDS, CONFIG)
    assert (result["knn_top1_drop"], result["mcnemar_p"]) == (0, 1)
    assert result["knn_top1_drop_ci_high"] == pytest.approx(100 * 3.8415 / (10 + 3.8415), abs=0.01)


def test_classes_are_listed_by_what_they_lose() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    fp32 = on_axes([0, 0, 0, 5, 1, 5, 2, 5])
    variant = on_axes([0, 5, 5, 5, 1, 1, 2, 5])
    result = evaluate(variant, fp32, {"bank": BANK_LABELS, "query": truth}, WNIDS, CONFIG)
    found = [tuple(entry[key] for key in ("wnid", "queries", "knn_top1", "knn_top1_fp32", "drop"))
             for entry in result["per_class"]]  # fmt: skip
    assert found == [("n0", 4, 25, 75, 50), ("n2", 2, 50, 50, 0), ("n1", 2, 100, 50, -50)]
    for entry in result["per_class"]:
        assert entry["drop_ci_low"] < entry["drop"] < entry["drop_ci_high"]
        assert entry["drop_ci_high"] - entry["drop_ci_low"] > 70  # so few images say little


def test_the_interval_of_the_drop_is_paired() -> None:
    """Two models that err on the same queries but one differ by far less than two independent ones."""
    rng = np.random.default_rng(0)
    truth = rng.integers(6, size=400)
    predicted = np.where(rng.random(400) < 0.5, truth, (truth + 1) % 6)
    changed = predicted.copy()
    changed[0] = (truth[0] + 1 + (predicted[0] == truth[0])) % 6
    labels = {"bank": BANK_LABELS, "query": truth}
    result = evaluate(on_axes(changed.tolist()), on_axes(predicted.tolist()), labels, WNIDS, CONFIG)
    assert result["knn_top1_drop_ci_high"] - result["knn_top1_drop_ci_low"] < 2.5  # independent: about 14 points


def test_cosine_is_that_of_the_rows() -> None:
    first = np.array([[1, 0], [3, 4], [1, 1]], dtype=np.float32)
    second = np.array([[0, 2], [-6, -8], [1, 0]], dtype=np.float32)
    np.testing.assert_allclose(cosine(first, second), [0, -1, np.sqrt(0.5)], atol=1e-15)


def test_a_single_query_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.queries"):
        evaluate(on_axes([0]), on_axes([0]), {"bank": BANK_LABELS, "query": np.array([0])}, WNIDS, CONFIG)


def write_manifest(path: Path, rows: list[tuple[str, int]]) -> None:
    lines = [f"{index},{split},n{label},{label},member,RGB" for index, (split, label) in enumerate(rows)]
    path.write_text("\n".join(["index,split,wnid,label,member,mode", *lines]))


def test_a_split_is_read_in_manifest_order(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.csv", [("query", 3), ("bank", 1), ("query", 0), ("calibration", 2)])
    indices, labels = read_split(tmp_path / "manifest.csv", "query")
    assert (indices.tolist(), labels.tolist()) == ([0, 2], [3, 0])
    assert read_wnids(tmp_path / "manifest.csv") == {3: "n3", 1: "n1", 0: "n0", 2: "n2"}


def test_images_are_spread_over_the_split() -> None:
    assert evenly_spaced(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly_spaced(7, 3).tolist() == [0, 2, 4]
    assert evenly_spaced(3, 64).tolist() == [0, 1, 2]
    assert evenly_spaced(2000, 1).tolist() == [0]


RUN_SCRIPT = """
import json, runpy, sys
from types import SimpleNamespace as Some
folder, script, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
class Output(list):
    json = folder + "/v.json"
snakemake = Some(
    input=Some(
        features=folder + "/v.npz", extraction=folder + "/extraction.json",
        fp32=folder + "/fp32.npz", manifest=folder + "/manifest.csv",
    ),
    output=Output([folder + "/v.json"]), log=[folder + "/log"], rule="accuracy",
    params=Some(config=config), wildcards=Some(variant="v"),
)
runpy.run_path(script, init_globals={"snakemake": snakemake}, run_name="__main__")
assert "torch" not in sys.modules, "an accuracy job must start fast"
"""


def test_the_script_writes_every_field_without_pytorch(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.csv", [("bank", i) for i in range(6)] + [("query", i) for i in (0, 1, 2, 3)])
    np.savez(tmp_path / "fp32.npz", **on_axes([0, 1, 2, 4]))
    np.savez(tmp_path / "v.npz", **on_axes([0, 1, 5, 4]))
    (tmp_path / "extraction.json").write_text('{"unsupported": null, "saturation": null}')
    arguments = [str(tmp_path), str(SCRIPTS / "evaluate_accuracy.py"), json.dumps({**CONFIG, "device": "cpu"})]
    command = [sys.executable, "-c", RUN_SCRIPT, *arguments]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(SCRIPTS)}, timeout=60)

    result: dict[str, Any] = json.loads((tmp_path / "v.json").read_text())
    with_interval = ["knn_top1", "knn_top5", "knn_top1_drop", "cosine_mean", "knn_agreement"]
    with_interval += ["retrieval_map", "retrieval_map_drop"]
    fields = {f"{name}{end}" for name in with_interval for end in ("", "_ci_low", "_ci_high")}
    fields |= {"mcnemar_p", "mcnemar_lost", "mcnemar_gained", "per_class", "saturation"}
    assert set(result) == fields | {"variant", "device", "bank", "queries", "k", "temperature", "cosine_p5"}
    assert (result["variant"], result["device"]) == ("v", "cpu")
    assert (result["knn_top1"], result["knn_top1_drop"], result["knn_agreement"]) == (50, 25, 75)
    assert "span evaluate" in (tmp_path / "log").read_text()


def test_without_labels_there_is_only_the_cosine() -> None:
    def unlabelled(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"bank": AXES[:0], "query": features["query"]}

    labels = {"bank": np.empty(0, np.int64), "query": np.full(4, -1)}
    fp32, variant = unlabelled(on_axes([0, 1, 2, 3])), unlabelled(on_axes([0, 1, 2, 4]))
    result = evaluate(variant, fp32, labels, {-1: ""}, CONFIG)
    assert (result["cosine_mean"], result["queries"], result["per_class"]) == (0.75, 4, [])
    assert result["accuracy_reason"] == UNLABELLED
    assert not [name for name in result if name.startswith(("knn", "mcnemar"))]


def test_trained_weights_tell_real_classes_apart(real_data: Path) -> None:
    """From image files to k-NN: 5 bank images of 10 classes each; by chance 10 % would be right."""
    import timm
    import torch
    from PIL import Image

    from dinoquant.judge.features import extract

    with zipfile.ZipFile(real_data / "tiny-imagenet-200.subset.zip") as archive:
        wnids = sorted(archive.read("tiny-imagenet-200/wnids.txt").decode().split())[:10]
        names = [f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(10) for wnid in wnids]
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    images = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    weights = torch.load(real_data / "vit_tiny_patch16_224.imagenet1k.pth", weights_only=True)
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("head.")})
    info = {"image_size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "feature_dim": 192}

    features, _ = extract(model, images, np.arange(100), batch_size=16, info=info, device="cpu", variant="fp32")

    halves = {"bank": features[:50], "query": features[50:]}
    labels = {split: np.tile(np.arange(10), 5) for split in halves}
    result = evaluate(halves, halves, labels, WNIDS, {**CONFIG, "k": 5})
    assert result["knn_top1"] > 60
    assert result["knn_top5"] > result["knn_top1"]
