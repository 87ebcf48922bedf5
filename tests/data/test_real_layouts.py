"""Real images in the layouts that people have them in: the same pixels are packed, with the same features."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dinoquant.data.layout import open_dataset
from dinoquant.data.pack import pack
from dinoquant.data.preprocess import preprocess
from dinoquant.data.selection import select
from dinoquant.network import architecture, checkpoint

FEATURES_OF = 8


def image_folder(unpacked: Path, folder: Path) -> Path:
    """Link the images of Tiny ImageNet's layout into torchvision's."""
    for image in (unpacked / "train").glob("*/images/*"):
        target = folder / "train" / image.parts[-3] / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(image, target)
    for line in (unpacked / "val/val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        if (unpacked / "val/images" / name).exists():
            (folder / "val" / wnid).mkdir(parents=True, exist_ok=True)
            os.link(unpacked / "val/images" / name, folder / "val" / wnid / name)
    return folder


def test_the_layout_changes_neither_images_nor_features(real_data: Path, tmp_path: Path) -> None:
    official = real_data / "tiny-imagenet-200.subset.zip"
    with zipfile.ZipFile(official) as archive:
        archive.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    network = architecture.build("vit_tiny_patch16_224")
    checkpoint.load(network, real_data / "vit_tiny_patch16_224.imagenet1k.pth")
    digests, classes, features = [], [], []
    for path in (official, unpacked, image_folder(unpacked, tmp_path / "folder")):
        with open_dataset(path) as dataset:
            packed = pack(dataset, select(dataset, 2, 200, 16, seed=0), tmp_path / "images.npy", "error")
        digests.append(hashlib.sha256((tmp_path / "images.npy").read_bytes()).hexdigest())
        classes.append([(row["split"], row["wnid"], row["label"]) for row in packed.rows])
        images = torch.from_numpy(np.load(tmp_path / "images.npy")[-FEATURES_OF:])
        with torch.no_grad():
            features.append(network(preprocess(images, 224, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)))
    assert digests[0] == digests[1] == digests[2]
    assert classes[0] == classes[1] == classes[2]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
