"""The recommendation keeps within the budget, knows what noise is, and gives a reason for everything it turns down."""

from pathlib import Path
from typing import Any

import pytest

from dinoquant.report.choice import front
from dinoquant.report.recommend import DeviceRecommendation, conclusion, link, recommend

BUDGET = {"cosine": 0.99, "knn_top1_drop": None, "latency_ms": None, "size_mb": None, "peak_rss_mb": None}


def row(
    variant: str, speedup: float, cosine: float | str, size: float = 20.0, width: float = 0.02, **cells: Any
) -> dict:
    """Return a row of the summary, as text, with intervals of ``width`` on either side."""
    known: dict[str, Any] = {
        **{"variant": variant, "runtime": "torchscript", "device": "cpu", "batch_size": 1, "status": "ok"},
        **{"reason": "", "noise_floor": 0.01, "size_mb": size, "compression": 80 / size, "peak_rss_mb": 3 * size},
        **{"speedup": speedup, "speedup_ci_low": speedup - width, "speedup_ci_high": speedup + width},
        **{"latency_p50_ms": 60 / speedup, "latency_p50_ci_high_ms": 60 / speedup + 0.5, "cosine_mean": cosine},
        **{"knn_top1_drop": 0.2, "knn_top1_drop_ci_low": -0.3, "knn_top1_drop_ci_high": 0.7},
    }
    ends = {"cosine_mean_ci_low": cosine, "cosine_mean_ci_high": cosine}
    return {key: str(value) for key, value in (known | ends | cells).items()}


FP32 = row("fp32", 1.0, 1.0, 80, knn_top1_drop=0, knn_top1_drop_ci_low=0, knn_top1_drop_ci_high=0)
NAIVE = row("naive", 6.0, 0.89)
GOOD = row("good", 5.0, 0.998)
BF16 = row("bf16", 3.0, 0.9999, 40)


def on_cpu(*rows: dict, substitutes: tuple[str, ...] = (), **budget: float) -> DeviceRecommendation:
    config = {
        **{"budget": BUDGET | budget, "devices": ["cpu"], "batch_size": 1, "substitutes": list(substitutes)},
        "artifacts": {row["variant"]: [f"results/models/{row['variant']}/model.pt"] for row in rows},
    }
    return recommend(rows, config)["devices"]["cpu"]


def test_the_fastest_within_the_budget_is_picked() -> None:
    recommended = on_cpu(FP32, NAIVE, GOOD, BF16)
    assert recommended["answer"] == (
        "On cpu, batch 1, deploy good: 5.00x as fast as fp32 (4.98 to 5.02), 4.0x smaller, cosine 0.9980; "
        "results/recommended/cpu.pt"
    )
    assert recommended["runner_up"] == {"variant": "bf16", "distinguishable": True}
    assert recommended["rejected"] == {
        "fp32": "slower, 1.00x as fast as fp32 (0.98 to 1.02)",
        "naive": "its mean cosine to fp32 is 0.8900, 0.1000 short of the 0.99 asked for",
        "bf16": "slower, 3.00x as fast as fp32 (2.98 to 3.02)",
    }
    assert "naive is faster, 6.00x as fast as fp32 (5.98 to 6.02), but its mean cosine" in recommended["reasons"][-1]
    assert recommended["warnings"] == []


def test_every_variant_is_the_pick_or_has_a_reason() -> None:
    unsupported = FP32 | {"variant": "fp16", "status": "unsupported", "reason": "needs a GPU", "speedup": ""}
    unjudged = row("unjudged", 9.0, "")
    rows = [FP32, NAIVE, GOOD, BF16, unsupported, unjudged]
    recommended = on_cpu(*rows)
    assert {recommended["pick"], *recommended["rejected"]} == {row["variant"] for row in rows}
    assert recommended["rejected"]["fp16"] == "does not run here: needs a GPU"
    assert recommended["rejected"]["unjudged"] == "its mean cosine to fp32 was not measured"


