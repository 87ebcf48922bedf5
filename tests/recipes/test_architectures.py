"""Which of timm's networks work with which recipes: one small member of each kind, and what the others are told."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinoquant.errors import UserError
from dinoquant.judge import sensitivity
from dinoquant.network import architecture
from dinoquant.network.export import export, load
from dinoquant.network.merge import merge
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import load_recipe
from dinoquant.recipes.int8.calibration import observe
from samples import photographs

SMALL: Mapping[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 2}
FLOATS: Mapping[str, Mapping[str, Any]] = {"fp32": {}, "bf16": {}}
LINEARS: Mapping[str, Mapping[str, Any]] = {
    "int8-dynamic": {"modules": ["Linear"], "weights": "per-channel", "engine": "auto"},
    "int8-static": {"modules": ["Linear"], "weights": "per-channel", "engine": "auto", "observer": "minmax"},
    "int8-weight-only": {"modules": ["Linear"]},
}
BLOCKS: Mapping[str, Mapping[str, Any]] = {
    "int8-per-token": {"attention": "bf16", "portable": True},
    "int8-smooth": {"attention": "bf16", "portable": True},
    "int8-mixed": {"attention": "fp32", "portable": True, "default": "int8", "precisions": {"*.fc1": "int8-per-token"}},
    "few-bits": {"attention": "bf16", "portable": True, "bits": 6},
}
# By what works: all recipes; those that replace Linears; those in floating point. A name of timm's, and what makes the
# network small.
ALL: Mapping[str, Mapping[str, Any]] = {
    "vit_small_patch16_224.dino": SMALL,
    "vit_small_patch14_dinov2.lvd142m": SMALL,
    "vit_small_patch14_reg4_dinov2.lvd142m": SMALL,
    "vit_giant_patch14_reg4_dinov2.lvd142m": SMALL | {"embed_dim": 96},  # SwiGLU
    "vit_base_patch16_clip_224.openai": SMALL,
    "vit_base_patch16_siglip_224.webli": SMALL,  # attention pooling
    "deit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "vit_small_patch16_dinov3.lvd1689m": SMALL,
    "vit_small_patch16_dinov3_qkvb.lvd1689m": SMALL,
    "vit_small_plus_patch16_dinov3.lvd1689m": SMALL,  # SwiGLU
    "eva02_tiny_patch14_224.mim_in22k": SMALL,
    "eva_giant_patch14_224.clip_ft_in1k": SMALL,  # positions that are added, not rotated
    "vit_small_patch16_rope_mixed_224.naver_in1k": SMALL,
}
LINEARS_ONLY: Mapping[str, Mapping[str, Any]] = {
    "eva02_base_patch14_224.mim_in22k": SMALL,  # a norm inside the MLP
    "vit_base_patch16_clip_quickgelu_224.openai": SMALL,
    "aimv2_large_patch14_224.apple_pt": SMALL,  # RMSNorm
    "beit_base_patch16_224": SMALL,
    "cait_xxs24_224": {"embed_dim": 48, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
    "swinv2_tiny_window8_256": {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
    "test_convnext": {},
    "convit_tiny": {"embed_dim": 12, "depth": 2, "local_up_to_layer": 1, "img_size": 48},
    "gemma4_vit_167m": {"embed_dim": 64, "depth": 1, "num_heads": 2, "head_dim": 32, "intermediate_size": 96},
}
FLOATS_ONLY: Mapping[str, Mapping[str, Any]] = {"test_resnet": {}, "test_efficientnet": {}}
EVERY = {**ALL, **LINEARS_ONLY, **FLOATS_ONLY}
README = Path(__file__).parents[2] / "config" / "README.md"


def built(name: str) -> tuple[nn.Module, architecture.Info]:
    """Return the small network, merged, and what is known of it; patches as few as it allows, weights as if trained."""
    torch.manual_seed(0)
    options = dict(EVERY[name])
    transformer = "patch" in name and "window" not in name and "beit" not in name
    if transformer:
        options["img_size"] = 42 if "patch14" in name else 48
    model = timm.create_model(name, num_classes=0, **options)
    if getattr(model, "dynamic_img_size", False):
        model = timm.create_model(name, num_classes=0, dynamic_img_size=False, **options)
    if name.startswith("gemma4"):
        architecture.resize(model, 48)
    for parameter_name, parameter in model.requires_grad_(False).named_parameters():
        if re.search("gamma|bias", parameter_name):
            parameter.copy_(0.1 + 0.1 * torch.rand(parameter.shape))
    model = merge(model.eval())
    return model, architecture.info(model, name, "imagenet", substitute="random weights")


def images_for(info: architecture.Info) -> Tensor:
    size = info["image_size"]
    return torch.nn.functional.interpolate(photographs(4, seed=3), (size, size))


def check(name: str, recipes: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Quantize, write, read, and compare: the file with the module, which `export` does too, and with the model."""
    model, info = built(name)
    images = images_for(info)
    with torch.no_grad():
        expected = model(images)
    assert expected.shape == (len(images), info["feature_dim"])
    for recipe, options in recipes.items():
        quantized = load_recipe(recipe).quantize(model, {"recipe": recipe, **options}, images)
        export(quantized, folder / "model.pt", recipe, {"recipe": recipe, **options}, info)
        with torch.no_grad():
            found = load(folder / "model.pt")(images)
            torch.testing.assert_close(
                found, quantized.module(images), rtol=3e-2, atol=3e-2 * float(expected.abs().max())
            )
        assert cosine_similarity(found, expected).min() > 0.98, recipe
        if recipe == "fp32":
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_plain_transformers_take_every_recipe(name: str, tmp_path: Path) -> None:
    check(name, {**FLOATS, **LINEARS, **BLOCKS}, tmp_path)


