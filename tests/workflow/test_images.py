"""Folders of people's own images through the workflow: what runs again after which change, and a run without labels."""

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from conftest import Checkout
from dinoquant.data.manifest import UNLABELLED
from layouts import image_folder, picture, write_folder

MANIFEST = "results/data/manifest.csv"
SIZES = {"bank_per_class": 4, "queries": 9, "calibration_images": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """torchvision's ImageFolder below a folder that `~` can stand for; its images are bitmaps, all of one length."""
    bitmaps = {name.replace("JPEG", "bmp"): picture(n, kind="BMP") for n, name in enumerate(image_folder(""))}
    return write_folder(tmp_path / "home" / "images", bitmaps)


def test_what_runs_again_for_a_folder(fresh: Checkout, folder: Path) -> None:
    overlay = {"dataset": {"source": str(folder), **SIZES}}

    def stale() -> set[str]:
        return set(fresh.stale(MANIFEST, overlay=overlay))

    def run() -> None:
        done = fresh.snakemake(MANIFEST, overlay=overlay)
        assert done.returncode == 0, done.stdout

    run()
    before = json.loads((fresh.folder / "results/data/archive.json").read_text())
    assert stale() == set()
    image = folder / "train" / "n01" / "n01_3.bmp"
    for path in (image, folder, image.parent):
        os.utime(path, (2e9, 2e9))
    (folder / "train" / "Thumbs.db").write_bytes(b"x")
    assert stale() == set()
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = {"verify_dataset", "pack_images"}
    assert stale() == changed
    run()
    assert stale() == set()
    after = json.loads((fresh.folder / "results/data/archive.json").read_text())
    assert (after["bytes"], after["sha256"] == before["sha256"]) == (before["bytes"], False)
    image.rename(image.with_name("n01_9.bmp"))
    assert stale() == changed
    overlay["dataset"] |= {"checksum": f"sha256:{'0' * 64}"}
    done = fresh.snakemake("-n", overlay=overlay)
    assert done.returncode != 0
    assert "dataset.checksum: expected sha256:000" in done.stdout
    assert "delete" not in done.stdout


@pytest.mark.parametrize("source", ["~/images", "file://{home}/images"])
def test_ways_to_write_a_path(source: str, fresh: Checkout, folder: Path) -> None:
    home = str(folder.parent)
    overlay = {"dataset": {"source": source.format(home=home), **SIZES}}
    done = fresh.snakemake("-n", MANIFEST, overlay=overlay, HOME=home)
    assert done.returncode == 0, done.stdout
    done = fresh.snakemake("-n", MANIFEST, overlay={"dataset": {"source": "~/nothing"}}, HOME=home)
    assert f"dataset.source: there is no file or folder {home}/nothing" in done.stdout


def test_photographs_without_labels(fresh: Checkout, tmp_path: Path) -> None:
    """Cosines are there; everything that needs labels is empty and says why."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for n in range(14):
        noise = Image.effect_noise((40 + n, 30), 90).resize((400 + 10 * n, 300))
        noise.convert("RGB").save(photographs / f"{n}.jpg")
    overlay = {
        "dataset": {"source": str(photographs), "queries": 8, "calibration_images": 4},
        "variants": {"int8-static": None, "fp16": None},
        "attention": {"images": 0},
        "energy": {"seconds": 0},
    }
    done = fresh.snakemake(overlay=overlay)
    assert done.returncode == 0, done.stdout
    assert UNLABELLED in done.stdout
    results = fresh.folder / "results"
    dataset = json.loads((results / "data" / "dataset.json").read_text())
    assert dataset["unlabelled"] == UNLABELLED
    assert dataset["splits"] == {"bank": 0, "query": 8, "calibration": 4}
    side = json.loads((results / "models" / "fp32" / "info.json").read_text())["image_size"] * 256 / 224
    assert (dataset["resized"], dataset["height"], dataset["width"]) == (True, round(side), round(side))
    with (results / "summary.csv").open(newline="") as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream) if row["status"] != "unsupported"}
    assert rows.keys() == {"fp32", "int8-dynamic-linear"}
    for row in rows.values():
        assert 0.5 < float(row["cosine_mean"]) <= 1
        empty = [name for name in row if name.startswith(("knn", "probe", "mcnemar", "retrieval"))]
        assert len(empty) >= 18
        assert {row[name] for name in empty} == {""}
        assert row["accuracy_reason"] == UNLABELLED
    assert f"No k-NN and no probe: {UNLABELLED}" in (results / "report.html").read_text()
    assert "nan" not in (results / "report.md").read_text()
