"""Extraction: order, partial batches, broken models, and the script around it."""

import contextlib
import json
import platform
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dinoquant.data.preprocess import preprocess
from dinoquant.errors import UserError
from dinoquant.judge import features
from dinoquant.judge.features import extract

CARD = {"engine": None, "runtime": "torchscript", "recipe": "fp32", "options": {}, "output": "features"}
INFO = {"image_size": 16, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "feature_dim": 3}
SCRIPT = Path(__file__).parents[2] / "workflow/scripts/extract_features.py"


def mean_colour(batch: torch.Tensor) -> torch.Tensor:
    return batch.mean(dim=(2, 3))


def plain_images(count: int) -> np.ndarray:
    """Return uint8 [count, 3, 18, 18], image i all of value i, so that its mean colour tells which it is."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 18, 18)).copy()


def run(model: Any, images: np.ndarray, indices: list[int], batch_size: int) -> tuple[np.ndarray, features.Timing]:
    return extract(
        model, images, np.array(indices), batch_size=batch_size, info=INFO, device="cpu", variant="some-variant"
    )


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_features_come_in_the_order_of_the_indices(batch_size: int) -> None:
    indices = [7, 3, 11, 0, 5, 5, 19, 2, 8, 1]
    sizes = []

    def model(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return mean_colour(batch)

    result, timing = run(model, plain_images(20), indices, batch_size)

    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.repeat(indices, 3).reshape(-1, 3) / 255, atol=1e-6)
    assert sizes == [len(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    assert timing.seconds >= timing.model_seconds > 0


def test_a_memory_map_and_a_traced_model_give_what_they_give_directly(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, 4, 4, generator=generator)
    traced = torch.jit.trace(lambda x: torch.nn.functional.conv2d(x, weight).amax((2, 3)), torch.zeros(2, 3, 16, 16))
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 18, 18), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)

    result, _ = run(traced, np.load(tmp_path / "images.npy", mmap_mode="r"), list(range(9)), 4)

    parts = [torch.from_numpy(images[i : i + 4]) for i in (0, 4, 8)]
    expected = [traced(preprocess(part, 16, INFO["mean"], INFO["std"])) for part in parts]
    np.testing.assert_array_equal(result, torch.cat(expected).numpy())


def test_one_batch_at_a_time_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def noticed(*arguments: Any) -> torch.Tensor:
        steps.append("prepare")
        return preprocess(*arguments)

    def model(batch: torch.Tensor) -> torch.Tensor:
        steps.append("model")
        return mean_colour(batch)

    monkeypatch.setattr(features, "preprocess", noticed)
    run(model, plain_images(10), list(range(10)), 4)
    assert steps == ["prepare", "model"] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_variant_and_image(value: float) -> None:
    def model(batch: torch.Tensor) -> torch.Tensor:
        result = mean_colour(batch)
        result[result[:, 0] > 6.5 / 255, 1] = value
        return result

    with pytest.raises(UserError, match=r"variant some-variant gives NaN or infinite features for 1 of 2 .* image 7 "):
        run(model, plain_images(8), [1, 2, 3, 7], 2)


class Outputs(list[str]):
    """What Snakemake hands to a script: a list whose files have names too."""

    @property
    def features(self) -> str:
        return self[0]

    @property
    def timing(self) -> str:
        return self[1]


def test_the_script_writes_bank_and_queries_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = ["query", "bank", "calibration", "bank", "query", "bank"]
    np.save(tmp_path / "images.npy", plain_images(6))
    lines = [f"{index},{split},n0,0,member,RGB" for index, split in enumerate(splits)]
    (tmp_path / "manifest.csv").write_text("\n".join(["index,split,wnid,label,member,mode", *lines]))
    (tmp_path / "info.json").write_text(json.dumps(INFO))
    traced = torch.jit.trace(mean_colour, torch.zeros(2, 3, 16, 16))
    torch.jit.save(
        traced,
        str(tmp_path / "model.pt"),
        _extra_files={"dinoquant.json": json.dumps(CARD)},
    )
    names = {
        "images": "images.npy",
        "manifest": "manifest.csv",
        "info": "info.json",
        "model": "model.pt",
        "fp32": "model.pt",
    }
    snakemake = SimpleNamespace(
        input=SimpleNamespace(**{key: str(tmp_path / name) for key, name in names.items()}),
        output=Outputs([str(tmp_path / "out.npz"), str(tmp_path / "out.json")]),
        params=SimpleNamespace(config={"device": "cpu", "batch_size": 2}),
        wildcards=SimpleNamespace(variant="v"),
        threads=1,
    )
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr("dinoquant.job.job", lambda _: contextlib.nullcontext())

    runpy.run_path(str(SCRIPT), init_globals={"snakemake": snakemake}, run_name="__main__")

    with np.load(tmp_path / "out.npz") as result:
        assert set(result) == {"bank", "query"}
        np.testing.assert_allclose(result["bank"][:, 0] * 255, [1, 3, 5], atol=1e-4)
        np.testing.assert_allclose(result["query"][:, 0] * 255, [0, 4], atol=1e-4)
    timing = json.loads((tmp_path / "out.json").read_text())
    assert timing.pop("seconds") / timing.pop("model_seconds") - 1 == pytest.approx(timing.pop("overhead"))
    assert [machine["node"] for machine in timing.pop("machines")] == [platform.node()]
    assert (timing.pop("unsupported"), timing.pop("saturation")) == (None, None)
    assert timing == {"variant": "v", "device": "cpu", "images": 5, "threads": 1, "batch_size": 2, "shards": 1}
    assert threads == [1]
