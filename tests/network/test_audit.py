"""The audit: complete, honest about what was left alone, and in agreement with the file."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dinoquant.files import read_rows
from dinoquant.network import architecture, audit
from dinoquant.network.export import export
from dinoquant.recipes import cast, dynamic, static, weight_only

PER_TENSOR = {"recipe": "int8-dynamic", "modules": ["Linear"], "weights": "per-tensor", "engine": "auto"}
VARIANTS = {
    "fp32": (cast, {"recipe": "fp32"}),
    "bf16": (cast, {"recipe": "bf16"}),
    "fp16-dynamic": (dynamic, {"recipe": "fp16-dynamic"}),
    "linear": (dynamic, PER_TENSOR),
    "per-channel": (dynamic, {**PER_TENSOR, "weights": "per-channel", "modules": ["Linear", "Conv2d"]}),
    "static": (static, {**PER_TENSOR, "recipe": "int8-static", "observer": "minmax", "modules": ["Linear", "Conv2d"]}),
    "weight-only": (weight_only, {"recipe": "int8-weight-only", "modules": ["Linear", "Conv2d"]}),
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    network = architecture.seeded("vit_tiny_patch16_224", 32, 0)
    # Equal tensors, such as biases of zeros, would be stored once and counted often.
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(torch.rand(parameter.shape, generator=generator), alpha=1e-3)
    return network


def audited(network: nn.Module, variant: str, folder: Path) -> tuple[dict[str, dict[str, str]], int]:
    recipe, options = VARIANTS[variant]
    quantized = recipe.quantize(network, options, torch.randn(4, 3, 32, 32))
    info = architecture.info(network, "vit_tiny_patch16_224", "architecture", substitute=None)
    export(quantized, folder / "model.pt", variant, options, info)
    audit.write(folder / "audit.csv", network, options["recipe"], quantized)
    rows = read_rows(folder / "audit.csv")
    assert tuple(rows[0]) == audit.COLUMNS
    return {row["module"]: row for row in rows}, (folder / "model.pt").stat().st_size


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_agree_with_the_file(network: nn.Module, variant: str, tmp_path: Path) -> None:
    rows, size = audited(network, variant, tmp_path)
    assert sum(int(row["bytes_after"]) for row in rows.values()) == pytest.approx(size, rel=0.03)
    assert sum(int(row["parameters"]) for row in rows.values()) == sum(p.numel() for p in network.parameters())
    assert sum(int(row["bytes_before"]) for row in rows.values()) == 4 * sum(p.numel() for p in network.parameters())


def test_every_part_has_a_row_and_a_reason(network: nn.Module, tmp_path: Path) -> None:
    rows, _ = audited(network, "linear", tmp_path)
    leaves = {name for name, module in network.named_modules() if not list(module.children())}
    assert rows.keys() == leaves | {"cls_token", "pos_embed"} | {f"blocks.{i}.attn.softmax" for i in range(12)}
    assert all(row["reason"] for row in rows.values())
    known = {"Linear", "Conv2d", *audit.REASONS}
    assert {row["kind"] for row in rows.values()} <= known
    quantizable = {row["kind"] for row in rows.values() if row["quantizable"] == "true"}
    assert quantizable == {"Linear", "Conv2d"}


def test_what_was_left_alone_is_fp32(network: nn.Module, tmp_path: Path) -> None:
    rows, _ = audited(network, "linear", tmp_path)
    assert rows["blocks.3.mlp.fc2"]["became"].startswith("int8 dynamic, per-tensor weights")
    assert rows["blocks.3.mlp.fc2"]["asked"] == "int8-dynamic"
    for name in ("patch_embed.proj", "blocks.3.norm1", "blocks.3.attn.softmax", "pos_embed"):
        assert (rows[name]["became"], rows[name]["asked"]) == ("fp32", "")
        assert rows[name]["bytes_after"] == rows[name]["bytes_before"]


def test_bf16_halves_everything(network: nn.Module, tmp_path: Path) -> None:
    rows, _ = audited(network, "bf16", tmp_path)
    gelus = {name for name, row in rows.items() if row["kind"] == "GELU"}
    assert {name for name, row in rows.items() if row["became"] == "bfloat16"} == rows.keys() - gelus
    assert {rows[name]["became"] for name in gelus} == {"bfloat16, on a GPU approximated by tanh"}
    assert all(2 * int(row["bytes_after"]) == int(row["bytes_before"]) for row in rows.values())


def test_fp16_dynamic_saves_nothing_in_the_file(network: nn.Module, tmp_path: Path) -> None:
    rows, _ = audited(network, "fp16-dynamic", tmp_path)
    assert "stored as float32" in rows["blocks.0.attn.qkv"]["became"]


def test_a_convolution_that_is_no_patch_embedding_is_not_quantizable() -> None:
    padded = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 4, stride=4))
    quantizable = {
        row["module"]: row["quantizable"]
        for row in audit.rows(padded, "fp32", cast.quantize(padded, {"recipe": "fp32"}, None))
    }
    assert quantizable == {"0": "false", "1": "true"}


def test_a_package_s_audit_has_a_kernel_for_each_int8_module_and_for_no_other() -> None:
    rows = [{"module": "qkv", "precision": "int8", "kernel": ""}, {"module": "norm", "precision": "fp32", "kernel": ""}]
    kernels = [row["kernel"] for row in audit.with_kernels(rows, {"qkv": "by int8"})]
    assert kernels == ["by int8", ""]
    for wrong in ({}, {"qkv": "x", "norm": "x"}, {"qkv": "x", "query": "x"}):
        with pytest.raises(ValueError, match=r"without a kernel: (qkv|norm|query)$"):
            audit.with_kernels(rows, wrong)
