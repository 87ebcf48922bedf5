"""Our recipes compiled ahead of time: the features of the TorchScript files, from int8 kernels, on this processor."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dinoquant import runtimes
from dinoquant.errors import UserError
from dinoquant.files import read_json, read_rows, write_json
from dinoquant.machine import compiled_for
from dinoquant.network import audit
from dinoquant.network.card import read_card
from dinoquant.network.export import export, load
from dinoquant.recipes.base import load_recipe
from dinoquant.recipes.int8 import compiled
from dinoquant.recipes.int8.processor import int8_is_exact
from dinoquant.report.deployed import link, linked, program
from dinoquant.runtimes import footprint, inductor
from dinoquant.runtimes.convert import LEAST_COSINE
from dinoquant.runtimes.opened import open_model
from samples import damage, tiny_vit

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
    made = load_recipe(recipe).quantize(tiny_vit(), options, images(8))
    export(made, path, "x", options, INFO)
    audit.write(folder / "quantized.csv", tiny_vit(), recipe, made)
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


@pytest.fixture(scope="module")
def compiled_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package, its card, and the TorchScript file and the audit that it was made from: read only."""
    if reason := runtimes.missing("inductor"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("compiled")
    source, options = quantized("int8-mixed", folder)
    card: Any = {**INFO, "variant": "x", "runtime": "inductor", "recipe": "int8-mixed", "options": options}
    card["versions"] = {"torch": version("torch")}
    # Compiling PyTorch's headers once more, to be quicker with later packages, is most of the time of a single one.
    quick = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inductor, "OPTIONS", inductor.OPTIONS | quick)
        patch.setattr("dinoquant.network.architecture.like", lambda described: tiny_vit())
        card |= inductor.Inductor().convert(source, folder / "model.pt2", card, None)
    write_json(folder / "card.json", card)
    return folder


@pytest.fixture
def package(compiled_files: Path, tmp_path: Path) -> Path:
    """The package, with all that lies beside it, to be changed."""
    return shutil.copytree(compiled_files, tmp_path / "x") / "model.pt2"


def test_a_package_gives_the_features_of_its_torchscript_file(compiled_files: Path) -> None:
    path, expected = compiled_files / "model.pt2", load(compiled_files / "model.pt")(images(5))
    with open_model(path, "cpu", threads=1, batch_size=5) as model:
        assert cosine_similarity(model(images(5)), expected).min() > LEAST_COSINE
        assert torch.equal(model.exact(images(5)), expected)
    with open_model(path, "cpu", threads=1, batch_size=1) as model:
        assert cosine_similarity(model(images(1)), expected[:1]).min() > LEAST_COSINE
    run = inductor.Inductor().load(path, read_card(path), 5)
    by_columns = images(5).transpose(2, 3).contiguous().transpose(2, 3).numpy()  # the same pixels, in another order
    assert cosine_similarity(torch.from_numpy(run(by_columns)), expected).min() > LEAST_COSINE


def test_the_audit_names_the_kernel_of_each_int8_module(compiled_files: Path) -> None:
    path = compiled_files / "model.pt2"
    kernels, rows = read_card(path)["kernels"], read_rows(compiled_files / "quantized.csv")
    merged = audit.with_kernels(rows, kernels)
    found = {row["module"]: row["kernel"] for row in merged if row["kernel"]}
    # Two blocks of four, one of them in bf16; and the patches. The last block's queries are two products of one module.
    assert found == kernels
    assert len(found) == 8
    assert {"patch_embed.proj", "blocks.1.attn.qkv"} <= found.keys()
    assert [{**row, "kernel": ""} for row in merged] == rows
    network: Any = compiled.rebuilt(tiny_vit(), load(compiled_files / "model.pt"))
    if int8_is_exact(portable=True):
        assert set(found.values()) == {"onednn::qlinear_pointwise, int8"}
        for _, linear in compiled.products(network):
            linear.exact = False
        with pytest.raises(RuntimeError, match="0 products are int8, but the compiled code has 9"):
            inductor.kernels(network, path)


def emptied(package: Path) -> None:
    package.write_bytes(b"")


def truncated(package: Path) -> None:
    package.write_bytes(package.read_bytes()[:-1000])


def damaged_code(package: Path) -> None:
    damage(package, ".so")


def without_code(package: Path) -> None:
    """Leave all members of the archive as they are but the library, which becomes text."""
    whole = package.rename(package.with_name("whole.zip"))
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(package, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"no library" if name.endswith(".so") else source.read(name))