def test_dinov3_takes_int8_auto(tmp_path: Path) -> None:
    """What each module does to the features is measured first, as the workflow does; one is said to do a lot."""
    model, info = built("vit_small_patch16_dinov3_qkvb.lvd1689m")
    images = images_for(info)
    features = sensitivity.changed_features(model, images, observe(model, images))
    labels = np.arange(len(images))
    bank = features[sensitivity.UNCHANGED].numpy(), labels
    table = sensitivity.rows(
        sensitivity.units(model, images[:1]), features, labels, bank, {"k": 1, "temperature": 0.07}
    )
    rows = [{key: str(value) for key, value in row.items()} for row in table]
    worst = next(row for row in rows if row["module"] == "blocks.1.mlp.fc2" and row["precision"] == "int8")
    worst["cosine_mean"] = "0.9"
    options = {"recipe": "int8-auto", "cosine": 0.999, "knn_drop": 100, "attention": "fp32", "portable": True}
    quantized = load_recipe("int8-auto").quantize(model, options, images, rows)
    export(quantized, tmp_path / "model.pt", "auto", options, info)
    with torch.no_grad():
        found, expected = load(tmp_path / "model.pt")(images), model(images)
    assert cosine_similarity(found, expected).mean() >= 0.999
    raised = [name for name in targets(model) if not quantized.became[name].why.startswith("int8:")]
    assert raised == ["blocks.1.mlp.fc2"]


@pytest.mark.parametrize("name", LINEARS_ONLY)
def test_others_take_the_recipes_that_replace_linears(name: str, tmp_path: Path) -> None:
    check(name, {**FLOATS, **LINEARS}, tmp_path)


@pytest.mark.parametrize("name", FLOATS_ONLY)
def test_convolutions_take_floating_point(name: str, tmp_path: Path) -> None:
    check(name, FLOATS, tmp_path)


@pytest.mark.parametrize("name", [*LINEARS_ONLY, *FLOATS_ONLY])
@pytest.mark.parametrize("recipe", BLOCKS)
def test_others_are_told_what_to_use_instead(recipe: str, name: str) -> None:
    model, info = built(name)
    with pytest.raises(UserError, match="Use int8-dynamic or int8-weight-only"):
        load_recipe(recipe).quantize(model, {"recipe": recipe, **BLOCKS[recipe]}, images_for(info))


