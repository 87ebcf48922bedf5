"""The shortest time of a call: which products run in which precision, and which of the machine's roofs bounds them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dinoquant.files import read_rows
from dinoquant.measure import limits
from dinoquant.network import audit, operations
from dinoquant.recipes import recipes
from dinoquant.recipes.base import load_recipe
from samples import photographs, tiny_vit

MODULES = {"modules": ["Linear"], "weights": "per-channel", "engine": "auto", "observer": "minmax"}
MIXED = {"default": "int8", "precisions": {"blocks.0.*": "bf16", "blocks.1.mlp.fc2": "int8-per-token"}}
PEAKS = {"fp32": 1e9, "bf16": 2e9, "fp16": None, "int8": 4e9}
MACHINE = {"device": "cpu", "gemm_flops": PEAKS, "bandwidth_bytes_per_s": 1e9}
INFO = {"image_size": 10, "feature_dim": 100}  # 400 floats an image in and out

# The share of the model's multiply-adds in each precision, by kind of part: Linears, patch embedding, attention.
LINEARS, PATCHES, ATTENTION = 2 * 17 * 12 * 64**2, 16 * 3 * 8**2 * 64, 2 * 2 * 17**2 * 64
EXPECTED: dict[str, dict[str, int]] = {
    "fp32": {"fp32": LINEARS + PATCHES + ATTENTION},
    "fp32-onednn": {"fp32": LINEARS + PATCHES + ATTENTION},
    "bf16": {"bf16": LINEARS + PATCHES + ATTENTION},
    "fp16": {"fp16": LINEARS + PATCHES + ATTENTION},
    "fp16-dynamic": {"fp32": LINEARS + PATCHES + ATTENTION},
    "int8-dynamic": {"int8": LINEARS, "fp32": PATCHES + ATTENTION},
    "int8-static": {"int8": LINEARS, "fp32": PATCHES + ATTENTION},
    "int8-weight-only": {"fp32": LINEARS + PATCHES + ATTENTION},
    "int8-per-token": {"int8": LINEARS + PATCHES, "bf16": ATTENTION},
    "int8-smooth": {"int8": LINEARS + PATCHES, "bf16": ATTENTION},
    "int8-mixed": {"int8": LINEARS // 2 + PATCHES, "bf16": LINEARS // 2 + ATTENTION},
}


@pytest.mark.parametrize("name", EXPECTED)
@torch.no_grad()
def test_precisions_follow_the_audit(name: str, tmp_path: Path) -> None:
    network = tiny_vit()
    options = {"recipe": name, "attention": "bf16", "portable": True, **MODULES, **MIXED}
    quantized = load_recipe(name).quantize(network, options, photographs(8, 0))
    audit.write(tmp_path / "audit.csv", network, name, quantized)
    precisions = limits.read_precisions(tmp_path / "audit.csv")
    assert limits.macs_by_precision(operations.macs(network), precisions) == EXPECTED[name]


def test_without_an_audit_the_recipe_tells() -> None:
    expected = {"fp32": "fp32", "bf16": "bf16", "int8-nncf": "int8"}
    assert {name: recipe.precision for name, recipe in recipes("openvino").items()} == expected
    assert limits.macs_by_precision({"one": 3, "two": 4}, "int8") == {"int8": 7}


def limit(macs: dict[str, int], file_bytes: int, batch_size: int = 1, **machine: Any) -> limits.Row:
    return limits.limit(limits.Model(macs, file_bytes), batch_size, **INFO, machine=MACHINE | machine)


def test_compute_adds_up_over_precisions_and_images() -> None:
    found = limit({"fp32": 10**9, "int8": 10**9}, file_bytes=0, batch_size=2)
    assert found["limit_ms"] == pytest.approx(2 * (2000 + 500))
    assert (found["bound"], found["gmacs"]) == ("compute", 2.0)
    assert found["operations_per_byte"] == pytest.approx(2 * 2 * 2e9 / (2 * 1600))


def test_memory_bounds_a_model_of_few_operations() -> None:
    found = limit({"int8": 10**3}, file_bytes=10**9 - 4 * 1600, batch_size=4)
    assert found["limit_ms"] == pytest.approx(1000)
    assert found["bound"] == "memory"


@pytest.mark.parametrize("emulated", [1e7, None])
def test_a_precision_that_the_machine_emulates_is_no_slower_than_float32(emulated: float | None) -> None:
    found = limit({"bf16": 10**9}, 0, gemm_flops=PEAKS | {"bf16": emulated})
    assert found["limit_ms"] == pytest.approx(2000)


@pytest.mark.parametrize("macs", [{"fp16": 10**9}, {"ternary": 10**9}, {"fp32": 10**9, "fp16": 1}])
def test_what_is_not_known_is_missing(macs: dict[str, int], tmp_path: Path) -> None:
    models = {"x": limits.Model(macs, 1000)}
    table = limits.rows(models, [MACHINE], INFO, [("cpu", "x")], [1, 4])
    limits.write(tmp_path / "limits.csv", table)
    rows = read_rows(tmp_path / "limits.csv")
    assert [row["batch_size"] for row in rows] == ["1", "4"]
    assert {row["limit_ms"] for row in rows} == {row["bound"] for row in rows} == {""}
    assert all(float(row["operations_per_byte"]) > 0 for row in rows)
