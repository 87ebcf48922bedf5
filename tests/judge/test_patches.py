"""Patches are compared one by one, prefix tokens are none, and what cannot show its patches says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinoquant.errors import UserError
from dinoquant.files import write_json
from dinoquant.judge.patches import compare, summarise
from dinoquant.runtimes.opened import no_tokens

INFO: Any = {"image_size": 16, "mean": [0.0] * 3, "std": [1.0] * 3, "prefix_tokens": 2}
CONFIG: Any = {"batch_size": 2, "device": "cpu", "confidence": 0.95, "resamples": 200, "seed": 0}
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 16, 16), dtype=np.uint8)
CHOSEN = np.array([6, 0, 3, 1, 5])


def tokens(images: Tensor) -> Tensor:
    """Return two prefix tokens, then 16 patches of 4 pixels a side."""
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return torch.cat([torch.ones_like(patches[:, :2]), patches], 1)


def spoilt(images: Tensor) -> Tensor:
    """Return the same with the prefix turned round, and one patch of the brightest image as well."""
    found = tokens(images)
    found[:, :2] *= -1
    found[images.mean((1, 2, 3)) == PIXELS.mean((1, 2, 3)).max(), 2 + 5] *= -1
    return found


def test_a_model_is_itself() -> None:
    cosines, kept = compare(tokens, tokens, IMAGES, CHOSEN, INFO, CONFIG, np.array([0, 3]))
    assert cosines.shape == (5, 16)
    assert (cosines == 1).all()
    result = summarise(cosines, CONFIG)
    assert (result["patch_cosine_mean"], result["patch_cosine_p5"], result["patch_cosine_min"]) == (1, 1, 1)
    assert (result["patch_cosine_mean_ci_low"], result["patch_images"], result["patches"]) == (1, 5, 16)
    expected = tokens(all_pixels(CHOSEN[[0, 3]]))[:, 2:]
    np.testing.assert_array_equal(kept, expected.numpy())


def all_pixels(indices: np.ndarray) -> Tensor:
    from dinoquant.judge.features import prepared

    return torch.cat(list(prepared(IMAGES, indices, 7, INFO, "cpu")))


PIXELS = all_pixels(CHOSEN)


def test_one_patch_counts_and_prefix_tokens_do_not() -> None:
    cosines, _ = compare(spoilt, tokens, IMAGES, CHOSEN, INFO, CONFIG, np.array([0]))
    result = summarise(cosines, CONFIG)
    assert result["patch_cosine_min"] == -1
    assert result["patch_cosine_mean"] == pytest.approx(1 - 2 / (5 * 16))
    assert result["patch_cosine_p5"] == 1
    assert result["patch_cosine_mean_ci_low"] < result["patch_cosine_mean"] < result["patch_cosine_mean_ci_high"]
    assert np.argwhere(cosines < 0).tolist() == [[int(PIXELS.mean((1, 2, 3)).argmax()), 5]]


def test_tokens_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="precision overflows"):
        summarise(np.array([[1.0, np.nan]]), CONFIG)


@pytest.mark.parametrize(
    ("runtime", "output", "count", "reason"),
    [
        ("openvino", "features", 197, "openvino's file gives features only; with model.output: tokens"),
        ("openvino", "tokens", 197, None),
        ("openvino", "features", None, "test_resnet has no tokens"),
    ],
)
def test_the_reason_is_in_the_card(
    runtime: str, output: str, count: int | None, reason: str | None, tmp_path: Path
) -> None:
    write_json(tmp_path / "card.json", {"runtime": runtime, "output": output, "architecture": "test_resnet"})
    found = no_tokens(tmp_path / "model.xml", count)
    assert found is None if reason is None else reason in str(found)
