"""A sharded extraction deals out whole batches, so that it gives the features of the whole, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dinoquant.errors import UserError
from dinoquant.judge.features import extract
from dinoquant.judge.shards import gather, gather_timings, shard_indices

INFO = {"image_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3, "feature_dim": 5}
SPLITS = {"bank": np.arange(23)[::-1].copy(), "query": np.arange(30, 41)}


@pytest.fixture(scope="module")
def model() -> Callable[[torch.Tensor], torch.Tensor]:
    """One scale over the whole batch: a feature depends on its batch-mates."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)).eval()
    return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)


def extracted(model: Callable[[torch.Tensor], torch.Tensor], splits: dict) -> dict:
    scales = np.linspace(140, 255, 41)[:, None, None, None]  # so that no two batches have the same range
    images = (np.random.default_rng(0).random((41, 3, 16, 16)) * scales).astype(np.uint8)
    return {
        split: extract(model, images, indices, batch_size=4, info=INFO, device="cpu", variant="x")[0]
        for split, indices in splits.items()
    }


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 9])
def test_shards_give_the_features_of_the_whole(
    model: Callable[[torch.Tensor], torch.Tensor], shards: int, tmp_path: Path
) -> None:
    files = [tmp_path / f"{n}.npz" for n in range(1, shards + 1)]
    for n, file in enumerate(files, 1):
        np.savez(file, **extracted(model, shard_indices(SPLITS, 4, n, shards)))
    whole, gathered = extracted(model, SPLITS), gather(files, SPLITS)
    assert list(gathered) == ["bank", "query"]
    for split in SPLITS:
        assert gathered[split].tobytes() == whole[split].tobytes()


def test_shards_are_even_and_hold_every_image_once() -> None:
    dealt = [shard_indices(SPLITS, 4, n, 4) for n in range(1, 5)]
    assert [sum(-(-len(rows) // 4) for rows in shard.values()) for shard in dealt] == [2, 2, 2, 3]
    for split, indices in SPLITS.items():
        assert np.concatenate([shard[split] for shard in dealt]).tolist() == indices.tolist()


def test_more_shards_than_batches_are_refused() -> None:
    with pytest.raises(UserError, match=r"accuracy\.shards is 10, but there are only 9 batches"):
        shard_indices(SPLITS, 4, 1, 10)


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "1of2.npz"
    np.savez(file, bank=np.zeros((23, 5), np.float32), query=np.zeros((3, 5), np.float32))
    with pytest.raises(UserError, match="features of 3 query images; expected 11"):
        gather([file], SPLITS)


def test_timings_add_up_and_name_every_machine_once(tmp_path: Path) -> None:
    one = {
        "variant": "x",
        "images": 8,
        "seconds": 3.0,
        "model_seconds": 2.0,
        "overhead": 0.5,
        "machines": [{"node": "a"}],
        "unsupported": None,
        "saturation": {"saturates": False, "cosine": 0.9999, "images": 8},
    }
    saturation = {"saturates": True, "cosine": 0.9, "images": 8}
    two = {**one, "images": 4, "seconds": 2.0, "machines": [{"node": "b"}], "saturation": saturation}
    files = []
    for n, timing in enumerate([one, two, one]):
        files.append(tmp_path / f"{n}.json")
        files[-1].write_text(json.dumps(timing))
    assert gather_timings(files) == {
        "variant": "x",
        "images": 20,
        "seconds": 8.0,
        "model_seconds": 6.0,
        "overhead": pytest.approx(1 / 3),
        "shards": 3,
        "machines": [{"node": "a"}, {"node": "b"}],
        "unsupported": None,
        "saturation": saturation,
    }


def test_one_refused_shard_is_enough(tmp_path: Path) -> None:
    done = {"seconds": 3.0, "model_seconds": 2.0, "images": 8, "machines": [], "unsupported": None, "saturation": None}
    refused = {**done, "seconds": 0.0, "model_seconds": 0.0, "images": 0, "unsupported": "emulated"}
    files, timings = [], []
    for n, (timing, images) in enumerate([(done, 23), (refused, 0)]):
        timings.append(tmp_path / f"{n}.json")
        timings[-1].write_text(json.dumps(timing))
        files.append(tmp_path / f"{n}.npz")
        np.savez(files[-1], bank=np.zeros((images, 5), np.float32), query=np.zeros((0, 5), np.float32))
    assert gather_timings(timings)["unsupported"] == "emulated"
    assert gather_timings(timings[1:])["overhead"] is None
    assert {split: len(rows) for split, rows in gather(files, SPLITS, partly=True).items()} == {"bank": 0, "query": 0}
