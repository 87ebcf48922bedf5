"""Attention maps come out of every recipe's own file, and are those of the network that was written to it."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from dinoquant.judge.attention import NoAttentionError, cls_attention
from dinoquant.network.architecture import seeded
from dinoquant.network.export import export, load
from dinoquant.recipes.anatomy.families import anatomy_of
from dinoquant.recipes.base import load_recipe
from samples import photographs, tiny_vit

CARD = {
    "architecture": "tiny",
    "image_size": 32,
    "pooling": "token",
    "output": "features",
    "tokens": None,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
INFO = {**CARD, "patch_size": 8, "prefix_tokens": 1, "class_token": True}
DYNAMIC = {"recipe": "int8-dynamic", "modules": ["Linear", "Conv2d"], "weights": "per-channel", "engine": "auto"}
STATIC = {"modules": ["Linear"], "weights": "per-channel", "observer": "histogram", "engine": "auto"}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"recipe": "fp32"},
    "fp32-onednn": {"recipe": "fp32-onednn"},
    "bf16": {"recipe": "bf16"},
    "fp16-dynamic": {"recipe": "fp16-dynamic"},
    "int8-dynamic": DYNAMIC,
    "int8-static": {"recipe": "int8-static", **STATIC},
    "int8-weight-only": {"recipe": "int8-weight-only", "modules": ["Linear"]},
    "int8-per-token": {"recipe": "int8-per-token", "attention": "bf16", "portable": False},
    "int8-smooth": {"recipe": "int8-smooth", "attention": "fp32", "portable": True},
}
EXACT = {"fp32", "fp32-onednn"}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return photographs(3, seed=1)


def write(
    network: nn.Module, options: dict[str, Any], path: Path, size: int = 32
) -> tuple[nn.Module, torch.jit.ScriptModule]:
    """Return what the recipe makes of the network, and the same from its file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibration = torch.nn.functional.interpolate(photographs(8, seed=2), size=size)
        quantized = load_recipe(options["recipe"]).quantize(network, options, calibration)
        export(quantized, path, "variant", options, CARD | {"image_size": size})
    return quantized.module, load(path)


def hooked(network: Any, images: Tensor) -> np.ndarray:
    """Return the last block's attention of [CLS] to the patches, from its own queries and keys of each image."""
    block = network.blocks[-1].attn
    seen: dict[nn.Module, list[Tensor]] = {block.q_norm: [], block.k_norm: []}  # which do nothing
    handles = [
        module.register_forward_hook(lambda module, inputs, output: seen[module].append(output.float()))
        for module in seen
    ]
    with torch.no_grad():
        for image in images.split(1):
            network(image.to(next(network.parameters()).dtype))
    for handle in handles:
        handle.remove()
    queries, keys = map(torch.cat, seen.values())
    shares = (queries @ keys.mT / block.head_dim**0.5).softmax(-1)[:, :, 0, network.num_prefix_tokens :]
    return shares.unflatten(-1, (4, 4)).numpy()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_shows_the_attention_of_its_network(name: str, images: Tensor, tmp_path: Path) -> None:
    network = tiny_vit()
    quantized, loaded = write(network, VARIANTS[name], tmp_path / "model.pt")
    found = cls_attention(loaded, images.split(1), INFO)
    fp32 = hooked(network, images)
    assert fp32.std() > 0.02, "an even attention would prove nothing"
    assert found.dtype == np.float32
    if name in ("int8-per-token", "int8-smooth"):  # compiled: there is nothing left to hook, but it stays close
        np.testing.assert_allclose(found, fp32, atol=0.05)
    else:
        np.testing.assert_allclose(found, hooked(getattr(quantized, "model", quantized), images), atol=1e-5)
    assert (np.abs(found - fp32).max() > 1e-5) == (name not in EXACT), "what was quantized attends a little differently"


@pytest.mark.parametrize("name", ["fp32", "int8-per-token"])
def test_it_follows_the_weights_of_the_last_block_alone(name: str, images: Tensor, tmp_path: Path) -> None:
    """Other keys in the last block change it; another projection behind its attention does not."""
    network, other_keys, other_projection = tiny_vit(), tiny_vit(), tiny_vit()
    other_keys.blocks[-1].attn.qkv.weight[64:128] *= -1
    other_projection.blocks[-1].attn.proj.weight.mul_(-1)
    maps, changed, same = (
        cls_attention(write(each, VARIANTS[name], tmp_path / f"{number}.pt")[1], images.split(1), INFO)
        for number, each in enumerate((network, other_keys, other_projection))
    )
    assert np.corrcoef(maps.ravel(), changed.ravel())[0, 1] < 0.5
    np.testing.assert_allclose(same, maps, atol=1e-6)


def test_registers_are_no_patches(images: Tensor) -> None:
    network = tiny_vit(reg_tokens=2)
    found = cls_attention(network, images.split(1), {**INFO, "prefix_tokens": 3})
    np.testing.assert_allclose(found, hooked(network, images), atol=1e-6)


@pytest.mark.parametrize("name", ["fp32", "int8-per-token", "int8-smooth"])
def test_where_the_head_reads_two_tokens_it_is_the_last_blocks_too(name: str, images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, num_classes=0)
    network.eval().requires_grad_(False)
    network.blocks[-1].attn.qkv.weight[: 2 * network.embed_dim] *= 8  # seeded weights attend to all alike
    photos = torch.nn.functional.interpolate(images, size=64)
    _, loaded = write(network, VARIANTS[name], tmp_path / "model.pt", size=64)
    info = {**INFO, "image_size": 64, "patch_size": 16, "prefix_tokens": 2}
    found, fp32 = cls_attention(loaded, photos.split(1), info), hooked(network, photos)
    assert fp32.std() > 0.02, "an even attention would prove nothing"
    assert np.corrcoef(found.ravel(), fp32.ravel())[0, 1] > (1 - 1e-6 if name in EXACT else 0.9)


def test_what_shows_no_attention_says_why(images: Tensor) -> None:
    with pytest.raises(NoAttentionError, match=r"tiny has no \[CLS\] token"):
        cls_attention(tiny_vit(), images.split(1), {**INFO, "class_token": False})
    with pytest.raises(NoAttentionError, match="an operator that is not known"):
        cls_attention(nn.Flatten(), images.split(1), INFO)


@torch.no_grad()
def test_rotary_attention_is_found(images: Tensor) -> None:
    network = seeded("vit_small_patch16_dinov3.lvd1689m", 48, 0)
    info = {"architecture": "dinov3", "image_size": 48, "patch_size": 16, "prefix_tokens": 5, "class_token": True}
    large = torch.nn.functional.interpolate(images[:2], (48, 48))
    tokens = anatomy_of(network).embed(large)
    for layer in anatomy_of(network).layers()[:-1]:
        tokens = layer(tokens)
    block = network.blocks[-1]
    queries, keys, _ = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 6, 64)).permute(2, 0, 3, 1, 4)
    turned = apply_rot_embed_cat(keys[:, :, 5:], network.rope.get_embed(), half=True)
    keys = torch.cat([keys[:, :, :5], turned], 2)
    shares = (queries[:, :, :1] @ keys.mT / 8).softmax(-1)[:, :, 0, 5:].unflatten(-1, (3, 3))
    options = {"recipe": "int8-mixed", "attention": "fp32", "portable": True, "default": "fp32", "precisions": {}}
    variant = load_recipe("int8-mixed").quantize(network, options, large).module
    for model in (network, variant):
        found = cls_attention(model, large.split(1), info)
        torch.testing.assert_close(torch.from_numpy(found), shares, rtol=1e-4, atol=1e-5)
