"""int8-auto: it spends what the budget makes it spend, keeps what it promises, and says why."""

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinoquant.errors import UserError
from dinoquant.network import architecture, audit
from dinoquant.recipes import auto, recipes
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.auto import cheapest, loses, raise_precisions
from dinoquant.recipes.base import Quantized
from dinoquant.recipes.int8.assemble import BF16, FP32, PER_TOKEN, STATIC

SIZE = 64
OPTIONS = {"recipe": "int8-auto", "cosine": 0.998, "knn_drop": 0.3, "attention": "bf16", "portable": True}
WORST = "blocks.2.mlp.fc2"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return architecture.seeded("test_vit", SIZE, 0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def table(network: nn.Module, damage: float = 1e-6, **worst: float) -> list[dict[str, str]]:
    """Return rows in which each module alone does ``damage``, half of it per token, and `WORST` what is said."""
    return [
        {
            "module": name,
            "precision": precision,
            "images": "64",
            "cosine_mean": repr(1 - (worst.get(key, worst["int8"] / 2) if name == WORST and worst else plain)),
            "knn_top1_drop": "0.0",
            "knn_agreement": "100.0",
            "macs": "1000",
        }
        for name in targets(network)
        for precision, key, plain in ((STATIC, "int8", damage), (PER_TOKEN, "per_token", damage / 2))
    ]


def quantize(network: nn.Module, images: Tensor, rows: list[dict[str, str]], **options: Any) -> Quantized:
    return auto.quantize(network, OPTIONS | options, images, rows)


def precisions(quantized: Quantized, network: nn.Module) -> dict[str, str]:
    """Return what the reasons name, after checking that it is what the modules became."""
    what = {"int8 static": STATIC, "int8 per-token": PER_TOKEN, "bf16": BF16, "fp32": FP32}
    named = {name: quantized.became[name].why.split(":")[0] for name in targets(network)}
    became = {name: next(what[key] for key in what if quantized.became[name].what.startswith(key)) for name in named}
    assert named == became
    return named


@torch.no_grad()
def cosine(quantized: Quantized, network: nn.Module, images: Tensor) -> float:
    return float(cosine_similarity(quantized.module(images), network(images)).mean())


def test_a_budget_that_int8_keeps_needs_no_better(network: nn.Module, images: Tensor) -> None:
    quantized = quantize(network, images, table(network))
    assert set(precisions(quantized, network).values()) == {STATIC}
    assert quantized.became[WORST].why == "int8: 1 - cosine 1e-06 alone, within the budget"
    assert quantized.became["blocks.2.attn.softmax"].why == ""
    assert set(quantized.asked) == {"Linear", "Conv2d"}


def test_the_module_that_breaks_the_budget_is_raised_alone(network: nn.Module, images: Tensor) -> None:
    quantized = quantize(network, images, table(network, int8=0.0025, per_token=0.0004))
    found = precisions(quantized, network)
    assert found.pop(WORST) == PER_TOKEN
    assert set(found.values()) == {STATIC}
    assert quantized.became[WORST].why == "int8-per-token: as int8 0.0025 alone, the most damage saved for its cost"


def test_a_precision_that_saves_nothing_is_skipped(network: nn.Module, images: Tensor) -> None:
    quantized = quantize(network, images, table(network, int8=0.0025, per_token=0.003))
    assert precisions(quantized, network)[WORST] == BF16
    assert quantized.became[WORST].why.startswith("bf16: as int8 0.0025, as int8-per-token 0.003 alone, ")


def test_the_cheaper_of_two_equal_savings_is_taken(network: nn.Module) -> None:
    rows = table(network, 1e-3)
    for row in rows:
        row["macs"] = "10" if row["module"] == "blocks.1.attn.proj" else "1000"
    names = targets(network)
    raised = raise_precisions(cheapest(names, rows, 0.3), 1e-3 * (len(names) - 0.4))
    assert {choice.name: choice.precision for choice in raised if choice.precision != STATIC} == {
        "blocks.1.attn.proj": PER_TOKEN
    }


def test_an_empty_budget_raises_all_that_does_damage(network: nn.Module) -> None:
    raised = raise_precisions(cheapest(targets(network), table(network), 0.3), 0.0)
    assert {choice.precision for choice in raised} == {BF16}


def test_what_is_measured_decides(network: nn.Module, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """The table promises a tenth of the damage that int8 really does to this model."""
    real = 1 - cosine(quantize(network, images, table(network)), network, images)
    optimistic = table(network, real / 10 / len(targets(network)))
    caplog.set_level(logging.INFO, "dinoquant")
    budget = 1 - real / 2
    quantized = quantize(network, images, optimistic, cosine=budget, attention="fp32")
    assert cosine(quantized, network, images) >= budget
    found = Counter(precisions(quantized, network).values())
    assert found[STATIC] < len(targets(network))
    assert found[FP32] == 0
    assert len([message for message in caplog.messages if "measured" in message]) > 1


def test_a_table_that_promises_no_damage_ends_in_float32(network: nn.Module, images: Tensor) -> None:
    quantized = quantize(network, images, table(network, 0.0), cosine=1 - 1e-6, attention="fp32")
    assert set(precisions(quantized, network).values()) == {FP32}
    assert not quantized.asked
    rows = {row["module"]: row for row in audit.rows(network, "int8-auto", quantized)}
    assert rows[WORST]["became"] == "fp32"
    assert rows[WORST]["bytes_after"] == rows[WORST]["bytes_before"]
    assert rows[WORST]["why"].startswith("fp32: no damage alone, but measured together")


def test_a_budget_that_float32_breaks_is_an_error(network: nn.Module, images: Tensor) -> None:
    # Without bf16 in the processor attention is float32, and nothing is lost that a real budget could forbid.
    budget = 0.999999999 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 1.1
    with pytest.raises(UserError, match=rf"cosine: {budget} cannot be kept.*attention in bf16.*attention to fp32"):
        quantize(network, images, table(network), cosine=budget)


def test_the_audit_has_the_reasons(network: nn.Module, images: Tensor) -> None:
    quantized = quantize(network, images, table(network))
    rows = {row["module"]: row for row in audit.rows(network, "int8-auto", quantized)}
    assert all(row.keys() == set(audit.COLUMNS) for row in rows.values())
    assert {name for name, row in rows.items() if row["why"]} == set(targets(network))
    assert rows[WORST]["asked"] == "int8-auto"


def test_a_module_that_alone_loses_accuracy_is_not_int8(network: nn.Module, images: Tensor) -> None:
    rows = table(network)
    for row in rows:
        if row["module"] == WORST and row["precision"] == STATIC:
            row |= {"knn_top1_drop": "12.5", "knn_agreement": "81.25"}  # 8 of 64 lost, 12 changed
    quantized = quantize(network, images, rows)
    assert precisions(quantized, network)[WORST] == PER_TOKEN
    assert "loses 12 points of k-NN top-1" in quantized.became[WORST].why
    assert precisions(quantize(network, images, rows, knn_drop=10), network)[WORST] == STATIC


def test_a_precision_that_loses_accuracy_is_never_chosen(network: nn.Module) -> None:
    rows = table(network)
    for row in rows:
        if row["precision"] == PER_TOKEN:
            row |= {"knn_top1_drop": "50", "knn_agreement": "50"}
    choices = cheapest(targets(network), rows, 0.3)
    assert {choice.precision for choice in choices} == {STATIC}
    assert {choice.precision for choice in raise_precisions(choices, 1e-6)} <= {STATIC, BF16}


@pytest.mark.parametrize(
    ("drop", "agreement", "knn_drop", "expected"),
    [
        ("0.0", "100.0", 0.0, False),
        ("1.5625", "98.4375", 0.3, False),  # one of 64 changed, and was lost
        ("4.6875", "95.3125", 0.3, False),  # three changed, all were lost: the balance of three coins, 1 in 8
        ("6.25", "93.75", 0.3, True),  # four changed, all were lost
        ("6.25", "93.75", 5.0, False),
        ("6.25", "75.0", 0.3, False),  # sixteen changed, four more were lost than won
        ("-12.5", "87.5", 0.3, False),
    ],
)
def test_a_loss_counts_beyond_chance(drop: str, agreement: str, knn_drop: float, expected: bool) -> None:
    row = {"images": "64", "knn_top1_drop": drop, "knn_agreement": agreement}
    assert loses(row, knn_drop) is expected


def test_images_without_labels_show_no_loss() -> None:
    assert not loses({"images": "64", "knn_agreement": "", "knn_top1_drop": ""}, 0)


def test_a_table_of_another_model_is_an_error(network: nn.Module, images: Tensor) -> None:
    rows = [row for row in table(network) if row["module"] != WORST]
    with pytest.raises(UserError, match=rf"sensitivity\.csv has no rows for {WORST}.*Delete"):
        quantize(network, images, rows)


def test_calibration_images_are_needed(network: nn.Module) -> None:
    with pytest.raises(UserError, match="int8-auto needs calibration images"):
        auto.quantize(network, OPTIONS, None, table(network))


def test_only_recipes_that_ask_for_the_table_get_it() -> None:
    assert [name for name, recipe in recipes().items() if recipe.sensitivity] == ["int8-auto"]
