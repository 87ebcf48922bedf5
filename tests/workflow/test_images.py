"""Folders of people's own images through the workflow: what runs again after which change, and how to name them."""

import json
import os
import zipfile
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


def test_what_runs_again_for_a_source_of_another_kind_and_for_an_older_file(
    fresh: Checkout, folder: Path, tmp_path: Path
) -> None:
    def archive(name: str, extra: bytes, when: float) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for path in sorted(folder.rglob("*.bmp")):
                file.writestr(str(path.relative_to(folder)), path.read_bytes()[:-1] + extra)
        os.utime(tmp_path / name, (when, when))
        return tmp_path / name

    def run(source: Path | str) -> set[str]:
        overlay = {"dataset": {"source": str(source), **SIZES}, "model": {"image_size": 64}}
        jobs = set(fresh.stale(MANIFEST, overlay=overlay))
        done = fresh.snakemake(MANIFEST, overlay=overlay)
        assert done.returncode == 0, done.stdout
        assert fresh.stale(MANIFEST, overlay=overlay) == {}
        receipt = json.loads((fresh.folder / "results/data/archive.json").read_text())
        assert source in ("generated", Path(receipt["file"]))
        return jobs

    changed = {"verify_dataset", "pack_images"}
    mine = archive("mine.zip", b"1", 1.1e9)
    assert run("generated") == changed | {"generate_dataset"}
    for source in (folder, mine, folder):
        assert run(source) == changed
    assert run(mine) == changed
    archive("other.zip", b"2", 1e9).rename(mine)
    assert run(mine) == changed, "its time is older than the results"


@pytest.mark.parametrize("source", ["~/images", "file://{home}/images"])
def test_ways_to_write_a_path(source: str, fresh: Checkout, folder: Path) -> None:
    home = str(folder.parent)
    overlay = {"dataset": {"source": source.format(home=home), **SIZES}}
    done = fresh.snakemake("-n", MANIFEST, overlay=overlay, HOME=home)
    assert done.returncode == 0, done.stdout
    done = fresh.snakemake("-n", MANIFEST, overlay={"dataset": {"source": "~/nothing"}}, HOME=home)
    assert f"dataset.source: there is no file or folder {home}/nothing" in done.stdout
