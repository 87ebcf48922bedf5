"""Every file gives its patch tokens too: timm's `forward_features`, whatever the recipe, and features of them."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinoquant.errors import UserError
from dinoquant.network.export import export, load
from dinoquant.network.merge import merge
from dinoquant.recipes.base import load_recipe
from dinoquant.recipes.output import token_count, with_output
from samples import photographs, tiny_vit

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {},
    "bf16": {},
    "int8-dynamic": {"modules": ["Linear"], "weights": "per-channel", "engine": "auto"},
    "int8-weight-only": {"modules": ["Linear"]},
    "int8-per-token": {"attention": "bf16", "portable": True},
    "int8-smooth": {"attention": "fp32", "portable": True},
}
SMALL: Mapping[str, Any] = {"img_size": 32, "num_classes": 0, "depth": 1, "embed_dim": 64, "num_heads": 2}


def built(name: str, **options: Any) -> nn.Module:
    """Return timm's network ``name`` for small images, merged, with seeded weights."""
    torch.manual_seed(0)
    return merge(timm.create_model(name, **SMALL, **options).eval().requires_grad_(False))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "class token": tiny_vit,
    "registers, average": lambda: tiny_vit(reg_tokens=2, global_pool="avg"),
    "norm behind the average": lambda: tiny_vit(global_pool="avg", fc_norm=True),
    "attention pooling": lambda: tiny_vit(global_pool="map"),
    "distilled": lambda: built("deit_tiny_distilled_patch16_224"),
    "dinov3": lambda: built("vit_small_patch16_dinov3.lvd1689m", global_pool="token", use_fc_norm=False),
}
CASES = [
    *(("fp32", name) for name in NETWORKS),
    *(("int8-per-token", name) for name in ("distilled", "dinov3")),
    *((recipe, "class token") for recipe in ("bf16", "int8-dynamic", "int8-weight-only", "int8-smooth")),
]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return photographs(6, seed=1)


def written(network: nn.Module, recipe: str, path: Path, output: str) -> torch.jit.ScriptModule:
    """Return the file that a recipe makes of the network."""
    info = {"architecture": "tiny", "image_size": 32, "pooling": "token", "mean": [0.5] * 3, "std": [0.5] * 3}
    info |= {"output": output, "tokens": token_count(network)}
    options = {"recipe": recipe, **OPTIONS[recipe]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = load_recipe(recipe).quantize(network, options, photographs(8, seed=2))
        export(quantized, path, "variant", options, info)
    return load(path)


@pytest.mark.parametrize(("recipe", "name"), CASES)
@torch.no_grad()
def test_tokens_are_timms_and_features_are_made_of_them(recipe: str, name: str, images: Tensor, tmp_path: Path) -> None:
    network: Any = NETWORKS[name]()
    expected, features = network.forward_features(images), network(images)
    gives_features = written(network, recipe, tmp_path / "features.pt", "features")
    gives_tokens = written(with_output(network, "tokens"), recipe, tmp_path / "tokens.pt", "tokens")
    tokens = gives_tokens(images)
    assert tokens.shape == expected.shape
    assert tokens.shape[1] == token_count(network)
    if recipe == "fp32":
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gives_features(images), features, rtol=1e-4, atol=1e-5)
    else:
        assert 0.95 < cosine_similarity(tokens, expected, dim=-1).min() < 1 - 1e-7
    every, head = gives_features.forward_features(images), network.forward_head
    # Not bit for bit: products of one token are summed in another order than those of all.
    torch.testing.assert_close(head(every), gives_features(images), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gives_tokens.forward_head(tokens), head(tokens), rtol=1e-5, atol=1e-5)
    assert torch.equal(every, tokens), "both have the same integers and scales"
    assert (tmp_path / "features.pt").stat().st_size < 1.05 * (tmp_path / "tokens.pt").stat().st_size + 20_000


def test_a_network_without_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.output is tokens, but a ResNet has no tokens"):
        with_output(timm.create_model("test_resnet", num_classes=0), "tokens")