def of_torchscript(package: Path) -> None:
    package.with_suffix(".pt").replace(package)


def without_card(package: Path) -> None:
    package.with_name("card.json").unlink()


def card_with(**entries: Any) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        card = package.with_name("card.json")
        write_json(card, {**read_json(card), **entries})

    return change


def compiled_elsewhere(package: Path) -> None:
    card_with(instructions=[*(compiled_for() or ()), "avx1024"])(package)


NO_PACKAGE = "model.pt2 is no package of this workflow, or damaged. Delete it and run again: it will be rebuilt."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (emptied, NO_PACKAGE),
        (truncated, NO_PACKAGE),
        (of_torchscript, NO_PACKAGE),
        (without_code, "model.pt2 does not load ("),
        (card_with(recipe="bf16"), "model.pt2 is x, and the card beside it another model's. Delete it and run again"),
        (
            compiled_elsewhere,
            "model.pt2 is machine code for a processor with avx1024, which this one lacks. Compile it",
        ),
    ],
)
def test_what_is_no_package_for_here_is_refused_in_a_sentence(
    change: Callable[[Path], None], words: str, package: Path
) -> None:
    change(package)
    with pytest.raises(UserError) as error:
        inductor.Inductor().load(package, read_card(package), 1)
    said = str(error.value)
    assert words in said
    assert "elete it and run again" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_card, "model.pt2 has no card.json beside it"),
        (damaged_code, ".wrapper.so). Delete it and run again"),
        (card_with(runtime="openvino"), "model.pt2 is no model of openvino, as its card says: another's. Delete both"),
        (card_with(runtime="torchscript"), "model.pt2 is no model of torchscript, as its card says"),
        (card_with(runtime="?"), "model.pt2 is no model of ?, as its card says"),
    ],
)
def test_a_damaged_file_or_another_card_starts_nothing(
    change: Callable[[Path], None], words: str, package: Path
) -> None:
    change(package)
    with pytest.raises(UserError) as opened, open_model(package, "cpu", threads=1, batch_size=1):
        pass
    with pytest.raises(UserError) as measured:
        footprint.measure(package, "cpu", threads=1)
    assert words in str(opened.value)
    assert str(measured.value) == str(opened.value)


def test_a_package_under_a_torchscript_file_s_name_is_refused(package: Path) -> None:
    renamed = package.replace(package.with_suffix(".pt"))
    with pytest.raises(UserError, match=r"model\.pt is not a model of this workflow"):
        read_card(renamed)


def test_a_package_of_another_pytorch_is_refused(compiled_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiled_files / "model.pt2"
    monkeypatch.setattr(inductor, "version", lambda library: "2.99.0")
    with pytest.raises(
        UserError, match=rf"compiled by PyTorch {version('torch')}, and this is 2\.99\.0, .* Compile it here"
    ):
        inductor.Inductor().load(path, read_card(path), 1)


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_the_programs_in_python_and_in_c_plus_plus_give_the_features_of_the_torchscript_file(
    package: Path, tmp_path: Path
) -> None:
    """As they stand and as their comments say, with PyTorch and Pillow alone."""
    folder = tmp_path / "results/recommended"
    artifacts = [str(package.with_name(name)) for name in ("model.pt2", "card.json", "model.pt")]
    python, cpp = (program(key, linked(artifacts, "cpu"), "cpu") for key in ("example", "example_cpp"))
    link({"cpu": {"artifacts": artifacts, "example": python, "example_cpp": cpp}}, folder)
    pixels = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(tmp_path / "photograph.jpg")
    allowed = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'torchvision', 'timm', 'dinoquant']))"
    (tmp_path / "sitecustomize.py").write_text(allowed)
    build = (folder / "cpu.cpp").read_text().partition("\n\n")[2].partition("*/")[0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", build],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    by_python, by_cpp = (torch.tensor([float(number) for number in line.split()]) for line in done.stdout.splitlines())
    torch.testing.assert_close(by_cpp, by_python, rtol=1e-4, atol=1e-4)  # it prints six digits
    prepared = torch.from_numpy(np.fromfile(tmp_path / "pixels.bin", dtype=np.float32)).view(1, 3, SIZE, SIZE)
    expected = load(package.with_suffix(".pt"))(prepared)[0]
    assert cosine_similarity(by_python, expected, dim=0) > LEAST_COSINE
