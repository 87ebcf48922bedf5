"""One small data set in the layouts that people have: three classes, six training and three validation images each."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from samples import encoded

TOP = "tiny-imagenet-200/"
CLASSES = ["n01", "n02", "n03"]
Files = dict[str, bytes]


def picture(seed: int, size: tuple[int, int] = (64, 64), kind: str = "JPEG") -> bytes:
    """Return a file of one colour that no other seed below 30 has."""
    return encoded(Image.new("RGB", size, (seed * 8, 255 - seed * 8, 90)), kind)


def official(top: str = TOP) -> Files:
    """Return Tiny ImageNet's own layout."""
    files = {f"{top}wnids.txt": "".join(f"{name}\n" for name in CLASSES).encode()}
    for number, name in enumerate(CLASSES):
        for n in range(6):
            files[f"{top}train/{name}/images/{name}_{n}.JPEG"] = picture(6 * number + n)
    lines = []
    for n in range(9):
        files[f"{top}val/images/val_{n}.JPEG"] = picture(18 + n)
        lines.append(f"val_{n}.JPEG\t{CLASSES[n % 3]}\t0\t0\t9\t9\n")
    return files | {f"{top}val/val_annotations.txt": "".join(lines).encode()}


def by_class(folder: str = "", annotations: bool = False) -> Files:
    """Return it with the validation images sorted into folders of their class, in a ``folder`` there."""
    kept = ("/train/", "wnids.txt", *["val_annotations.txt"] * annotations)
    files = {name: data for name, data in official().items() if any(part in name for part in kept)}
    for n in range(9):
        files[f"{TOP}val/{CLASSES[n % 3]}/{folder}val_{n}.JPEG"] = picture(18 + n)
    return files


def image_folder(top: str = "data/", train: str = "train", val: str = "val") -> Files:
    """Return torchvision's ImageFolder."""
    files = {}
    for number, name in enumerate(CLASSES):
        for n in range(6):
            files[f"{top}{train}/{name}/{name}_{n}.JPEG"] = picture(6 * number + n)
    return files | {f"{top}{val}/{CLASSES[n % 3]}/val_{n}.JPEG": picture(18 + n) for n in range(9)}


def one_folder(top: str = "photos/") -> Files:
    """Return a folder for each class, with nine images each."""
    pairs = [(number, n) for number in range(3) for n in range(9)]
    return {f"{top}{CLASSES[number]}/{n}.png": picture(9 * number + n, kind="PNG") for number, n in pairs}


def flat(top: str = "photos/") -> Files:
    """Return images without labels."""
    return {f"{top}{n:02}.JPEG": picture(n) for n in range(27)}


def write_zip(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.filename = info.orig_filename = name  # the constructor ends the name at a NUL
            archive.writestr(info, data)
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
