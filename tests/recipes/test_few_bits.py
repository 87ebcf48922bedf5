"""Weights in few bits: steps as wide as the features bear, a file that compresses them, and nothing lost on the way."""

import io
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinoquant.errors import UserError
from dinoquant.files import deflated
from dinoquant.network.card import read_card
from dinoquant.network.export import _compressed, export, load
from dinoquant.recipes.base import Quantized, load_recipe
from dinoquant.recipes.int8.calibration import Observed
from dinoquant.recipes.int8.coarse import coarsely, equally_harmful
from dinoquant.recipes.int8.layers import quantize_weight
from dinoquant.recipes.int8.processor import pairs_fit
from samples import photographs, tiny_vit

FEW = {"recipe": "few-bits", "bits": 4.2, "attention": "bf16", "portable": True}
SMOOTH = {"recipe": "int8-smooth", "attention": "bf16", "portable": True}
INFO = {"architecture": "tiny", "image_size": 32, "pooling": "token", "mean": [0.5] * 3, "std": [0.5] * 3}
INFO |= {"output": "features", "tokens": None}
SIZES = st.integers(1, 40)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observed(width: int, outputs: int, seed: int = 0) -> Observed:
    inputs = noise(300, 4, seed=seed) @ noise(4, width, seed=1) + 0.3 * noise(300, width, seed=2) + 1.0
    rows = noise(300, seed=3).square()
    return Observed(inputs, rows, noise(outputs, seed=4).square() + 0.1, inputs.amin(0), inputs.amax(0))


def entropy(integers: Tensor) -> float:
    _, counts = integers.unique(return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum())


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=5000), st.lists(st.integers(-8, 8), max_size=5000)))
def test_whatever_is_deflated_comes_back(values: bytes | list[int]) -> None:
    content = values if isinstance(values, bytes) else torch.tensor(values, dtype=torch.int8).numpy().tobytes()
    packed = deflated(content)
    assert zlib.decompress(packed, -zlib.MAX_WBITS) == content
    assert len(packed) <= len(content) + 20


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("abc/", min_size=1, max_size=6), st.binary(max_size=300), max_size=5))
def test_compressed_archives_have_the_same_members(members: dict[str, bytes]) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with zipfile.ZipFile(io.BytesIO(_compressed(stored.getvalue()))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == members


def test_few_levels_take_their_entropy() -> None:
    integers = torch.round(3 * noise(1 << 17)).to(torch.int8)
    assert 8 * len(deflated(integers.numpy().tobytes())) / len(integers) < entropy(integers) + 0.06


@settings(max_examples=100, deadline=None)
@given(SIZES, SIZES, st.floats(-30, 30), st.booleans())
def test_any_steps_give_int8_that_every_processor_multiplies(
    outputs: int, width: int, power: float, portable: bool
) -> None:
    weight, seen = noise(outputs, width), observed(width, outputs)
    steps = torch.full((outputs,), 2.0**power)
    integers, scale, shift = coarsely(weight, steps, seen.inputs, seen.rows, portable)
    assert integers.dtype == torch.int8
    assert integers.shape == weight.shape
    assert integers.min() >= -127
    assert not portable or pairs_fit(integers)
    assert (scale >= quantize_weight(weight, portable)[1]).all()
    assert torch.isfinite(scale).all()
    assert torch.isfinite(shift).all()


def test_the_bias_takes_the_mean_error() -> None:
    weight, seen = noise(16, 64), observed(64, 16)
    integers, scale, shift = coarsely(weight, torch.full((16,), 2.0), seen.inputs, seen.rows, portable=True)
    errors = seen.inputs @ (integers * scale[:, None] - weight).T
    importance = seen.rows + seen.rows.mean()
    with_shift = (importance @ errors.square(), importance @ (errors - shift).square())
    assert (with_shift[1] < with_shift[0]).all()
    torch.testing.assert_close(importance @ errors / importance.sum(), shift, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [3.0, 4.2, 5.0])
def test_bits_are_those_asked_for_and_go_where_they_count(bits: float) -> None:
    weights = {"plain": noise(64, 96), "counts": noise(64, 96, seed=1)}
    seen = {name: observed(96, 64) for name in weights}
    seen["counts"].rows.mul_(100)
    steps = equally_harmful(weights, seen, bits, portable=True)
    found = {
        name: entropy(coarsely(weights[name], steps[name], seen[name].inputs, seen[name].rows, True)[0])
        for name in weights
    }
    assert abs(sum(found.values()) / 2 - bits) < 0.15
    assert found["counts"] - found["plain"] > 1.5, "an error that weighs 100 times as much, in steps not much finer"


def test_more_bits_than_int8_has_are_int8() -> None:
    weight, seen = {"a": noise(16, 64)}, {"a": observed(64, 16)}
    steps = equally_harmful(weight, seen, 8.0, portable=True)["a"]
    _, scale, _ = coarsely(weight["a"], steps, seen["a"].inputs, seen["a"].rows, portable=True)
    assert torch.equal(scale, quantize_weight(weight["a"], portable=True)[1])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return tiny_vit(embed_dim=128)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return photographs(32, seed=1)


@pytest.fixture(scope="module")
def quantized(network: nn.Module, images: Tensor) -> Quantized:
    return load_recipe("few-bits").quantize(network, FEW, images[:12])


@pytest.fixture(scope="module")
def folder(network: nn.Module, images: Tensor, quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    export(quantized, folder / "few.pt", "few", FEW, INFO)
    smooth = load_recipe("int8-smooth").quantize(network, SMOOTH, images[:12])
    export(smooth, folder / "smooth.pt", "smooth", SMOOTH, INFO)
    return folder


@torch.no_grad()
def test_the_file_is_half_as_large_and_keeps_the_features(folder: Path, network: nn.Module, images: Tensor) -> None:
    sizes = {name: (folder / f"{name}.pt").stat().st_size for name in ("few", "smooth")}
    assert sizes["few"] < 0.55 * sizes["smooth"]
    found, expected = load(folder / "few.pt")(images[12:]), network(images[12:])
    assert cosine_similarity(found, expected).mean() > 0.97


def test_what_is_loaded_is_what_int8_smooth_loads(folder: Path) -> None:
    kinds = {
        name: [
            (module.original_name, module.weight.shape)
            for module in load(folder / f"{name}.pt").modules()
            if hasattr(module, "packed")
        ]
        for name in ("few", "smooth")
    }
    assert [kind for kind, _ in kinds["few"]] == [kind for kind, _ in kinds["smooth"]]
    assert len(kinds["few"]) == 10


def test_the_audit_adds_up_to_the_file(folder: Path, quantized: Quantized, network: nn.Module) -> None:
    with zipfile.ZipFile(folder / "few.pt") as archive:
        held = sum(entry.compress_size for entry in archive.infolist() if "/data/" in entry.filename)
    plain = sum(
        parameter.nbytes
        for part, parameter in network.named_parameters()
        if part.rsplit(".", 1)[0] not in quantized.became and part not in quantized.became
    )
    said = sum(converted.bytes for converted in quantized.became.values())
    assert abs(said + plain - held) < 0.02 * held
    assert all("bits a weight" in quantized.became[f"blocks.0.{kind}"].what for kind in ("attn.qkv", "mlp.fc2"))


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(part: float, folder: Path, tmp_path: Path) -> None:
    content = (folder / "few.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="is not a model of this workflow"):
        read_card(tmp_path / "model.pt")
