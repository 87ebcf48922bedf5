"""The analysis of single modules: what it computes is what the whole model with one change would give."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinoquant.errors import UserError
from dinoquant.files import read_rows, write_rows
from dinoquant.judge import sensitivity
from dinoquant.judge.sensitivity import UNCHANGED, changed_features, units
from dinoquant.network import architecture
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.int8.assemble import FP32, PER_TOKEN, STATIC, assemble
from dinoquant.recipes.int8.calibration import Observed, observe
from dinoquant.report.figures import sensitivity as figure
from dinoquant.report.figures.style import use_style
from samples import photographs, tiny_vit

mpl.use("agg")
SIZE = 64
FIGURE_PARAMS = {"palette": "colorblind", "font_scale": 1.0, "dpi": 60, "variants": [], "batch_size": None}
FIGURE_PARAMS |= {"without_attention": {}, "without_patches": {}, "substitute": None}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return architecture.seeded("test_vit", SIZE, 0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(20, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def seen(network: nn.Module) -> dict[str, Observed]:
    return observe(network, torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)))


@pytest.fixture(scope="module")
def features(network: nn.Module, images: Tensor, seen: dict[str, Observed]) -> dict[tuple[str, str], Tensor]:
    return changed_features(network, images, seen)


@pytest.fixture(scope="module")
def table(network: nn.Module, images: Tensor, features: dict[tuple[str, str], Tensor]) -> list[dict[str, Any]]:
    return _rows(network, images, features)


def _rows(network: nn.Module, images: Tensor, features: dict[tuple[str, str], Tensor]) -> list[dict[str, Any]]:
    labels = np.arange(len(images), dtype=np.int64)
    bank = features[UNCHANGED].numpy(), labels  # each image is its own nearest neighbour
    config = {"k": 1, "temperature": 0.07}
    return list(sensitivity.rows(units(network, images[:1]), features, labels, bank, config))


def test_what_is_not_changed_is_the_float_model(
    network: nn.Module, images: Tensor, features: dict[tuple[str, str], Tensor]
) -> None:
    torch.testing.assert_close(features[UNCHANGED], network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        "patch_embed.proj",
        "*.patch_embed.proj",
        "blocks.0.attn.qkv",
        "blocks.3.attn.proj",
        "blocks.5.mlp.fc2",
        "*.mlp.fc1",
        "*.mlp.fc2",
    ],
)
@pytest.mark.parametrize("precision", [STATIC, PER_TOKEN])
@torch.no_grad()
def test_the_tail_gives_what_the_whole_model_gives(
    changed: str,
    precision: str,
    network: nn.Module,
    images: Tensor,
    seen: dict[str, Observed],
    features: dict[tuple[str, str], Tensor],
) -> None:
    fitting = [name for name in targets(network) if name.endswith(changed.removeprefix("*."))]
    precisions = dict.fromkeys(targets(network), FP32) | dict.fromkeys(fitting, precision)
    whole, _ = assemble(network, precisions, seen, FP32)
    expected, found = whole(images), features[changed, precision]
    damage = 1 - cosine_similarity(expected.double(), network(images).double()).mean()
    apart = 1 - cosine_similarity(expected.double(), found.double()).mean()
    # Some values lie so near the middle between two steps that another order of a sum rounds them elsewhere.
    assert apart < 0.1 * damage


def test_the_float_model_is_not_changed(network: nn.Module) -> None:
    assert len(network.blocks) == 6
    assert all(type(module).__module__.startswith(("timm", "torch.nn")) for module in network.modules())


def test_equal_calls_give_equal_features() -> None:
    small, calibrated = tiny_vit(), observe(tiny_vit(), photographs(4, seed=2))
    first, again = (changed_features(small, photographs(4, seed=1), calibrated) for _ in range(2))
    assert list(again) == list(first)
    assert all(torch.equal(again[change], first[change]) for change in first)


def test_every_module_and_kind_has_a_row_per_precision(network: nn.Module, table: list[dict[str, Any]]) -> None:
    kinds = ["patch_embed.proj", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    expected = [*targets(network), *(f"*.{kind}" for kind in kinds)]
    assert {(row["module"], row["precision"]) for row in table} == {
        (name, precision) for name in expected for precision in (STATIC, PER_TOKEN)
    }
    assert len(table) == 2 * len(expected)
    assert all((row["block"] is None) == (not row["module"].startswith("blocks.")) for row in table)
    assert all(row["module"].endswith(row["kind"]) for row in table)
    assert all(0 < row["cosine_p5"] <= row["cosine_mean"] < 1 for row in table)


def test_costs_are_counted(network: nn.Module, table: list[dict[str, Any]]) -> None:
    rows = {row["module"]: row for row in table}
    linear = network.get_submodule("blocks.2.mlp.fc1")
    tokens, patches = network.pos_embed.shape[1], (SIZE // network.patch_embed.patch_size[0]) ** 2
    assert rows["blocks.2.mlp.fc1"]["macs"] == tokens * linear.in_features * linear.out_features
    assert rows["patch_embed.proj"]["macs"] == patches * network.patch_embed.proj.weight.numel()
    assert rows["blocks.2.mlp.fc1"]["parameters"] == linear.weight.numel() + linear.bias.numel()
    for column in ("macs", "parameters"):
        assert rows["*.mlp.fc1"][column] == 6 * rows["blocks.2.mlp.fc1"][column]


def test_drop_and_agreement_count_the_queries_that_changed(
    network: nn.Module, images: Tensor, features: dict[tuple[str, str], Tensor]
) -> None:
    broken = features[UNCHANGED].clone()
    broken[:3] = broken[[3, 4, 5]]  # these three now look like others
    table = _rows(network, images, features | {("*.mlp.fc2", STATIC): broken})
    rows = {(row["module"], row["precision"]): row for row in table}
    changed = rows["*.mlp.fc2", STATIC]
    assert (changed["images"], changed["knn_top1_drop"], changed["knn_agreement"]) == (20, 15.0, 85.0)
    unchanged = rows["blocks.0.attn.qkv", PER_TOKEN]
    assert (unchanged["knn_top1_drop"], unchanged["knn_agreement"]) == (0.0, 100.0)


def test_the_file_has_the_columns(table: list[dict[str, Any]], tmp_path: Path) -> None:
    write_rows(tmp_path / "sensitivity.csv", sensitivity.COLUMNS, table)
    rows = read_rows(tmp_path / "sensitivity.csv")
    assert tuple(rows[0]) == sensitivity.COLUMNS
    assert [float(row["cosine_mean"]) for row in rows] == [row["cosine_mean"] for row in table]


def test_a_transformer_of_another_kind_is_refused(images: Tensor, seen: dict[str, Observed]) -> None:
    other = architecture.seeded("test_vit", SIZE, 0)
    other.blocks[1].mlp.act = nn.ReLU()
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.act is a ReLU"):
        changed_features(other, images, seen)


def _written(table: list[dict[str, Any]], folder: Path) -> pd.DataFrame:
    write_rows(folder / "sensitivity.csv", sensitivity.COLUMNS, table)
    return pd.read_csv(folder / "sensitivity.csv")


def test_the_figure_shows_every_module(table: list[dict[str, Any]], tmp_path: Path) -> None:
    drawn = figure.draw(_written(table, tmp_path), use_style(FIGURE_PARAMS))
    drawn.draw_without_rendering()
    texts = [text.get_text() for text in drawn.findobj(Text)]
    assert {STATIC, PER_TOKEN, "qkv", "proj", "fc1", "fc2", "patches", "0", "5"} <= set(texts)
    cells = [text for ax in drawn.axes[:2] for text in ax.texts]
    assert len(cells) == 2 * len(targets(architecture.seeded("test_vit", SIZE, 0)))
    box, (width, height) = drawn.get_tightbbox(), drawn.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height
    plt.close(drawn)


def test_the_figure_puts_each_number_in_its_cell(table: list[dict[str, Any]], tmp_path: Path) -> None:
    frame = _written(table, tmp_path)
    frame["cosine_mean"] = 1 - 1e-6
    frame.loc[(frame["module"] == "blocks.4.mlp.fc1") & (frame["precision"] == PER_TOKEN), "cosine_mean"] = 1 - 1.234e-3
    frame.loc[frame["module"] == "*.mlp.fc1", "cosine_mean"] = 0.5  # of a kind: not drawn
    drawn = figure.draw(frame, use_style(FIGURE_PARAMS | {"substitute": "seeded weights"}))
    cells = {(number, *text.get_position()): text.get_text() for number in (0, 1) for text in drawn.axes[number].texts}
    assert cells.pop((1, 2.5, 5.5)) == "1,234"  # right panel, fc1, below the patches and blocks 0 to 3
    assert set(cells.values()) == {"1.0"}
    assert "accuracy says nothing about DINO" in drawn.get_suptitle()
    plt.close(drawn)


def test_images_without_labels_have_cosines_alone(
    network: nn.Module, images: Tensor, features: dict[tuple[str, str], Tensor], table: list[dict[str, Any]]
) -> None:
    bank = np.empty((0, features[UNCHANGED].shape[1]), np.float32), np.empty(0, np.int64)
    labels = np.full(len(images), -1)
    config = {"k": 1, "temperature": 0.07}
    unlabelled = list(sensitivity.rows(units(network, images[:1]), features, labels, bank, config))
    empty = {"knn_top1_drop": None, "knn_agreement": None}
    assert unlabelled == [row | empty for row in table]
