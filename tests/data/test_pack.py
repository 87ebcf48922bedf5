"""What is packed, in which order, and what happens with images that cannot be."""

import csv
import errno
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dinoquant.data.archive import CorruptImage, open_archive, select
from PIL import Image

from dinoquant.data.generate import generate
from dinoquant.data.pack import OversizedImage, Packed, decode, describe, pack, write_manifest
from dinoquant.errors import UserError
from samples import encoded, header_only

CLASSES = 4
TRAIN = 6
VAL = 3


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.zip"
    generate(path, CLASSES, TRAIN, VAL, seed=0)
    return path


def members_of(generated: Path, sizes: tuple[int, int, int], split: str) -> list[str]:
    with open_archive(generated) as archive:
        return [archive.top + item.member for item in select(archive, *sizes, seed=0).items if item.split == split]


def changed(generated: Path, path: Path, changes: dict[str, bytes]) -> Path:
    """Write the generated archive to ``path`` with other contents for some members."""
    with zipfile.ZipFile(generated) as old, zipfile.ZipFile(path, "w") as new:
        assert set(changes) <= set(old.namelist())
        for name in old.namelist():
            new.writestr(name, changes.get(name, old.read(name)))
    return path


def packed(
    path: Path, images: Path, sizes: tuple[int, int, int] = (3, 8, 4), on_corrupt: str = "error", seed: int = 0
) -> tuple[Packed, dict[str, Any]]:
    with open_archive(path) as archive:
        result = pack(archive, select(archive, *sizes, seed), images, on_corrupt)
        return result, describe(result, archive, "here", None)


