"""The recipes that keep trained features: their files load in stock PyTorch, on any processor, at any batch size."""

import io
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinoquant.data.preprocess import preprocess
from dinoquant.errors import UserError
from dinoquant.network import architecture, checkpoint
from dinoquant.network.card import read_card
from dinoquant.network.export import export, load
from dinoquant.recipes import recipes
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import Quantized, load_recipe
from dinoquant.recipes.int8.assemble import PER_TOKEN, STATIC
from dinoquant.recipes.int8.processor import int8_is_exact
from dinoquant.recipes.mixed import choose
from samples import photographs, tiny_vit

DYNAMIC = {"recipe": "int8-dynamic", "modules": ["Linear"], "weights": "per-tensor", "engine": "auto"}
MIXED = {"recipe": "int8-mixed", "default": "int8", "precisions": {"blocks.*.mlp.fc2": "int8-per-token"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "int8-per-token": {"recipe": "int8-per-token", "attention": "bf16", "portable": True},
    "int8-smooth": {"recipe": "int8-smooth", "attention": "bf16", "portable": True},
    "int8-mixed": {**MIXED, "attention": "bf16", "portable": True},
    "few-bits": {"recipe": "few-bits", "bits": 6, "attention": "bf16", "portable": True},
    "fp32-onednn": {"recipe": "fp32-onednn"},
}
INT8 = [name for name in VARIANTS if name != "fp32-onednn"]
EIGHT_BITS = [name for name in INT8 if name != "few-bits"]  # few-bits has mostly small integers, whatever is asked for
FOR_VNNI = {f"{name}-for-vnni": {**VARIANTS[name], "portable": False} for name in EIGHT_BITS}
FILES = VARIANTS | FOR_VNNI
BATCHES = (1, 3, 60)  # 60: more tokens than are taken at once
# What a user's process does with the files: no third-party package but PyTorch, nothing of this project.
STOCK = """
import sys
import torch

images = torch.load("images.pt")
answers = {}
with torch.no_grad():
    for name in sys.argv[1:]:
        model = torch.jit.load(f"{name}.pt")
        packed = [module for module in model.modules() if hasattr(module, "exact")]
        answer = answers[name] = {"features": [model(images[:count]) for count in (1, 3, 60)]}
        answer["exact"] = [module.exact for module in packed]
        torch.jit.save(model, "again.pt")
        answer["again"] = torch.jit.load("again.pt")(images[:3])
        for module in packed:  # what would be without the fallback
            module.packed = torch.ops.onednn.qlinear_prepack(module.weight.clone(), None)
            module.exact = True
        answer["forced"] = model(images[:3])
torch.save(answers, "answers.pt")
assert not {"dinoquant", "timm", "torchvision"} & set(sys.modules), "imported more than torch"
"""


def quantize(network: nn.Module, options: Mapping[str, Any], calibration: Tensor | None = None) -> Quantized:
    return load_recipe(options["recipe"]).quantize(network, options, calibration)


def write(quantized: Quantized, path: Path, options: Mapping[str, Any], size: int = 32) -> None:
    info = {
        "architecture": "tiny",
        "image_size": size,
        "pooling": "token",
        "output": "features",
        "tokens": None,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    export(quantized, path, path.stem, options, info)


def test_the_card_names_the_operators_that_not_every_build_of_pytorch_has(tmp_path: Path) -> None:
    """macOS has none of `mkldnn::`; the plain recipes need nothing of the kind."""
    expected = {
        "fp32": set(),
        "bf16": set(),
        "int8-weight-only": set(),
        "fp32-onednn": {"mkldnn::_linear_pointwise", "mkldnn::_reorder_linear_weight"},
        "int8-per-token": {"onednn::qlinear_pointwise", "mkldnn::_is_mkldnn_acl_supported"},
    }
    for recipe, operators in expected.items():
        options = {"recipe": recipe, "attention": "bf16", "modules": ["Linear"], "portable": True}
        write(quantize(tiny_vit(), options), tmp_path / f"{recipe}.pt", options)
        named = set(read_card(tmp_path / f"{recipe}.pt")["operators"])
        assert operators <= named if operators else not named, recipe


def tensors(path: Path) -> list[bytes]:
    """Return the contents of the tensors in a TorchScript file. (Its code holds numbers that count up in a process.)"""
    with zipfile.ZipFile(path) as archive:
        return [archive.read(entry) for entry in archive.infolist() if "/data/" in entry.filename]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return tiny_vit()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return photographs(60, seed=1)


@pytest.fixture(scope="module")
def quantized(network: nn.Module, images: Tensor) -> dict[str, Quantized]:
    return {name: quantize(network, options, images[:16]) for name, options in VARIANTS.items()}


@torch.no_grad()
def closeness(changed: nn.Module, network: nn.Module, images: Tensor) -> float:
    return float(cosine_similarity(changed(images), network(images)).min())


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_file_gives_the_features_of_the_module(
    name: str, quantized: dict[str, Quantized], network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    write(quantized[name], tmp_path / "model.pt", VARIANTS[name])
    loaded = load(tmp_path / "model.pt")
    for batch in BATCHES:
        found = loaded(images[:batch])
        assert found.dtype == torch.float32
        assert torch.equal(found, quantized[name].module(images[:batch]))
    assert closeness(loaded, network, images) > (0.9999 if name == "fp32-onednn" else 0.99)


@pytest.mark.parametrize("attention", ["bf16", "fp32"])
@pytest.mark.parametrize("name", INT8)
def test_became_is_every_linear_and_the_patch_embedding(
    name: str, attention: str, network: nn.Module, images: Tensor
) -> None:
    found = quantize(network, {**VARIANTS[name], "attention": attention}, images[:32])
    others = {f"blocks.{block}.attn.softmax" for block in range(2)} if attention == "bf16" else set()
    others |= {"cls_token", "pos_embed"} if name == "few-bits" else set()
    assert set(found.became) == {*targets(network), *others}
    assert set(found.asked) == {"Linear", "Conv2d"}
    assert closeness(found.module, network, images) > 0.99
    words = dict.fromkeys(["int8-smooth", "few-bits"], "int8 static")
    words |= dict.fromkeys(["int8-per-token", "int8-mixed"], "int8 per-token")
    assert found.became["blocks.1.mlp.fc2"].what.startswith(words[name])
    assert found.became["blocks.1.mlp.fc1"].what.startswith(words[name if name != "int8-mixed" else "int8-smooth"])


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_bytes_add_up_to_the_file(
    name: str, quantized: dict[str, Quantized], network: nn.Module, tmp_path: Path
) -> None:
    """What ``became`` says and what is in the file: integers, scales, biases, and what stayed float32."""
    write(quantized[name], tmp_path / "model.pt", VARIANTS[name])
    held = sum(len(content) for content in tensors(tmp_path / "model.pt"))
    plain = sum(
        parameter.nbytes
        for part, parameter in network.named_parameters()
        if part.rsplit(".", 1)[0] not in quantized[name].became
    )
    said = sum(converted.bytes for converted in quantized[name].became.values())
    assert said + plain <= held <= (said + plain) * 1.02  # some scalars, and the padding of an archive


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_feature_does_not_depend_on_its_batch_mates(
    name: str, quantized: dict[str, Quantized], images: Tensor
) -> None:
    changed = quantized[name].module
    among = changed(images[:16])
    alone = torch.cat([changed(image[None]) for image in images[:16]])
    # Not to the bit: a product may be summed up in another order.
    assert cosine_similarity(among, alone).min() > 0.9999
    hostile = images[:16].clone()
    hostile[1:] = 50 * hostile[1:] + 20
    assert torch.equal(changed(hostile)[0], among[0])


@torch.no_grad()
def test_with_one_scale_for_the_batch_it_does(network: nn.Module, images: Tensor) -> None:
    changed = quantize(network, DYNAMIC).module
    hostile = images[:16].clone()
    hostile[1:] = 50 * hostile[1:] + 20
    assert cosine_similarity(changed(hostile)[:1], changed(images[:16])[:1]) < 0.998


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_runs_write_equal_tensors(name: str, network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    for run in ("first", "second"):
        write(quantize(network, VARIANTS[name], images[:8]), tmp_path / f"{run}.pt", VARIANTS[name])
    assert tensors(tmp_path / "first.pt") == tensors(tmp_path / "second.pt")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_float_model_is_not_changed(name: str, images: Tensor) -> None:
    network, untouched = tiny_vit(), tiny_vit()
    quantize(network, VARIANTS[name], images[:4])
    assert [type(module) for module in network.modules()] == [type(module) for module in untouched.modules()]
    before = untouched.state_dict()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("calibration", [None, torch.empty(0, 3, 32, 32)])
def test_static_scales_need_calibration_images(network: nn.Module, calibration: Tensor | None) -> None:
    for name in ("int8-smooth", "int8-mixed"):
        assert recipes()[name].calibrated
        with pytest.raises(UserError, match=rf"{name} needs calibration images.*dataset\.calibration_images"):
            quantize(network, VARIANTS[name], calibration)


def test_per_token_scales_need_none(network: nn.Module, images: Tensor, quantized: dict[str, Quantized]) -> None:
    without = quantize(network, VARIANTS["int8-per-token"])
    assert torch.equal(without.module(images[:2]), quantized["int8-per-token"].module(images[:2]))


@pytest.mark.parametrize("name", INT8)
def test_other_transformers_are_refused(name: str, images: Tensor) -> None:
    with pytest.raises(UserError, match=r"q_norm is a LayerNorm.*Use int8-dynamic or int8-weight-only"):
        quantize(tiny_vit(qk_norm=True), VARIANTS[name], images[:2])


@torch.no_grad()
def test_onednn_is_float32_to_the_last_digits(
    network: nn.Module, images: Tensor, quantized: dict[str, Quantized]
) -> None:
    changed, expected = quantized["fp32-onednn"], network(images)
    assert not changed.became
    assert (changed.module(images) - expected).abs().max() < 1e-4 * expected.abs().max()
    kinds = {name: getattr(module, "original_name", "") for name, module in changed.module.named_modules()}
    assert {name for name, kind in kinds.items() if kind == "FloatLinear"} == set(targets(network)[1:])


def test_onednn_takes_linears_without_bias(images: Tensor, tmp_path: Path) -> None:
    network = tiny_vit(qkv_bias=False)
    quantized = quantize(network, VARIANTS["fp32-onednn"])
    write(quantized, tmp_path / "model.pt", VARIANTS["fp32-onednn"])
    torch.testing.assert_close(load(tmp_path / "model.pt")(images[:2]), network(images[:2]), rtol=1e-3, atol=1e-3)


class TestChoose:
    NAMES = ("patch_embed.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.1.mlp.fc2")

    def test_the_last_pattern_that_fits_wins(self) -> None:
        patterns = {"blocks.*": "bf16", "blocks.0.*": "fp32", "*.fc2": "int8-per-token"}
        assert choose(self.NAMES, "int8", patterns) == {
            "patch_embed.proj": "int8",
            "blocks.0.mlp.fc1": "fp32",
            "blocks.0.mlp.fc2": "int8-per-token",
            "blocks.1.mlp.fc2": "int8-per-token",
        }
        turned = choose(self.NAMES, "int8", dict(reversed(patterns.items())))
        assert set(turned.values()) == {"int8", "bf16"}

    def test_without_patterns_all_have_the_default(self) -> None:
        assert choose(self.NAMES, "bf16", {}) == dict.fromkeys(self.NAMES, "bf16")

    def test_a_pattern_that_fits_nothing_is_named(self) -> None:
        for pattern in ("blocks.9.*", "BLOCKS.*", "fc2"):
            with pytest.raises(UserError, match=rf"{pattern[:6]}.* fits no module.*patch_embed\.proj"):
                choose(self.NAMES, "int8", {"blocks.*": "bf16", pattern: "fp32"})

    def test_the_recipe_does_what_was_chosen(self, network: nn.Module, images: Tensor) -> None:
        options = {
            "recipe": "int8-mixed",
            "default": "fp32",
            "precisions": {"blocks.1.*": "int8", "*.qkv": "bf16"},
            "attention": "fp32",
            "portable": True,
        }
        found = quantize(network, options, images[:4])
        assert {name: converted.what.split(",")[0] for name, converted in found.became.items()} == {
            "blocks.0.attn.qkv": "bf16",
            "blocks.1.attn.qkv": "bf16",
            "blocks.1.attn.proj": "int8 static",
            "blocks.1.mlp.fc1": "int8 static",
            "blocks.1.mlp.fc2": "int8 static",
        }

    def test_all_in_float32_are_the_models_features(self, network: nn.Module, images: Tensor) -> None:
        options = {**MIXED, "default": "fp32", "precisions": {}, "attention": "fp32", "portable": True}
        found = quantize(network, options, images[:2])
        assert not found.became
        assert not found.asked
        torch.testing.assert_close(found.module(images), network(images), rtol=1e-4, atol=1e-4)

    def test_it_is_smooth_or_per_token_where_only_they_are_chosen(
        self, network: nn.Module, images: Tensor, quantized: dict[str, Quantized]
    ) -> None:
        for default, name in ((STATIC, "int8-smooth"), (PER_TOKEN, "int8-per-token")):
            options = {**MIXED, "default": default, "precisions": {}, "attention": "bf16", "portable": True}
            found = quantize(network, options, images[:16])
            words = [converted.what for converted in found.became.values()]
            assert words == [converted.what for converted in quantized[name].became.values()]
            assert cosine_similarity(found.module(images), quantized[name].module(images)).min() > 0.99


def stock(folder: Path, names: list[str], environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return what a fresh process without this project's path gets from the files in ``folder``."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # -I ignores the user's site folder, the environment's paths and the working folder.
    command = [sys.executable, "-I", "-W", "ignore", "-c", STOCK, *names]
    subprocess.run(command, cwd=folder, env={**inherited, **environment}, check=True, timeout=120)
    answers: dict[str, dict[str, Any]] = torch.load(folder / "answers.pt")
    return answers


@pytest.fixture(scope="module")
def folder(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a model whose weights are all of one size: sums of products reach beyond 16 bits at once."""
    folder = tmp_path_factory.mktemp("stock")
    network = tiny_vit()
    for name in targets(network):
        weight = network.get_submodule(name).weight
        weight.copy_(weight.sign() * weight.abs().mean())
    torch.save(images, folder / "images.pt")
    for name, options in FILES.items():
        write(quantize(network, options, images[:16]), folder / f"{name}.pt", options)
    return folder


@pytest.fixture(scope="module")
def here(folder: Path, images: Tensor) -> dict[str, list[Tensor]]:
    with torch.no_grad():
        return {name: [load(folder / f"{name}.pt")(images[:batch]) for batch in BATCHES] for name in FILES}


def test_stock_pytorch_gives_the_same_features(folder: Path, here: dict[str, list[Tensor]]) -> None:
    found = stock(folder, list(FILES), {})
    for name, expected in here.items():
        assert all(torch.equal(*pair) for pair in zip(found[name]["features"], expected, strict=True)), name
        assert torch.equal(found[name]["again"], expected[1]), f"{name}, saved again"
        if name == "fp32-onednn":
            assert not found[name]["exact"]
        else:
            exact = int8_is_exact(FILES[name]["portable"])
            assert set(found[name]["exact"]) == {exact}
            assert not exact or torch.equal(found[name]["forced"], expected[1]), "nothing is forced here"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 instruction sets")
@pytest.mark.parametrize(
    ("environment", "saturates"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}, None),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, True),
        ({"ATEN_CPU_CAPABILITY": "default"}, None),
    ],
    ids=["sse41", "avx2", "avx512", "default"],
)
def test_stock_pytorch_gives_them_on_older_processors_too(
    environment: dict[str, str], saturates: bool | None, folder: Path, here: dict[str, list[Tensor]]
) -> None:
    """With the integers multiplied as such; those for VNNI as float32, and they would be wrong otherwise."""
    found = stock(folder, list(FILES), environment)
    for name, expected in here.items():
        for features, wanted in zip(found[name]["features"], expected, strict=True):
            assert cosine_similarity(features, wanted).min() > 0.999, name
        assert torch.equal(found[name]["again"], found[name]["features"][1])
        if name in INT8:
            assert all(found[name]["exact"]), f"{name} falls back to float32"
        if name in FOR_VNNI and saturates:
            assert not any(found[name]["exact"])
            forced = cosine_similarity(found[name]["forced"], expected[1]).min()
            assert forced < 0.98, "the saturating product is as good: this test could not fail"


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_size_of_a_vit(name: str, tmp_path: Path) -> None:
    network = architecture.seeded("vit_tiny_patch16_224", 64, 0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for variant, options in (("fp32", {"recipe": "fp32"}), (name, VARIANTS[name])):
        write(quantize(network, options, images), tmp_path / f"{variant}.pt", options, size=64)
    assert (tmp_path / f"{name}.pt").stat().st_size <= 0.28 * (tmp_path / "fp32.pt").stat().st_size


def read_images(archive: zipfile.ZipFile, part: str, count: int) -> Tensor:
    names = sorted(name for name in archive.namelist() if part in name and name.endswith(".JPEG"))
    chosen = names[:: len(names) // count][:count]
    decoded = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in chosen]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def real(real_data: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained ViT-Ti/16, 32 training and 64 validation images as the pipeline prepares them."""
    trained = architecture.build("vit_tiny_patch16_224")
    checkpoint.load(trained, real_data / "vit_tiny_patch16_224.imagenet1k.pth")
    info = architecture.info(trained, "vit_tiny_patch16_224", "imagenet", substitute=None)
    with zipfile.ZipFile(real_data / "tiny-imagenet-200.subset.zip") as archive:
        pixels = [read_images(archive, *which) for which in (("/train/", 32), ("/val/", 64))]
    training, validation = (preprocess(images, 224, info["mean"], info["std"]) for images in pixels)
    return trained, training, validation


@torch.no_grad()
def test_fidelity_on_trained_weights(real: tuple[nn.Module, Tensor, Tensor]) -> None:
    trained, training, validation = real
    expected = trained(validation)
    cosine = {
        options["recipe"]: float(
            cosine_similarity(quantize(trained, options, training).module(validation), expected).mean()
        )
        for options in (
            DYNAMIC,
            VARIANTS["int8-smooth"],
            VARIANTS["int8-per-token"],
            {**VARIANTS["few-bits"], "bits": 4.2},
        )
    }
    assert cosine["int8-dynamic"] < 0.95, (
        "the naive recipe keeps these features: images or weights are not trained ones"
    )
    assert cosine["int8-smooth"] >= 0.996
    assert cosine["int8-per-token"] >= 0.998
    assert cosine["few-bits"] >= 0.985
