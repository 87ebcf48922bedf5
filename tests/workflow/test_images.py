"""Folders of people's own images through the workflow: what runs again after which change, and how to name them."""

import json
import os
from pathlib import Path

import pytest
from checkout import Checkout

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