@pytest.mark.parametrize(
    ("budget", "pick"),
    [
        ({"cosine": 0.8}, "naive"),
        ({"cosine": 0.999}, "bf16"),
        ({"cosine": 1}, "fp32"),
        ({"knn_top1_drop": 0.7}, "good"),
        ({"knn_top1_drop": 0.5}, "fp32"),  # 0.2 points lost, and up to 0.7
        ({"latency_ms": 12.4}, None),  # 12.0, and up to 12.5
        ({"latency_ms": 12.5}, "good"),
        ({"size_mb": 19}, None),
        ({"peak_rss_mb": 60}, "good"),
    ],
)
def test_each_key_of_the_budget_counts_by_the_unfavourable_end(budget: dict, pick: str | None) -> None:
    assert on_cpu(FP32, NAIVE, GOOD, BF16, **budget)["pick"] == pick


def test_a_loss_that_is_only_possible_is_told_from_one_that_was_seen() -> None:
    rejected = on_cpu(FP32, GOOD, row("bad", 6, 0.999, knn_top1_drop=2, knn_top1_drop_ci_high=3), knn_top1_drop=0.5)
    assert rejected["rejected"]["good"] == (
        "its loss of k-NN top-1 is 0.20 points, and may be 0.70 points: too few samples to show that it keeps within "
        "the 0.5 points allowed"
    )
    assert (
        rejected["rejected"]["bad"] == "its loss of k-NN top-1 is 2.00 points, 1.50 points over the 0.5 points allowed"
    )


def test_nothing_within_the_budget_names_what_comes_closest_and_by_how_much(tmp_path: Path) -> None:
    recommended = on_cpu(FP32, NAIVE, GOOD, BF16, latency_ms=10)
    assert (recommended["pick"], recommended["link"], recommended["closest"]) == (None, None, "good")
    assert recommended["answer"] == (
        "On cpu, batch 1, nothing meets the budget. good comes closest: "
        "its median latency is 12.00 ms, 2.00 ms over the 10 ms allowed."
    )
    link({"devices": {"cpu": recommended}}, tmp_path / "recommended")
    assert list((tmp_path / "recommended").iterdir()) == []


def test_equal_speed_is_decided_by_size_and_said_to_be_equal() -> None:
    recommended = on_cpu(FP32, row("large", 5.0, 0.999, 30, width=0.3), row("small", 4.9, 0.998, 20, width=0.3))
    assert recommended["pick"] == "small"
    assert recommended["runner_up"] == {"variant": "large", "distinguishable": False}
    assert recommended["rejected"]["large"] == (
        "not distinguishable in speed, 5.00x as fast as fp32 (4.70 to 5.30); larger, 30.0 MB"
    )


def test_differences_below_the_noise_floor_are_none() -> None:
    rows = [FP32, row("large", 5.0, 0.999, 30), row("small", 4.9, 0.998, 20)]
    assert on_cpu(*rows)["pick"] == "large"
    assert on_cpu(*[row | {"noise_floor": "0.05"} for row in rows])["pick"] == "small"


def test_a_wide_interval_makes_a_slow_variant_no_equal() -> None:
    recommended = on_cpu(FP32, row("fast", 5.0, 0.999, 30), row("vague", 3.0, 0.999, 10, width=2.5))
    assert recommended["pick"] == "fast"
    assert recommended["rejected"]["vague"].endswith("(0.50 to 5.50), though not beyond noise")


def test_a_disturbed_machine_makes_a_slow_variant_no_equal_either() -> None:
    recommended = on_cpu(FP32, row("fast", 3.0, 0.999, 30, width=2.9), row("slow", 0.2, 0.999, 10, width=0.9))
    assert recommended["pick"] == "fast"


def test_a_doubtful_timing_loses_a_tie_and_is_picked_only_with_a_warning() -> None:
    doubtful = row("doubtful", 5.1, 0.999, 10, width=0.3, status="noisy", reason="5 % stolen")
    recommended = on_cpu(FP32, doubtful, row("sound", 5.0, 0.999, 20, width=0.3))
    assert (recommended["pick"], recommended["runner_up"]["variant"]) == ("sound", "doubtful")
    assert "its timing is noisy" in recommended["rejected"]["doubtful"]
    recommended = on_cpu(FP32, doubtful, BF16)
    assert recommended["pick"] == "doubtful"
    assert recommended["warnings"] == [
        "The timing of doubtful is noisy: 5 % stolen. To repeat it, delete "
        "results/latency/cpu/doubtful/batch1.json and run again."
    ]


