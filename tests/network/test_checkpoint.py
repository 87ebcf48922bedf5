"""Reading checkpoints: every layout in use, nothing executed, nothing left over."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dinoquant.errors import UserError
from dinoquant.network.checkpoint import fit, load_state_dict

TENSORS = {"cls_token": torch.ones(1, 1, 4), "norm.weight": torch.arange(4.0)}


def network() -> nn.Module:
    model = nn.Module()
    model.norm = nn.LayerNorm(4)
    model.proj = nn.Linear(4, 3)
    return model


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in TENSORS.items()}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"model": TENSORS},
        {"state_dict": prefixed("module."), "epoch": 3},
        {"student": prefixed("wrong."), "teacher": prefixed("backbone.")},
        {"student": prefixed("module.backbone.")},
        {
            "teacher": prefixed("backbone."),
            "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]},
            "args": argparse.Namespace(arch="vit_small"),
        },
    ],
    ids=["plain", "model", "state_dict", "teacher", "student", "dino-full"],
)
def test_reads_plain_and_wrapped_state_dicts(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "c.pth")
    found = load_state_dict(tmp_path / "c.pth")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_reads_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "c.safetensors")
    assert torch.equal(load_state_dict(tmp_path / "c.safetensors")["norm.weight"], TENSORS["norm.weight"])


def test_fit_converts_to_float32_and_reports_dropped_heads() -> None:
    model = network()
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    heads = ["head.bias", "head.mlp.0.weight", "head.weight", "head_dist.weight", "mask_token"]
    dropped = fit(model, state | {name: torch.ones(2) for name in heads})
    assert dropped == heads
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.proj.weight, state["proj.weight"].float())


def test_fit_names_every_misfit_with_shapes() -> None:
    model = network()
    state = dict(model.state_dict())
    del state["norm.bias"]
    state |= {"proj.weight": torch.ones(3, 5), "extra": torch.ones(2)}
    with pytest.raises(UserError) as caught:
        fit(model, state)
    message = str(caught.value)
    assert "norm.bias [4] is missing" in message
    assert "extra [2] is unexpected" in message
    assert "proj.weight has shape [3, 5], expected [3, 4]" in message


def test_fit_lists_ten_misfits_and_counts_the_rest() -> None:
    model = network()
    with pytest.raises(UserError, match=r"x9 \[1\] is unexpected and 2 more \(12 in all\)"):
        fit(model, model.state_dict() | {f"x{i}": torch.ones(1) for i in range(12)})
