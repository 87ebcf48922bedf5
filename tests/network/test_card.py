"""The card inside a model file."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from dinoquant.errors import UserError
from dinoquant.network.card import read_card
from dinoquant.network.export import load
from samples import damage


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


def test_a_wrong_bit_in_a_compressed_card_is_a_readable_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/dinoquant.json", json.dumps([str(n) for n in range(1000)]))
    damage(path, "dinoquant.json")
    with pytest.raises(UserError, match=r"model\.pt is not a model of this workflow"):
        read_card(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_wrong_bit_among_the_weights_is_found_before_they_are_used(tmp_path: Path, compression: int) -> None:
    """PyTorch itself loads such a file without a word."""
    saved, path = tmp_path / "saved.pt", tmp_path / "model.pt"
    traced = torch.jit.trace(torch.nn.Linear(50, 50), torch.zeros(1, 50))
    torch.jit.save(traced, saved, _extra_files={"dinoquant.json": '{"engine": null}'})
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", compression) as target:
        for member in source.namelist():
            target.writestr(member.replace("saved/", "model/"), source.read(member))
    assert load(path)
    damage(path, "data/0")
    with pytest.raises(UserError, match=r"model\.pt is damaged \(.*\)\. Delete it and run again"):
        load(path)
