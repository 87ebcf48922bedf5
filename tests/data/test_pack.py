"""What is packed, in which order, and what happens with images that cannot be."""

import csv
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from dinoquant.data.crop import shorter_side
from dinoquant.data.generate import TOP, generate
from dinoquant.data.layout import open_dataset
from dinoquant.data.manifest import UNLABELLED, read_split, read_wnids
from dinoquant.data.pack import CorruptImageError, Description, Packed, decode, describe, pack, write_manifest
from dinoquant.data.preprocess import preprocess
from dinoquant.data.selection import select
from dinoquant.errors import UserError
from dinoquant.files import read_rows
from layouts import flat, write_zip
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
    with open_dataset(generated) as dataset:
        return [item.member for item in select(dataset, *sizes, seed=0).items if item.split == split]


def changed(generated: Path, path: Path, changes: dict[str, bytes]) -> Path:
    """Write the generated archive to ``path`` with other contents for some members."""
    with zipfile.ZipFile(generated) as old, zipfile.ZipFile(path, "w") as new:
        assert set(changes) <= set(old.namelist())
        for name in old.namelist():
            new.writestr(name, changes.get(name, old.read(name)))
    return path


def packed(
    path: Path,
    images: Path,
    sizes: tuple[int, int, int] = (3, 8, 4),
    on_corrupt: str = "error",
    seed: int = 0,
    image_size: int = 224,
) -> tuple[Packed, Description]:
    with open_dataset(path) as dataset:
        result = pack(dataset, select(dataset, *sizes, seed), images, on_corrupt, image_size)
        return result, describe(result, dataset, "here", None)


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
        "layout": f"{CLASSES} classes, from wnids.txt and {TOP}train/; queries from {TOP}val/, "
        "labelled by val_annotations.txt",
        "classes": CLASSES,
        "unlabelled": None,
        "splits": {"bank": 12, "query": 8, "calibration": 4},
        "height": 64,
        "width": 64,
        "resized": False,
        "notes": [],
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


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats(kind: str) -> None:
    pixels, _ = decode(encoded(Image.new("RGB", (8, 6), (250, 100, 5)), kind))
    assert pixels.shape == (3, 6, 8)
    assert np.abs(pixels[:, 0, 0].astype(int) - [250, 100, 5]).max() <= 3


def test_the_first_frame_of_several() -> None:
    stream = BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert decode(stream.getvalue())[0][:, 0, 0].tolist() == [250, 0, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000), (90_000_000, 1)])
def test_giants_are_refused_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(CorruptImageError, match="more than 89,478,485"):
        decode(header_only(*size))


def test_photographs_are_no_giants() -> None:
    image = Image.linear_gradient("L").resize((6000, 4000))
    assert decode(encoded(image))[0].shape == (3, 4000, 6000)
    assert decode(encoded(image), image_size=224)[0].shape == (3, 256, 256)


@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a", header_only(8, 8)])
def test_corrupt_content(content: bytes) -> None:
    """The text has no address of an object: it goes into dataset.json, which is the same in every run."""
    with pytest.raises(CorruptImageError) as error:
        decode(content)
    assert str(error.value)
    assert "0x" not in str(error.value)