def test_array_and_manifest_agree(generated: Path, tmp_path: Path) -> None:
    result, description = packed(generated, tmp_path / "images.npy")
    write_manifest(result, tmp_path / "manifest.csv")
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert images.dtype == np.uint8
    assert images.shape == (12 + 8 + 4, 3, 64, 64)
    with (tmp_path / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["index", "split", "wnid", "label", "member", "mode"]
    assert [int(row["index"]) for row in rows] == list(range(24))
    assert [row["split"] for row in rows] == ["bank"] * 12 + ["query"] * 8 + ["calibration"] * 4
    labels = dict.fromkeys(sorted({row["wnid"] for row in rows}))
    with zipfile.ZipFile(generated) as archive:
        for row, pixels in zip(rows, images, strict=True):
            with Image.open(archive.open(row["member"])) as image:
                assert row["mode"] == image.mode
                np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")).transpose(2, 0, 1))
            assert list(labels)[int(row["label"])] == row["wnid"]
    assert description == {
        "source": "here",
        "substitute": None,
        "classes": CLASSES,
        "splits": {"bank": 12, "query": 8, "calibration": 4},
        "height": 64,
        "width": 64,
        "skipped": [],
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_same_seed_same_bytes(generated: Path, tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((0, 0, 1)):
        packed(generated, tmp_path / f"{number}.npy", seed=seed)
        contents.append((tmp_path / f"{number}.npy").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_modes_become_rgb(mode: str) -> None:
    pixels, found = decode(encoded(Image.new("RGB", (8, 6), (90, 90, 90)).convert(mode)))
    assert found == mode
    assert pixels.shape == (3, 6, 8)
    assert np.abs(pixels.astype(int) - 90).max() <= 2


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1"])
def test_modes_of_png(mode: str) -> None:
    assert decode(encoded(Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode), "PNG"))[0].min() == 255


def test_channels_are_in_order() -> None:
    pixels, _ = decode(encoded(Image.new("RGB", (8, 8), (250, 100, 5)), "PNG"))
    assert pixels[:, 0, 0].tolist() == [250, 100, 5]


@pytest.mark.parametrize("size", [(4097, 8), (8, 4097), (60_000, 60_000)])
def test_giants_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(OversizedImage, match=r"4097|3600000000"):
        decode(header_only(*size))


def test_largest_size_is_allowed() -> None:
    assert decode(encoded(Image.new("L", (4096, 1))))[0].shape == (3, 1, 4096)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(Image.new("RGB", (8, 8)), "GIF"), header_only(8, 8)])
def test_corrupt_content(content: bytes) -> None:
    """The text has no address of an object: it goes into dataset.json, which is the same in every run."""
    with pytest.raises(CorruptImage) as error:
        decode(content)
    assert str(error.value)
    assert "0x" not in str(error.value)


def test_truncated_jpeg_is_corrupt() -> None:
    content = encoded(Image.effect_noise((64, 64), 90))
    with pytest.raises(CorruptImage, match="truncated"):
        decode(content[: len(content) // 2])


@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_oversized_image_is_always_fatal(generated: Path, tmp_path: Path, on_corrupt: str) -> None:
    victim = members_of(generated, (3, 8, 4), "bank")[5]
    path = changed(generated, tmp_path / "x.zip", {victim: header_only(5000, 5000)})
    with pytest.raises(UserError, match="5000 x 5000 pixels") as error:
        packed(path, tmp_path / "images.npy", on_corrupt=on_corrupt)
    assert victim in str(error.value)
    assert not (tmp_path / "images.npy").exists()


def test_sizes_must_agree(generated: Path, tmp_path: Path) -> None:
    first, victim = members_of(generated, (3, 8, 4), "bank")[::5][:2]
    path = changed(generated, tmp_path / "x.zip", {victim: encoded(Image.new("RGB", (48, 32)))})
    with pytest.raises(UserError, match=f"{victim} has 48 x 32 pixels, {first} has 64 x 64") as error:
        packed(path, tmp_path / "images.npy")
    assert "dataset.source" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_corrupt_images_are_fatal_together(generated: Path, tmp_path: Path) -> None:
    victims = members_of(generated, (3, 8, 4), "bank")
    path = changed(generated, tmp_path / "x.zip", dict.fromkeys(victims, b"rubbish"))
    with pytest.raises(UserError) as error:
        packed(path, tmp_path / "images.npy")
    message = str(error.value)
    assert message.startswith("Images that cannot be decoded: 12\n")
    assert [victim in message for victim in victims] == [True] * 10 + [False] * 2
    assert "and 2 more" in message
    assert "set dataset.on_corrupt to skip" in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_corrupt_images_are_replaced(generated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    victims = [members_of(generated, (3, 8, 4), split)[1] for split in ("bank", "query", "calibration")]
    path = changed(generated, tmp_path / "x.zip", dict.fromkeys(victims, b"rubbish"))
    before, _ = packed(generated, tmp_path / "before.npy")
    after, description = packed(path, tmp_path / "after.npy", on_corrupt="skip")
    assert [row["member"] for row in description["skipped"]] == victims
    assert {row["error"] for row in description["skipped"]} == {"neither a JPEG nor a PNG image"}
    assert description["splits"] == {"bank": 12, "query": 8, "calibration": 4}
    columns = ("index", "split", "wnid", "label")
    assert [[row[c] for c in columns] for row in before.rows] == [[row[c] for c in columns] for row in after.rows]
    assert len({row["member"] for row in after.rows}) == 24
    replaced = [a["member"] for a, b in zip(before.rows, after.rows, strict=True) if a["member"] != b["member"]]
    assert replaced == victims
    assert "Images that cannot be decoded: 3" in caplog.text
    assert victims[0] in caplog.text


def test_replacement_that_is_corrupt_too(generated: Path, tmp_path: Path) -> None:
    chosen = members_of(generated, (3, 8, 4), "bank")[0]
    folder = chosen.rsplit("/", 1)[0]
    larger = members_of(generated, (5, 8, 4), "bank")
    victims = [chosen, *[member for member in larger if member.startswith(folder)][3:4]]
    path = changed(generated, tmp_path / "x.zip", dict.fromkeys(victims, b"rubbish"))
    result, _ = packed(path, tmp_path / "x.npy", on_corrupt="skip")
    assert [row["member"] for row in result.skipped] == victims
    assert result.rows[0]["member"] == [member for member in larger if member.startswith(folder)][4]


def test_no_replacement_is_left(generated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The array shrinks: its header has to say so."""
    victim = members_of(generated, (TRAIN, 8, 0), "bank")[0]
    path = changed(generated, tmp_path / "x.zip", {victim: b"rubbish"})
    result, description = packed(path, tmp_path / "x.npy", (TRAIN, 8, 0), "skip")
    images = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert len(images) == len(result.rows) == CLASSES * TRAIN - 1 + 8
    assert [row["index"] for row in result.rows] == list(range(len(images)))
    assert description["splits"] == {"bank": CLASSES * TRAIN - 1, "query": 8, "calibration": 0}
    assert "bank: 23 images instead of 24" in caplog.text
    with zipfile.ZipFile(path) as archive, Image.open(archive.open(result.rows[-1]["member"])) as last:
        np.testing.assert_array_equal(images[-1], np.asarray(last.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("everything", [False, True])
def test_split_without_any_image(generated: Path, tmp_path: Path, everything: bool) -> None:
    with zipfile.ZipFile(generated) as archive:
        victims = [name for name in archive.namelist() if name.endswith("JPEG") and (everything or "/val/" in name)]
    path = changed(generated, tmp_path / "x.zip", dict.fromkeys(victims, b"rubbish"))
    with pytest.raises(UserError, match=f"Not one image of the {'bank' if everything else 'query'} split"):
        packed(path, tmp_path / "x.npy", on_corrupt="skip")


def test_full_disk_is_passed_on(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory map would be killed by SIGBUS instead."""

    class Full(BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    open_file = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Full() if ".npy" in path.name else open_file(path, *a, **k))
    with pytest.raises(OSError, match="No space left"):
        packed(generated, tmp_path / "x.npy")


def test_real_images(real_data: Path, tmp_path: Path) -> None:
    result, description = packed(real_data / "tiny-imagenet-200.subset.zip", tmp_path / "x.npy", (2, 400, 64))
    images = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert images.shape == (864, 3, 64, 64)
    assert Counter(row["mode"] for row in result.rows).keys() == {"RGB", "L"}
    assert description["splits"] == {"bank": 400, "query": 400, "calibration": 64}
    for row, pixels in zip(result.rows, images, strict=True):
        grey = np.ptp(pixels.astype(int), axis=0).max() == 0
        assert grey or row["mode"] == "RGB"
    # Natural images: not dark, not flat.
    assert 90 < images.mean() < 150
    assert images.std() > 40
