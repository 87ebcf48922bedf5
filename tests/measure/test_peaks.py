"""The machine's roofs: what is counted, what is tried, what is said where something is missing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoquant.measure import peaks


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products and arrays."""
    monkeypatch.setattr(peaks, "SIZES", (64,))
    monkeypatch.setattr(peaks, "ROUNDS", 2)
    monkeypatch.setattr(peaks, "PRODUCT_SECONDS", 0)
    monkeypatch.setattr(peaks, "MEMORY_SECONDS", 0)
    monkeypatch.setattr(peaks, "ARRAY_BYTES", (1 << 16, 1 << 16))


def takes(seconds: float) -> Callable[[peaks.Call], float]:
    return lambda call: seconds


def no_work(size: int) -> peaks.Call:
    return lambda: None


def test_a_multiply_add_is_two_operations() -> None:
    found = list(peaks.speeds(no_work, takes(1e-9), seconds=1e-7))
    assert [row["size"] for row in found] == list(peaks.SIZES)
    assert found[0]["flops"] == pytest.approx(2 * 512**3 / 1e-9)
    assert found[0]["calls"] >= 100


def test_products_grow_until_a_call_takes_too_long() -> None:
    assert [row["size"] for row in peaks.speeds(no_work, takes(1.0), seconds=0.1)] == [512]


def test_memory_counts_what_the_program_reads_and_writes(quick: None) -> None:
    found = peaks.bandwidth("cpu", takes(0.5))["bytes_per_s"]
    assert {name: speed * 0.5 / (1 << 16) for name, speed in found.items()} == {"read": 1, "copy": 2, "triad": 3}


@pytest.mark.parametrize("exact", [True, False])
def test_every_kernel_multiplies_whole_matrices(exact: bool) -> None:
    """And where the int8 product of the recipes is not exact, another takes its place."""
    names = set()
    for precision, name, kernel in peaks.kernels("cpu", exact and peaks.int8_is_exact(portable=True)):
        names.add(name)
        if precision == "bf16" and name.startswith("mkldnn") and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            continue
        result = kernel(64)()
        assert isinstance(result, torch.Tensor)
        assert result.shape == (64, 64)
    assert len(names) == 3


def test_where_bf16_is_emulated_no_product_ends_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "bfloat16_is_native", lambda: False)
    kernels = {name: kernel for _, name, kernel in peaks.kernels("cpu", peaks.int8_is_exact(portable=True))}
    assert torch.bfloat16 not in {kernel(16)().dtype for kernel in kernels.values()}


def test_result_is_json_and_has_a_roof_for_what_this_machine_can_do(quick: None) -> None:
    found = json.loads(json.dumps(peaks.measure("cpu", 1), allow_nan=False))
    tried = {(row["precision"], row["flops"]) for row in found["products"]}
    assert found["gemm_flops"]["fp32"] == max(flops for precision, flops in tried if precision == "fp32")
    assert found["gemm_flops"]["fp16"] is None
    assert found["bandwidth_bytes_per_s"] == max(max(row["bytes_per_s"].values()) for row in found["memory"])
    assert {row["round"] for row in found["products"]} == {0, 1}
    assert found["threads"] == torch.get_num_threads() == 1


def test_what_does_not_work_is_missing_with_its_reason(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: int) -> peaks.Call:
        raise RuntimeError("no such kernel\nin this build")

    monkeypatch.setattr(peaks, "int8_is_exact", lambda portable: False)
    monkeypatch.setattr(peaks, "_quantized_linear", broken)
    found = peaks.measure("cpu", 1)
    assert found["gemm_flops"]["int8"] is None
    assert found["notes"]["quantized::linear"] == "no such kernel"
    assert "wrong" in found["notes"]["onednn::qlinear_pointwise"]
    assert found["int8_exact"] is False


def test_rounds_that_differ_are_noted() -> None:
    def row(number: int, flops: float, **other: Any) -> dict[str, Any]:
        return {"precision": "fp32", "kernel": "mm", "size": 512, "round": number, "flops": flops} | other

    calm = [row(0, 100.0), row(1, 90.0), row(0, 1.0, size=64), row(1, 50.0, size=64), row(1, 40.0, kernel="slow")]
    assert peaks.disturbance(calm) is None
    assert "70% slower" in str(peaks.disturbance([*calm, row(2, 30.0)]))
    assert peaks.disturbance([]) is None


def test_shared_caches_count_once(tmp_path: Path) -> None:
    caches = {0: ("0-1", "32768K"), 1: ("0-1", "32768K"), 2: ("2-3", "16384K")}
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity masks")
    mine = sorted(os.sched_getaffinity(0))
    for processor, (shared, size) in zip(mine, caches.values(), strict=False):
        for index, level in ((0, 1), (3, 3)):
            folder = tmp_path / f"cpu{processor}/cache/index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "size").write_text(f"{size if level == 3 else '48K'}\n")
            (folder / "shared_cpu_list").write_text(f"{shared}\n")
    assert peaks.cache_bytes(tmp_path) == (32 << 20) + (16 << 20) * (len(mine) > 2)
    assert peaks.cache_bytes(tmp_path / "absent") is None
