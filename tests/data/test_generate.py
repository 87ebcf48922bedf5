"""The generated data set: its layout is Tiny ImageNet's, its bytes are reproducible, its classes can be told apart."""

import re
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoquant.data.generate import generate
from dinoquant.data.layout import open_dataset
from dinoquant.data.pack import pack
from dinoquant.data.selection import select

CLASSES = 6
TRAIN = 15
VAL = 5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.zip"
    generate(path, CLASSES, TRAIN, VAL, seed=0)
    return path


def shape(names: list[str]) -> Counter[str]:
    """Return the kinds of members: their names without classes and numbers."""
    return Counter(re.sub(r"\d+", "0", name) for name in names)


def test_layout_is_tiny_imagenets(path: Path, real_data: Path) -> None:
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(real_data / "tiny-imagenet-200.subset.zip") as theirs:
        assert shape(ours.namelist()).keys() == shape(theirs.namelist()).keys()
        for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
            lines = [archive.read(f"tiny-imagenet-200/{name}").decode().splitlines()[0] for archive in (ours, theirs)]
            assert [len(line.split("\t")) for line in lines] == [len(lines[1].split("\t"))] * 2


def test_members(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert shape(archive.namelist()) == {
            "tiny-imagenet-0/wnids.txt": 1,
            "tiny-imagenet-0/words.txt": 1,
            "tiny-imagenet-0/train/n0/n0_boxes.txt": CLASSES,
            "tiny-imagenet-0/train/n0/images/n0_0.JPEG": CLASSES * TRAIN,
            "tiny-imagenet-0/val/images/val_0.JPEG": CLASSES * VAL,
            "tiny-imagenet-0/val/val_annotations.txt": 1,
            "tiny-imagenet-0/test/images/test_0.JPEG": CLASSES * VAL,
        }
        modes = Counter()
        for name in archive.namelist():
            if name.endswith(".JPEG"):
                with Image.open(archive.open(name)) as image:
                    assert (image.format, image.size) == ("JPEG", (64, 64))
                    modes[image.mode] += 1
        boxes = archive.read("tiny-imagenet-200/train/n90000001/n90000001_boxes.txt").decode().splitlines()
    assert modes["L"] >= 1
    assert modes["RGB"] > 10 * modes["L"]
    assert len(boxes) == TRAIN
    name, *box = boxes[3].split("\t")
    assert name == "n90000001_3.JPEG"
    assert all(0 <= int(edge) < 64 for edge in box)


def test_greyscale_images_are_among_those_that_are_packed(tmp_path: Path) -> None:
    generate(tmp_path / "x.zip", 2, 12, 2, seed=0)
    with open_dataset(tmp_path / "x.zip") as dataset:
        packed = pack(dataset, select(dataset, 12, 4, 0, seed=0), tmp_path / "x.npy", "error")
    assert {row["mode"] for row in packed.rows} == {"L", "RGB"}


def test_same_arguments_same_bytes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    generate(tmp_path / "again.zip", CLASSES, TRAIN, VAL, seed=0)
    generate(tmp_path / "other.zip", CLASSES, TRAIN, VAL, seed=1)
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()
    member = "tiny-imagenet-200/train/n90000001/images/n90000001_0.JPEG"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "other.zip") as other:
        assert archive.read(member) != other.read(member)


def test_no_image_occurs_twice(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        images = [archive.read(name) for name in archive.namelist() if name.endswith(".JPEG")]
    assert len(set(images)) == len(images)


def test_classes_can_be_told_apart_but_not_always(tmp_path: Path) -> None:
    """Nearest neighbour on a 4 x 4 thumbnail: above chance, below certainty."""
    generate(tmp_path / "x.zip", 20, 40, 10, seed=0)
    with open_dataset(tmp_path / "x.zip") as dataset:
        packed = pack(dataset, select(dataset, 40, 200, 0, seed=0), tmp_path / "x.npy", "error")
    thumbnails = np.load(tmp_path / "x.npy").reshape(-1, 3, 4, 16, 4, 16).mean((3, 5)).reshape(1000, -1)
    labels = np.array([row["label"] for row in packed.rows])
    bank, queries = thumbnails[:800], thumbnails[800:]
    nearest = ((queries[:, None] - bank[None]) ** 2).sum(2).argmin(1)
    accuracy = (labels[:800][nearest] == labels[800:]).mean()
    assert 0.1 < accuracy < 0.9


def test_fast_enough_for_a_demo(tmp_path: Path) -> None:
    begin = time.process_time()
    generate(tmp_path / "x.zip", 20, 40, 10, seed=0)
    assert time.process_time() - begin < 3
