"""Size, memory and first answer of a model, against models whose weights are known."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dinoquant import footprint

SIZE = 8
INPUTS = 3 * SIZE * SIZE

# Holds 600 MB and lets go of it, measures, then once more: neither that peak nor what comes between may show.
FRESH = """
import json, sys
from pathlib import Path
import torch
from dinoquant import footprint
results = []
for model in sys.argv[1:]:
    held = torch.ones(150_000_000)
    del held
    results.append(footprint.measure(Path(model), image_size=8, device="cpu", threads=1))
print(json.dumps(results, allow_nan=False))
"""


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def save_model(path: Path, *widths: int) -> Path:
    """Save a traced chain of Linears of these widths over [B, 3, SIZE, SIZE]."""
    linears = [torch.nn.Linear(a, b) for a, b in zip((INPUTS, *widths), widths, strict=False)]
    model = torch.nn.Sequential(torch.nn.Flatten(), *linears).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.trace(model, torch.zeros(1, 3, SIZE, SIZE))), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "small.pt", 10)


def test_peak_is_the_models_own(tmp_path: Path, small: Path) -> None:
    large = save_model(tmp_path / "large.pt", 5_000, 10_000)  # 5,000 x 10,000 float32: 200 MB
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", FRESH, str(large), str(small)]
    output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    of_large, of_small = json.loads(output)
    assert 200 <= of_large["peak_rss_mb"] < 1000
    assert of_large["size_mb"] == large.stat().st_size / 1e6
    assert 200 < of_large["size_mb"] < 210
    if of_large["peak_rss_source"] != "VmHWM":
        pytest.skip("this system cannot restart the peak")
    assert of_large["peak_rss_mb"] < 550, "what was held before the measurement counted"
    assert of_small["peak_rss_mb"] < 100, "what was held between two measurements counted"


def test_values_are_complete_and_positive(small: Path) -> None:
    result = footprint.measure(small, image_size=SIZE, device="cpu", threads=1)
    assert result["size_mb"] == small.stat().st_size / 1e6
    assert result["load_ms"] > 0
    assert result["first_inference_ms"] > 0
    assert result["peak_rss_mb"] >= 0
    assert result["baseline_rss_mb"] > 10
    assert (result["device"], result["threads"]) == ("cpu", 1)
    assert torch.get_num_threads() == 1


def test_load_and_inference_are_timed_apart(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Model:
        def eval(self) -> "Model":
            return self

        def __call__(self, image: torch.Tensor) -> None:
            assert image.shape == (1, 3, SIZE, SIZE)
            assert torch.is_inference_mode_enabled()
            clock[0] += 0.25

    def load(path: Path, map_location: str) -> Model:
        clock[0] += 2.0
        return Model()

    monkeypatch.setattr(footprint.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.jit, "load", load)
    result = footprint.measure(small, image_size=SIZE, device="cpu", threads=1)
    assert (result["load_ms"], result["first_inference_ms"]) == (2000.0, 250.0)


def test_without_proc_the_lifetime_peak_is_used_and_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "STATUS", tmp_path / "absent")
    monkeypatch.setattr(footprint, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    result = footprint.measure(small, image_size=SIZE, device="cpu", threads=1)
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
