"""The card inside a model file."""

import zipfile
from pathlib import Path

import pytest
import torch

from dinoquant.errors import UserError
from dinoquant.network.card import read_card


def test_reads_what_torch_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(traced, path, _extra_files={"dinoquant.json": '{"image_size": 224}'})
    assert read_card(path) == {"image_size": 224}


@pytest.mark.parametrize("member", ["model/data.pkl", "model/extra/other.json"])
def test_a_file_without_a_card_is_a_readable_error(tmp_path: Path, member: str) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "{}")
    with pytest.raises(UserError, match=r"model\.pt is not a model of this workflow"):
        read_card(path)


@pytest.mark.parametrize("content", [b"", b"half a model"])
def test_a_broken_file_is_a_readable_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected a TorchScript file"):
        read_card(path)