def test_truncated_jpeg_is_corrupt() -> None:
    content = encoded(Image.effect_noise((64, 64), 90))
    with pytest.raises(CorruptImageError, match="truncated"):
        decode(content[: len(content) // 2])


def test_oversized_image_is_like_a_corrupt_one(generated: Path, tmp_path: Path) -> None:
    victim = members_of(generated, (3, 8, 4), "bank")[5]
    path = changed(generated, tmp_path / "x.zip", {victim: header_only(20_000, 5000)})
    with pytest.raises(UserError, match=f"{victim}: 20000 x 5000 pixels"):
        packed(path, tmp_path / "images.npy")
    assert not (tmp_path / "images.npy").exists()
    _, description = packed(path, tmp_path / "images.npy", on_corrupt="skip")
    assert [row["member"] for row in description["skipped"]] == [victim]


def through_pil(image: Image.Image, image_size: int) -> np.ndarray:
    """Return the crop of DINO's protocol, as torchvision makes it of a PIL image."""
    resized = functional.resize(image, shorter_side(image_size), InterpolationMode.BICUBIC)
    return np.asarray(functional.center_crop(resized, [image_size, image_size])).transpose(2, 0, 1)


@pytest.mark.parametrize("image_size", [32, 75, 224, 225])
@pytest.mark.parametrize(
    "size", [(640, 427), (427, 640), (301, 300), (300, 302), (64, 64), (50, 33), (900, 60), (1000, 999)]
)
def test_the_packed_square_gives_the_model_what_the_whole_image_would(size: tuple[int, int], image_size: int) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for image in (noise, noise.resize((8, 8)).resize(size, Image.Resampling.BICUBIC)):
        pixels, _ = decode(encoded(image, "PNG"), image_size)
        assert pixels.shape == (3, shorter_side(image_size), shorter_side(image_size))
        result = preprocess(torch.from_numpy(pixels.copy())[None], image_size, [0, 0, 0], [1 / 255] * 3)[0].numpy()
        difference = np.abs(result - through_pil(image, image_size))
        assert difference.max() <= 0.01


def test_a_strip_takes_no_memory() -> None:
    strip = Image.linear_gradient("L").rotate(90).resize((60_000, 2))
    pixels, _ = decode(encoded(strip, "PNG"), 224)
    assert pixels.shape == (3, 256, 256)
    assert np.abs(pixels.astype(int) - 127).max() < 5


def test_images_of_different_sizes_are_resized(
    generated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the ones before the first that differs; and which images are taken does not change."""
    caplog.set_level("INFO")
    victims = [members_of(generated, (3, 8, 4), split)[5] for split in ("bank", "query")]
    corrupt = members_of(generated, (3, 8, 4), "bank")[1]
    image = Image.effect_noise((48, 32), 90)
    path = changed(generated, tmp_path / "x.zip", dict.fromkeys(victims, encoded(image)) | {corrupt: b"rubbish"})
    result, description = packed(path, tmp_path / "images.npy", on_corrupt="skip", image_size=56)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert images.shape == (24, 3, 64, 64)
    assert (description["resized"], description["height"], description["width"]) == (True, 64, 64)
    assert [row["member"] for row in description["skipped"]] == [corrupt]
    with zipfile.ZipFile(path) as archive:
        for row, pixels in zip(result.rows, images, strict=True):
            np.testing.assert_array_equal(pixels, decode(archive.read(row["member"]), 56)[0])
    assert "The images are of different sizes: packing their central squares of 64 x 64 pixels" in caplog.text


def test_large_images_of_one_size_are_resized(generated: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(generated) as archive:
        names = [name for name in archive.namelist() if name.endswith("JPEG")]
    path = changed(generated, tmp_path / "x.zip", dict.fromkeys(names, encoded(Image.new("RGB", (400, 300)))))
    _, description = packed(path, tmp_path / "images.npy", image_size=32)
    assert np.load(tmp_path / "images.npy", mmap_mode="r").shape == (24, 3, 37, 37)
    assert description["resized"]


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Pillow allocates outside of Python, so it is the process that is looked at: in one of its own."""
    photograph = encoded(Image.linear_gradient("L").resize((3000, 2000)))
    write_zip(tmp_path / "x.zip", {f"{name}/{n}.jpg": photograph for name in "ab" for n in range(9)})
    program = (
        "import resource, sys\n"
        "from dinoquant.data.layout import open_dataset\nfrom dinoquant.data.pack import pack\n"
        "from dinoquant.data.selection import select\n"
        "peaks = []\n"
        "for images in (1, 6):\n"
        "    with open_dataset(sys.argv[1]) as dataset:\n"
        "        pack(dataset, select(dataset, images, 4, 1, 0), sys.argv[2], 'error')\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(peaks[1] - peaks[0])\n"
    )
    arguments = [str(tmp_path / name) for name in ("x.zip", "x.npy")]
    scripts = Path(__file__).parents[2] / "workflow" / "scripts"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env={"PYTHONPATH": str(scripts)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40_000  # kB; twelve such images decoded take 216 MB


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in (b"caf\xe9", b"n\n1"):
        (folder / os.fsdecode(name)).mkdir(parents=True)
        for n in range(3):
            (folder / os.fsdecode(name) / f"{n}.png").write_bytes(encoded(Image.new("RGB", (8, 8)), "PNG"))
    result, _ = packed(folder, tmp_path / "x.npy", (1, 2, 2))
    write_manifest(result, tmp_path / "manifest.csv")
    assert {row["member"] for row in read_rows(tmp_path / "manifest.csv")} <= {
        f"{name}/{n}.png" for name in (r"caf\xe9", "n\n1") for n in range(3)
    }
    assert set(read_wnids(tmp_path / "manifest.csv")) == {0, 1}


def test_images_without_labels(tmp_path: Path) -> None:
    result, description = packed(write_zip(tmp_path / "x.zip", flat()), tmp_path / "x.npy", (3, 4, 5))
    assert {(row["wnid"], row["label"]) for row in result.rows} == {("", -1)}
    assert description["splits"] == {"bank": 0, "query": 4, "calibration": 5}
    assert description["unlabelled"] == UNLABELLED
    write_manifest(result, tmp_path / "manifest.csv")
    assert [part.tolist() for part in read_split(tmp_path / "manifest.csv", "bank")] == [[], []]
    assert read_split(tmp_path / "manifest.csv", "query")[1].tolist() == [-1] * 4


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
    assert {row["error"] for row in description["skipped"]} == {
        "not an image in a known format (JPEG, PNG, WEBP, BMP, TIFF, GIF)"
    }
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


def test_real_images_are_the_same_in_every_layout(real_data: Path, tmp_path: Path) -> None:
    """Ten images of each of 20 classes, as the official zip, unpacked, and as torchvision's ImageFolder of links."""
    sizes = (10, 60, 20)
    digests = []
    cut = tmp_path / "cut.zip"
    with zipfile.ZipFile(real_data / "tiny-imagenet-200.subset.zip") as whole:
        names = whole.namelist()
        classes = whole.read(f"{TOP}wnids.txt").decode().split()[:20]
        labels = dict(
            line.split("\t")[:2] for line in whole.read(f"{TOP}val/val_annotations.txt").decode().splitlines()
        )
        with zipfile.ZipFile(cut, "w") as part:
            for name in names:
                label = name.split("/")[2] if "/train/" in name else labels.get(Path(name).name)
                if label in classes or name.endswith(("wnids.txt", "annotations.txt")):
                    part.writestr(name, whole.read(name))
    with zipfile.ZipFile(cut) as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked, image_folder = tmp_path / "unpacked" / TOP, tmp_path / "image-folder"
    for path in unpacked.glob("*/**/*.JPEG"):
        split = path.relative_to(unpacked).parts[0]
        name = path.relative_to(unpacked).parts[1] if split == "train" else labels.get(path.name)
        if split in ("train", "val") and name in classes:
            target = image_folder / split / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    shutil.make_archive(str(tmp_path / "tarred"), "gztar", tmp_path / "unpacked")
    for source in (cut, unpacked, image_folder, tmp_path / "tarred.tar.gz"):
        packed(source, tmp_path / "images.npy", sizes)
        digests.append(hashlib.sha256((tmp_path / "images.npy").read_bytes()).hexdigest())
    assert len(set(digests)) == 1
