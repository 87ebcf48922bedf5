"""The float model: names, sizes, seeds, and what it says about itself."""

import logging
import re
from pathlib import Path

import pytest
import torch

from dinoquant.errors import UserError
from dinoquant.network import architecture


@pytest.mark.parametrize(
    ("name", "image_size", "tested_size", "dimension"),
    [
        ("vit_small_patch16_224.dino", None, 224, 384),
        ("vit_small_patch8_224.dino", 64, 64, 384),
        ("vit_base_patch16_224.dino", 64, 64, 768),
        ("vit_base_patch8_224.dino", 32, 32, 768),
        ("vit_small_patch14_dinov2.lvd142m", 224, 224, 384),
    ],
)
def test_dino_architectures_yield_feature_vectors(
    name: str, image_size: int | None, tested_size: int, dimension: int
) -> None:
    network = architecture.seeded(name, image_size, 0)
    assert architecture.side(network) == tested_size
    with torch.no_grad():
        features = network(torch.randn(2, 3, tested_size, tested_size))
    assert features.shape == (2, dimension)
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_small_patch16_224.dinoo", "vit_small_patch16_224.dino"),
        ("vit_base_patch16_224_sam", "vit_base_patch16_224"),
    ],
)
def test_unknown_architecture_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"Did you mean: (.*, )?{re.escape(nearest)}[,?]"):
        architecture.build(name)


@pytest.mark.parametrize(("name", "image_size"), [("test_resnet", 96), ("vit_small_patch16_dinov3.lvd1689m", 96)])
def test_other_sizes_of_image_survive_a_round_trip(name: str, image_size: int, tmp_path: Path) -> None:
    network = architecture.seeded(name, image_size, 0)
    info = architecture.info(network, name, "imagenet", substitute="seeded weights")
    assert info["image_size"] == image_size
    torch.save(network.state_dict(), tmp_path / "state_dict.pt")
    images = torch.randn(1, 3, image_size, image_size)
    restored = architecture.restore(info, tmp_path / "state_dict.pt")
    assert torch.equal(restored(images), network(images))
    assert architecture.side(restored) == image_size


def test_a_network_of_one_size_of_image_is_named() -> None:
    with pytest.raises(UserError, match="timm's Cait takes images of 224 pixels only"):
        architecture.build("cait_xxs24_224", 256)


def test_impossible_image_size_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Nearest sizes: 96 or 112"):
        architecture.build("test_vit", 100)


def test_seed_decides_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (architecture.seeded("test_vit", None, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patch_embed.proj.weight"], other["patch_embed.proj.weight"])


def test_weights_survive_a_round_trip_at_another_image_size(tmp_path: Path) -> None:
    seeded = architecture.seeded("test_vit", 64, 0)
    torch.save(seeded.state_dict(), tmp_path / "state_dict.pt")
    described = {"architecture": "test_vit", "image_size": 64, "pooling": "architecture", "output": "features"}
    restored = architecture.restore(described, tmp_path / "state_dict.pt")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(restored(images), seeded(images))


def test_weights_are_frozen_also_after_a_change_of_size() -> None:
    network = architecture.build("test_vit")
    assert not any(parameter.requires_grad for parameter in network.parameters())
    architecture.resize(network, 64)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network.pos_embed.shape[1] == 1 + 4 * 4


def test_info_describes_the_model() -> None:
    network = architecture.seeded("vit_small_patch16_224.dino", None, 0)
    info = architecture.info(
        network,
        "vit_small_patch16_224.dino",
        "imagenet",
        substitute=None,
        loaded=architecture.Loaded("teacher.backbone", ["student.backbone"], ["epoch"], ["head.bias"], ["Resized."]),
    )
    assert info == {
        "architecture": "vit_small_patch16_224.dino",
        "image_size": 224,
        "pooling": "token",
        "output": "features",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "feature_dim": 384,
        "patch_size": 16,
        "tokens": 197,
        "prefix_tokens": 1,
        "class_token": True,
        "parameters": 21_665_664,
        "normalization": "imagenet",
        "note": "Resized.",
        "substitute": None,
        "weights": "teacher.backbone",
        "other_weights": ["student.backbone"],
        "beside_weights": ["epoch"],
        "dropped": ["head.bias"],
    }


def test_info_warns_where_the_architecture_has_other_statistics(caplog: pytest.LogCaptureFixture) -> None:
    network = architecture.seeded("test_vit", None, 0)
    with caplog.at_level(logging.WARNING, logger="dinoquant"):
        info = architecture.info(network, "test_vit", "imagenet", substitute=None)
    assert info["mean"] == [0.485, 0.456, 0.406]
    assert "[0.5, 0.5, 0.5]" in info["note"]
    assert info["note"] in caplog.text
    native = architecture.info(network, "test_vit", "architecture", substitute=None)
    assert native["mean"] == native["std"] == [0.5, 0.5, 0.5]
    assert native["note"] is None
