"""A transformer's anatomy: where its parts are, that the pass through them is the model's, what its head reads."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinoquant.errors import UserError
from dinoquant.judge.sensitivity import UNCHANGED, changed_features
from dinoquant.network import operations
from dinoquant.network.export import export, load
from dinoquant.recipes.anatomy.description import FC1, KINDS, QKV, SOFTMAX
from dinoquant.recipes.anatomy.families import anatomy_of, targets
from dinoquant.recipes.base import load_recipe, parts
from dinoquant.recipes.int8.calibration import observe
from samples import photographs, tiny_vit

OPTIONS: dict[str, dict[str, Any]] = {
    "int8-per-token": {"attention": "bf16", "portable": False},
    "int8-smooth": {"attention": "bf16", "portable": True},
    "int8-mixed": {
        "portable": True,
        "default": "int8",
        "precisions": {"*.fc2": "int8-per-token", "*.0.*": "fp32"},
        "attention": "fp32",
    },
}
HEADS = [
    ({}, 1),
    ({"reg_tokens": 4}, 1),
    ({"reg_tokens": 4, "no_embed_class": True}, 1),
    ({"global_pool": "avg"}, 17),
    ({"global_pool": "avg", "class_token": False}, 16),
    ({"global_pool": "map"}, 17),
    ({"pre_norm": True, "final_norm": False}, 1),
]


@pytest.fixture(scope="module")
def distilled() -> VisionTransformer:
    """DeiT with a distillation token: its head reads two tokens."""
    torch.manual_seed(0)
    network = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=0, depth=2)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return photographs(12, seed=1)


def reached(network: nn.Module, images: Tensor) -> set[int]:
    """Return the tokens behind the last block that the features depend on, by their gradients."""
    anatomy = anatomy_of(network)
    tokens = anatomy.embed(images)
    for layer in anatomy.layers():
        tokens = layer(tokens)
    tokens.requires_grad_(True)
    (gradient,) = torch.autograd.grad(anatomy.head(tokens).square().sum(), tokens)
    return set(gradient.abs().sum((0, 2)).nonzero().flatten().tolist())


@pytest.mark.parametrize(("options", "read"), HEADS)
def test_the_head_reads_no_more_tokens_than_it_says(options: dict[str, Any], read: int, images: Tensor) -> None:
    network = tiny_vit(**options)
    anatomy = anatomy_of(network)
    assert anatomy.tokens_read == read
    assert reached(network, images[:2]) <= set(range(read))


@pytest.mark.parametrize("options", [options for options, _ in HEADS])
@torch.no_grad()
def test_embed_layers_and_head_are_the_models_pass(options: dict[str, Any], images: Tensor) -> None:
    network = tiny_vit(**options)
    anatomy = anatomy_of(network)
    tokens = anatomy.embed(images)
    assert tokens.shape[1] == anatomy.tokens
    for layer in anatomy.layers():
        tokens = layer(tokens)
    assert torch.equal(anatomy.head(tokens), network(images))


def test_a_block_is_described_by_its_parts() -> None:
    network = tiny_vit(init_values=0.1)
    block = anatomy_of(network).blocks()[1]
    own = network.blocks[1]
    assert (block.heads, block.heads * block.head_width) == (own.attn.num_heads, 64)
    assert block.norms == (own.norm1, own.norm2)
    assert block.linears == dict(zip(KINDS, (own.attn.qkv, own.attn.proj, own.mlp.fc1, own.mlp.fc2), strict=True))
    for scale, module in zip(block.scales, (own.ls1, own.ls2), strict=True):
        assert scale is not None
        assert torch.equal(scale, module.gamma)
    assert anatomy_of(tiny_vit()).block(0).scales == (None, None)


def test_targets_are_the_patch_embedding_and_the_linears_of_the_blocks() -> None:
    expected = ["patch_embed.proj", *(f"blocks.{i}.{kind}" for i in range(2) for kind in KINDS)]
    assert targets(tiny_vit()) == targets(tiny_vit(global_pool="map")) == expected
    anatomy = anatomy_of(tiny_vit())
    assert {anatomy.name(1, kind) for kind in (*KINDS, SOFTMAX)} <= {part.name for part in parts(tiny_vit())}


def test_a_model_without_anatomy_is_named() -> None:
    with pytest.raises(UserError, match="The model is a Sequential"):
        anatomy_of(nn.Sequential(nn.Linear(3, 4)))


def test_a_distilled_head_reads_two_tokens(distilled: VisionTransformer, images: Tensor) -> None:
    anatomy = anatomy_of(distilled)
    assert (anatomy.tokens, anatomy.tokens_read) == (4 + 2, 2)
    assert reached(distilled, images) == {0, 1}
    counted = operations.macs(distilled)
    needed = operations.needed(distilled, counted)
    last = anatomy.depth - 1
    assert needed[anatomy.name(last, FC1)] * 6 == counted[anatomy.name(last, FC1)] * 2
    assert needed[anatomy.name(last, QKV)] * 18 == counted[anatomy.name(last, QKV)] * (2 * 6 + 2)
    assert needed[anatomy.name(0, QKV)] == counted[anatomy.name(0, QKV)]


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_a_distilled_model_keeps_its_features(
    name: str, distilled: VisionTransformer, images: Tensor, tmp_path: Path
) -> None:
    options = {"recipe": name, **OPTIONS[name]}
    quantized = load_recipe(name).quantize(distilled, options, images)
    info = {
        "architecture": "deit",
        "image_size": 32,
        "pooling": "token",
        "output": "features",
        "tokens": None,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    export(quantized, tmp_path / "model.pt", name, options, info)
    found = load(tmp_path / "model.pt")(images)
    assert torch.equal(found, quantized.module(images))
    assert cosine_similarity(found, distilled(images)).min() > 0.99


@torch.no_grad()
def test_a_distilled_model_is_analysed_module_by_module(distilled: VisionTransformer, images: Tensor) -> None:
    features = changed_features(distilled, images[:3], observe(distilled, images))
    torch.testing.assert_close(features[UNCHANGED], distilled(images[:3]), rtol=1e-4, atol=1e-4)
    assert {module for module, _ in features} >= set(targets(distilled))
