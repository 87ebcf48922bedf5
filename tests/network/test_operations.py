"""Multiply-adds of a vision transformer, against the sum done by hand."""

from typing import Any

import pytest
import torch

from dinoquant.network import architecture, operations
from dinoquant.recipes.base import parts
from samples import tiny_vit


def by_hand(tokens: int, patches: int, width: int, depth: int, patch: int) -> dict[str, int]:
    """Return the multiply-adds of all parts of a kind; the hidden layer is four times as wide as the tokens."""
    return {
        "proj": patches * 3 * patch**2 * width,
        "qkv": depth * tokens * width * 3 * width,
        "softmax": depth * 2 * tokens**2 * width,
        "attn.proj": depth * tokens * width**2,
        "fc1": depth * tokens * width * 4 * width,
        "fc2": depth * tokens * width * 4 * width,
    }


def by_kind(counted: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, count in counted.items():
        kind = "attn.proj" if name.endswith("attn.proj") else name.rpartition(".")[2]
        found[kind] = found.get(kind, 0) + count
    return found


@pytest.mark.parametrize(("options", "prefix"), [({}, 1), ({"reg_tokens": 4}, 5), ({"qk_norm": True}, 1)])
@torch.no_grad()
def test_small_models(options: dict[str, Any], prefix: int) -> None:
    network = tiny_vit(**options)
    counted = operations.macs(network)
    assert by_kind(counted) == by_hand(tokens=16 + prefix, patches=16, width=64, depth=2, patch=8)
    assert set(counted) <= {part.name for part in parts(network)}, "names that no audit has"


def test_vit_small_on_shapes_alone() -> None:
    with torch.device("meta"):
        network = architecture.build("vit_small_patch16_224.dino")
    counted = operations.macs(network)
    assert by_kind(counted) == by_hand(tokens=197, patches=196, width=384, depth=12, patch=16)
    assert sum(counted.values()) == 4_598_498_304  # 4.6 G, as timm and the papers have it


@torch.no_grad()
def test_of_the_last_block_only_what_the_first_token_needs() -> None:
    network, tokens, width = tiny_vit(), 17, 64
    counted = operations.macs(network)
    found = operations.needed(network, counted)
    assert {name: found[name] for name in found if not name.startswith("blocks.1.")} == {
        name: counted[name] for name in counted if not name.startswith("blocks.1.")
    }
    assert {name.removeprefix("blocks.1."): found[name] for name in found if name.startswith("blocks.1.")} == {
        "attn.qkv": width**2 + tokens * width * 2 * width,
        "attn.softmax": 2 * tokens * width,
        "attn.proj": width**2,
        "mlp.fc1": 4 * width**2,
        "mlp.fc2": 4 * width**2,
    }


@torch.no_grad()
def test_a_mean_over_all_tokens_needs_everything() -> None:
    network = tiny_vit(global_pool="avg", class_token=False)
    assert operations.needed(network, operations.macs(network)) == operations.macs(network)


def test_another_image_size() -> None:
    with torch.device("meta"):
        network = architecture.build("vit_small_patch16_224.dino", 96)
    assert by_kind(operations.macs(network))["softmax"] == 12 * 2 * 37**2 * 384
