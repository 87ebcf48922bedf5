"""Size, memory and first answer of a model, against models whose needs are known."""

import json
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dinoquant.runtimes import footprint

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The first of the two files of a model, 3 MB in all."""
    paths = [tmp_path / "model.xml", tmp_path / "model.bin"]
    for path, size in zip(paths, (1_000_000, 2_000_000), strict=True):
        path.write_bytes(bytes(size))
    return paths[0]


def held(size: int) -> np.ndarray:
    """Return memory from the system itself, every page touched: an allocator may have some left from other tests."""
    block = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    block[:: mmap.PAGESIZE] = 1
    return block


def model(weights: int, activations: int) -> Callable[[], Callable[[], object]]:
    """Return the loader of a model that takes so many bytes, and so many more while it runs."""

    def load() -> Callable[[], object]:
        weights_held = held(weights)
        return lambda: (weights_held, held(activations))

    return load


def test_peak_is_the_models_own(files: Path) -> None:
    held(600 * MIB)  # held and let go of before
    large = footprint.observe(files, model(200 * MIB, 100 * MIB))
    held(600 * MIB)
    small = footprint.observe(files, model(MIB, MIB))
    if large["peak_rss_source"] != "VmHWM":
        pytest.skip("this system cannot restart the peak")
    assert 300 * MIB / 1e6 - 5 <= large["peak_rss_mb"] < 330 * MIB / 1e6
    assert small["peak_rss_mb"] < 20


def test_values_are_complete(files: Path) -> None:
    result = footprint.observe(files, model(MIB, MIB))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["size_mb"] == 3.0
    assert result["baseline_rss_mb"] > 10
    assert result["gpu_memory_mb"] is None


def test_memory_of_a_gpu_is_pytorchs(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5_000_000)
    assert footprint.observe(files, model(1, 1), "cuda")["gpu_memory_mb"] == 5.0


def test_load_and_inference_are_timed_apart(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def advance(seconds: float) -> None:
        clock[0] += seconds

    def load() -> Callable[[], object]:
        advance(2.0)
        return lambda: advance(0.25)

    monkeypatch.setattr(footprint.time, "perf_counter", lambda: clock[0])
    result = footprint.observe(files, load)
    assert (result["load_ms"], result["first_inference_ms"]) == (2000.0, 250.0)


def test_without_proc_the_lifetime_peak_is_used_and_named(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "STATUS", tmp_path / "absent")
    monkeypatch.setattr(footprint, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    result = footprint.observe(files, model(1, 1))
    assert result["peak_rss_source"] == "ru_maxrss since process start"
    assert result["baseline_rss_mb"] > 10
    assert result["peak_rss_mb"] >= 0


def test_a_peak_that_cannot_be_restarted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not footprint.STATUS.exists():
        pytest.skip("no /proc here")
    monkeypatch.setattr(footprint, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    assert footprint.restart_peak() == "VmHWM since process start"


def test_units_of_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\n")
    monkeypatch.setattr(footprint, "STATUS", status)
    assert footprint.peak_rss_bytes() == 2_048_000
    assert footprint.rss_bytes() == 1_024_000