def test_fp32_is_the_answer_where_nothing_is_faster() -> None:
    recommended = on_cpu(FP32, row("slow", 0.9, 1.0, 80), NAIVE)
    assert recommended["answer"].startswith(
        "On cpu, batch 1, deploy fp32: nothing within the budget is faster beyond the noise"
    )
    assert "naive is faster" in recommended["reasons"][-1]


def test_missing_intervals_make_nothing_distinguishable() -> None:
    rows = [r | {"speedup_ci_low": "", "speedup_ci_high": ""} for r in (FP32, GOOD, BF16)]
    recommended = on_cpu(*rows)
    assert recommended["answer"].startswith("On cpu, batch 1, deploy good: 5.00x as fast as fp32, 4.0x smaller")
    assert recommended["runner_up"] == {"variant": "bf16", "distinguishable": False}


def test_fronts_are_those_of_speed_and_of_size() -> None:
    small = row("small", 0.8, 0.95, 10)
    recommended = on_cpu(FP32, NAIVE, GOOD, BF16, small)
    assert recommended["fronts"] == {
        "speed": ["naive", "good", "bf16", "fp32"],
        "size": ["small", "good", "bf16", "fp32"],
    }


def test_front_leaves_out_what_is_beaten() -> None:
    points = {
        "slow": (9.0, 0.9),
        "fast": (1.0, 0.8),
        "equal": (9.0, 0.8),
        "best": (9.0, 0.95),
        "beaten": (2.0, 0.7),
        "tie": (3.0, 0.8),
    }
    assert front(points) == ["fast", "best"]


def test_what_saturates_is_not_picked_however_fast() -> None:
    spoilt = row("spoilt", 9, 0.9999, 5, status="saturates", reason="int8 sums overflow on this processor")
    found = on_cpu(FP32, spoilt)
    assert found["pick"] == "fp32"
    assert found["rejected"]["spoilt"] == "int8 sums overflow on this processor"
    assert "spoilt" not in found["fronts"]["speed"]


def test_links_lead_to_the_artifact_and_to_what_belongs_to_it(tmp_path: Path) -> None:
    for variant, files in {"a": ["model.pt"], "b": ["model.xml", "model.bin"]}.items():
        for file in files:
            path = tmp_path / "results/models" / variant / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{variant} {file}")
    devices = {
        "cpu": {"artifacts": [str(tmp_path / f"results/models/b/model.{suffix}") for suffix in ("xml", "bin")]},
        "cuda": {"artifacts": [str(tmp_path / "results/models/a/model.pt")]},
    }
    link({"devices": devices}, tmp_path / "results/recommended")
    links = {path.name: path for path in (tmp_path / "results/recommended").iterdir()}
    assert {name: path.read_text() for name, path in links.items()} == {
        "cpu.xml": "b model.xml",
        "cpu.bin": "b model.bin",
        "cuda.pt": "a model.pt",
    }
    assert all(not Path(path.readlink()).is_absolute() for path in links.values())


def test_another_runtime_is_named() -> None:
    recommended = recommend(
        [FP32, GOOD | {"runtime": "onnxruntime"}],
        {
            **{"budget": BUDGET, "devices": ["cpu"], "batch_size": 1, "substitutes": ["seeded weights"]},
            "artifacts": {"good": ["results/models/good/model.onnx"]},
        },
    )
    assert conclusion(recommended).splitlines() == [
        "On cpu, batch 1, deploy good (runs in onnxruntime): 5.00x as fast as fp32 (4.98 to 5.02), 4.0x smaller, "
        "cosine 0.9980; results/recommended/cpu.onnx",
        "  Made with a substitute (seeded weights): only speed and size are real.",
    ]
