"""Reading checkpoints: every layout in use, nothing executed, nothing left over."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dinoquant.checkpoint import fit, load_state_dict
from dinoquant.errors import UserError

TENSORS = {"cls_token": torch.ones(1, 1, 4), "norm.weight": torch.arange(4.0)}


class Runs:
    """Something whose unpickling would run a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


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


def test_refuses_to_run_code_and_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "extra": Runs(tmp_path / "ran")}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="refused") as caught:
        load_state_dict(tmp_path / "c.pth")
    assert not (tmp_path / "ran").exists()
    assert "torch.save" in str(caught.value)
    assert "mkdir" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_names_a_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*fetch it again"):
        load_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}, torch.ones(3)])
def test_rejects_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        load_state_dict(tmp_path / "c.pth")


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300], ids=["nan", "inf", "beyond-float32"])
def test_fit_rejects_values_that_are_not_finite(value: float) -> None:
    model = network()
    state = dict(model.state_dict()) | {"norm.bias": torch.tensor([0, 0, value, 0], dtype=torch.float64)}
    with pytest.raises(UserError, match=r"NaN or infinite values in norm\.bias"):
        fit(model, state)


def test_fit_rejects_integers() -> None:
    model = network()
    with pytest.raises(UserError, match=r"norm\.bias holds torch\.int64"):
        fit(model, model.state_dict() | {"norm.bias": torch.zeros(4, dtype=torch.int64)})
