"""Our recipes compiled ahead of time: the features of the TorchScript files, from int8 kernels, on this processor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dinoquant import runtimes
from dinoquant.errors import UserError
from dinoquant.files import write_json
from dinoquant.machine import compiled_for
from dinoquant.network.export import export, load
from dinoquant.recipes.base import load_recipe
from dinoquant.recipes.int8 import compiled
from dinoquant.recipes.int8.processor import int8_is_exact
from dinoquant.runtimes import inductor
from dinoquant.runtimes.convert import LEAST_COSINE
from dinoquant.runtimes.opened import open_model
from samples import tiny_vit

SIZE = 32
INFO: dict[str, Any] = {"architecture": "tiny", "image_size": SIZE, "pooling": "token", "mean": [0.5], "std": [0.2]}
INFO |= {"output": "features", "tokens": 5}
OPTIONS: dict[str, dict[str, Any]] = {
    "int8-smooth": {},
    "int8-per-token": {"attention": "fp32"},
    "int8-mixed": {"default": "int8", "precisions": {"blocks.*.mlp.fc2": "int8-per-token", "blocks.0.*.qkv": "bf16"}},
}
needs_compiler = pytest.mark.skipif(bool(runtimes.missing("inductor")), reason=str(runtimes.missing("inductor")))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def quantized(recipe: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the TorchScript file of a recipe, and its options."""
    options = {"recipe": recipe, "runtime": "inductor", "attention": "bf16", "portable": True, **OPTIONS[recipe]}
    path = folder / "model.pt"
    export(load_recipe(recipe).quantize(tiny_vit(), options, images(8)), path, "x", options, INFO)
    return path, options


@pytest.mark.parametrize("recipe", OPTIONS)
def test_what_is_compiled_computes_what_the_torchscript_file_does(recipe: str, tmp_path: Path) -> None:
    path, _ = quantized(recipe, tmp_path)
    script = load(path)
    other = tiny_vit()
    for parameter in other.parameters():
        parameter.data.zero_()  # all that counts is in the file
    network = compiled.rebuilt(other, script)
    graph = inductor.export_graph(network, images(2)).module()
    with torch.no_grad():
        for count in (1, 60):  # more tokens than TorchScript takes at once
            expected = script(images(count))
            assert cosine_similarity(network(images(count)), expected).min() > LEAST_COSINE
            assert cosine_similarity(graph(images(count)), expected).min() > LEAST_COSINE
        tokens = network.forward_features(images(2)), script.forward_features(images(2))
        assert cosine_similarity(*tokens, dim=-1).min() > LEAST_COSINE


@needs_compiler
def test_a_package_has_int8_kernels_and_is_refused_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling PyTorch's headers once more, to be quicker with later packages, is most of the time of a single one.
    quick = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    monkeypatch.setattr(inductor, "OPTIONS", inductor.OPTIONS | quick)
    monkeypatch.setattr("dinoquant.network.architecture.like", lambda described: tiny_vit())
    source, options = quantized("int8-mixed", tmp_path)
    card: Any = {**INFO, "variant": "x", "runtime": "inductor", "recipe": "int8-mixed", "options": options}
    path = tmp_path / "model.pt2"
    card |= inductor.Inductor().convert(source, path, card, None)
    write_json(tmp_path / "card.json", card)
    with open_model(path, "cpu", threads=1, batch_size=5) as model:
        expected = load(source)(images(5))
        assert cosine_similarity(model(images(5)), expected).min() > LEAST_COSINE
        assert torch.equal(model.exact(images(5)), expected)
    with open_model(path, "cpu", threads=1, batch_size=1) as model:
        assert cosine_similarity(model(images(1)), expected[:1]).min() > LEAST_COSINE
    # Two blocks of four, one of them in bf16; the last block has its queries by themselves; and the patches.
    assert len(card["kernels"]) == 9
    if int8_is_exact(portable=True):
        assert set(card["kernels"].values()) == {"onednn::qlinear_pointwise, int8"}
        with pytest.raises(RuntimeError, match="0 products are int8, but the compiled code has 9"):
            inductor.kernels(tiny_vit(), path)
    assert card["instructions"] == compiled_for()
    write_json(tmp_path / "card.json", {**card, "instructions": [*card["instructions"], "avx1024"]})
    with (
        pytest.raises(UserError, match="machine code for a processor with avx1024, which this one lacks"),
        open_model(path, "cpu", threads=1, batch_size=1),
    ):
        pass