@pytest.mark.parametrize("name", FLOATS_ONLY)
@pytest.mark.parametrize("recipe", LINEARS)
def test_a_network_without_linears_is_told_so(recipe: str, name: str) -> None:
    model, info = built(name)
    with pytest.raises(UserError, match=r"no Linear of this model was quantized: it has none.*bf16"):
        load_recipe(recipe).quantize(model, {"recipe": recipe, **LINEARS[recipe]}, images_for(info))


@pytest.mark.parametrize("name", ["eva02_base_patch14_224.mim_in22k", "vit_small_plus_patch16_dinov3.lvd1689m"])
def test_merged_networks_compute_what_timms_do(name: str) -> None:
    network = architecture.seeded(name, None, 0, "architecture")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = architecture.build(name, None, "architecture")
    assert network.state_dict().keys() != original.state_dict().keys()
    images = torch.rand(1, 3, architecture.side(network), architecture.side(network))
    with torch.no_grad():
        torch.testing.assert_close(network(images), original(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image_size", [32, 64, 96])
def test_rotary_positions_are_those_of_the_image_size(image_size: int) -> None:
    name = "vit_small_patch16_dinov3.lvd1689m"
    network = architecture.seeded(name, image_size, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = timm.create_model(name, num_classes=0, global_pool="token").eval()  # computes them for each image
    original.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, image_size, image_size)
    quantized = load_recipe("int8-mixed").quantize(
        network,
        {"recipe": "int8-mixed", "attention": "fp32", "portable": True, "default": "fp32", "precisions": {}},
        images,
    )
    with torch.no_grad():
        expected = original(images)
        torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(quantized.module(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "asked", "pooling"),
    [
        ("vit_small_patch16_dinov3.lvd1689m", None, "token"),
        ("vit_small_patch16_dinov3.lvd1689m", "architecture", "avg"),
        ("vit_small_patch16_224.dino", None, "token"),
        ("vit_small_patch16_224.dino", "avg", "avg"),
        ("eva02_tiny_patch14_224.mim_in22k", None, "avg"),
        ("deit_tiny_distilled_patch16_224", None, "architecture"),
        ("test_resnet", None, "architecture"),
    ],
)
def test_dinos_models_give_their_class_token(name: str, asked: str | None, pooling: str) -> None:
    network = architecture.build(name, None, asked)
    info = architecture.info(network, name, "imagenet", substitute=None)
    assert info["pooling"] == pooling
    again = architecture.like(info)
    assert again.state_dict().keys() == merge(network).state_dict().keys()
    if not isinstance(again, VisionTransformer | Eva) or pooling == "architecture":
        return
    tokens = torch.randn(2, 9, info["feature_dim"])
    prefix = info["prefix_tokens"]
    expected = tokens[:, 0] if pooling == "token" else tokens[:, prefix:].mean(1)
    torch.testing.assert_close(again.forward_head(tokens), again.fc_norm(expected))


def test_a_pooling_that_a_network_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"model.pooling is 'token', but test_resnet makes its features in one way"):
        architecture.build("test_resnet", None, "token")
    with pytest.raises(UserError, match="has no class token"):
        architecture.build("vit_base_patch16_siglip_gap_224.webli", None, "token")


def test_the_table_of_the_readme_is_what_is_tested() -> None:
    """Its rows name architectures as examples: for each group exactly those that are tested here."""
    rows = [line.split("|")[1:-1] for line in README.read_text().splitlines() if line.startswith("| ") and "✓" in line]
    table = {
        frozenset(re.findall(r"`([a-z0-9_.]+)`", cells[0])): [cell.strip() for cell in cells[1:]] for cells in rows
    }
    assert table == {
        frozenset(ALL): ["✓", "✓", "✓"],
        frozenset(LINEARS_ONLY): ["✓", "✓", ""],
        frozenset(FLOATS_ONLY): ["✓", "", ""],
    }
