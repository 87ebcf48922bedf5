"""The recommendation keeps within the budget, knows what noise is, and gives a reason for everything it turns down."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dinoquant.report.choice import front
from dinoquant.report.deployed import TEMPLATES, link
from dinoquant.report.recommend import DeviceRecommendation, RecommendConfig, conclusion, recommend

BUDGET = {"cosine": 0.99, "patch_cosine": None, "knn_top1_drop": None}
BUDGET |= {"latency_ms": None, "size_mb": None, "peak_rss_mb": None}


def row(
    variant: str, speedup: float, cosine: float | str, size: float = 20.0, width: float = 0.02, **cells: Any
) -> dict:
    """Return a row of the summary, as text, with intervals of ``width`` on either side."""
    known: dict[str, Any] = {
        **{"variant": variant, "runtime": "torchscript", "device": "cpu", "batch_size": 1, "status": "ok"},
        **{"reason": "", "noise_floor": 0.01, "size_mb": size, "compression": 80 / size, "peak_rss_mb": 3 * size},
        **{"speedup": speedup, "speedup_ci_low": speedup - width, "speedup_ci_high": speedup + width},
        **{"latency_p50_ms": 60 / speedup, "latency_p50_ci_low_ms": 60 / speedup - 0.5},
        **{"latency_p50_ci_high_ms": 60 / speedup + 0.5, "throughput_ips": speedup / 0.06, "cosine_mean": cosine},
        **{"knn_top1_drop": 0.2, "knn_top1_drop_ci_low": -0.3, "knn_top1_drop_ci_high": 0.7},
    }
    ends = {"cosine_mean_ci_low": cosine, "cosine_mean_ci_high": cosine, "patch_cosine_mean": ""}
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
        "On cpu, batch 1, deploy good: 12.00 ms (11.50 to 12.50) per call, 5.00x as fast as fp32 (4.98 to 5.02), "
        "4.0x smaller, cosine 0.9980; 83 images/s at batch 1; results/recommended/cpu.pt"
    )
    assert recommended["runner_up"] == {"variant": "bf16", "distinguishable": True}
    assert recommended["rejected"] == {
        "fp32": "slower, 1.00x as fast as fp32 (0.98 to 1.02)",
        "naive": "its mean cosine to fp32 is 0.8900, 0.1000 short of the 0.99 asked for",
        "bf16": "slower, 3.00x as fast as fp32 (2.98 to 3.02)",
    }
    assert recommended["warnings"] == []


def test_what_was_almost_chosen_and_what_a_little_more_would_buy() -> None:
    hasty = row("hasty", 5.5, 0.98, knn_top1_drop=2, knn_top1_drop_ci_low=1.3, knn_top1_drop_ci_high=2.7)
    recommended = on_cpu(FP32, NAIVE, hasty, GOOD, BF16, knn_top1_drop=1)
    assert recommended["alternatives"] == [
        "The runner-up is bf16: slower, 3.00x as fast as fp32 (2.98 to 3.02).",
        "hasty saves 1.09 ms per call, 5.50x as fast as fp32 (5.48 to 5.52), but its loss of k-NN top-1 is 2.00 "
        "points, 1.00 points over the 1 points allowed; a budget of knn_top1_drop 2.7 and cosine 0.98 would take it.",
        "For 8.00 ms more per call bf16 has a cosine of 0.9999 instead of 0.9980.",
    ]
    loosened = on_cpu(FP32, NAIVE, hasty, GOOD, BF16, knn_top1_drop=2.7, cosine=0.98)
    assert loosened["pick"] == "hasty"
    assert on_cpu(FP32)["alternatives"] == []


def test_without_a_limit_of_the_cosine_some_rows_may_have_none() -> None:
    unknown = row("unknown", 3.0, "")
    assert on_cpu(FP32, unknown, GOOD, cosine=None)["pick"] == "good"


def test_the_variants_that_matter_are_five_at_most_each_with_what_it_is() -> None:
    notebook = row("int8-dynamic-linear-conv", 5.8, 0.9, 19)
    others = [row(f"other{n}", 2, 0.999) for n in range(4)]
    recommended = on_cpu(FP32, NAIVE, notebook, GOOD, BF16, *others)
    assert recommended["that_matter"] == {
        "good": "recommended",
        "bf16": "runner-up, more faithful",
        "fp32": "baseline",
        "int8-dynamic-linear-conv": "the notebook's int8, almost chosen, smallest",
        "naive": "fastest",
    }


def test_the_best_batch_size_for_throughput_stands_beside_the_answer() -> None:
    batches = [GOOD | {"batch_size": size, "throughput_ips": ips} for size, ips in [("4", "99.6"), ("16", "95")]]
    assert "; 100 images/s at batch 4; " in on_cpu(FP32, GOOD, *batches)["answer"]


def test_on_a_substitute_nothing_is_said_about_accuracy_and_nothing_is_recommended() -> None:
    recommended = on_cpu(FP32, NAIVE, GOOD, BF16, substitutes=("seeded weights",), knn_top1_drop=0)
    assert recommended["answer"] == (
        "Speed and size only (seeded weights). On cpu, batch 1, naive is the fastest: 10.00 ms (9.50 to 10.50) per "
        "call, 6.00x as fast as fp32 (5.98 to 6.02), 4.0x smaller; 100 images/s at batch 1. Whether it keeps the "
        "features, this run cannot tell."
    )
    assert [recommended[key] for key in ("pick", "link", "artifacts", "fastest")] == [None, None, [], "naive"]
    assert set(recommended["rejected"]) == {"fp32", "good", "bf16"}
    assert recommended["that_matter"]["naive"] == "first by speed and size, fastest, smallest"
    sentences = json.dumps(recommended)
    assert "cosine" not in sentences
    assert "k-NN" not in sentences


def test_a_limit_of_speed_or_size_counts_on_a_substitute_too() -> None:
    recommended = on_cpu(FP32, NAIVE, GOOD, substitutes=("seeded weights",), size_mb=10)
    assert recommended["fastest"] is None
    assert recommended["answer"].startswith("Speed and size only (seeded weights). On cpu, batch 1, nothing meets")


@pytest.mark.parametrize(
    ("low", "high", "pick", "warned"),
    [
        (-0.5, 0.9, "good", False),
        (-0.5, 1.4, "fp32", False),  # half of it is 0.95: enough to judge, and too much to allow
        (-0.8, 1.8, "good", True),  # half of it is 1.3 points
        (1.1, 3.9, "fp32", False),  # as wide, but more than the point was shown to be lost
    ],
)
def test_a_loss_that_the_queries_are_too_few_to_judge_rejects_nothing_and_is_said(
    low: float, high: float, pick: str, warned: bool
) -> None:
    unsure = GOOD | {"knn_top1_drop": "0.5", "knn_top1_drop_ci_low": str(low), "knn_top1_drop_ci_high": str(high)}
    recommended = on_cpu(FP32, unsure, knn_top1_drop=1)
    assert recommended["pick"] == pick
    assert recommended["warnings"] == warned * [
        "Whether good keeps within the 1 points of k-NN top-1 that it may lose, these queries are too few to say: "
        "0.50 points (-0.80 to 1.80); about 2 times as many would."
    ]


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


def test_of_tokens_the_patches_are_asked_for_too() -> None:
    def with_patches(row: dict, mean: float) -> dict:
        return row | {f"patch_cosine_mean{end}": str(mean) for end in ("", "_ci_low", "_ci_high")}

    rows = with_patches(FP32, 1), with_patches(GOOD, 0.97), with_patches(BF16, 0.9998)
    assert on_cpu(*rows)["pick"] == "good"
    answer = on_cpu(*rows, patch_cosine=0.99)
    assert answer["pick"] == "bf16"
    assert (
        "its mean cosine of patches to fp32's is 0.9700, 0.0200 short of the 0.99 asked for"
        in answer["rejected"]["good"]
    )
    assert any(text.startswith("Its patches have a mean cosine of 0.9998") for text in answer["reasons"])


def test_a_loss_that_is_only_possible_is_told_from_one_that_was_seen() -> None:
    rejected = on_cpu(
        FP32,
        GOOD,
        row("bad", 6, 0.999, knn_top1_drop=2, knn_top1_drop_ci_low=1, knn_top1_drop_ci_high=3),
        knn_top1_drop=0.5,
    )
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
    link({"cpu": recommended}, tmp_path / "recommended")
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
    doubtful = row("doubtful", 5.1, 0.999, 10, width=0.3, status="disturbed", reason="5 % stolen")
    recommended = on_cpu(FP32, doubtful, row("sound", 5.0, 0.999, 20, width=0.3))
    assert (recommended["pick"], recommended["runner_up"]["variant"]) == ("sound", "doubtful")
    assert "its timing is disturbed" in recommended["rejected"]["doubtful"]
    recommended = on_cpu(FP32, doubtful, BF16)
    assert recommended["pick"] == "doubtful"
    assert recommended["warnings"] == [
        "The timing of doubtful is disturbed: 5 % stolen. To repeat it, delete "
        "results/latency/cpu/doubtful/batch1.json and run again."
    ]
    vague = row("vague", 5.1, 0.999, 10, width=0.3, status="wide", reason="raise latency.processes")
    assert on_cpu(FP32, vague, BF16)["warnings"] == ["The timing of vague is wide: raise latency.processes."]
    bf16 = {**BF16, "status": "wide", "reason": "raise latency.processes"}
    assert on_cpu(FP32, vague, bf16)["warnings"] == ["The timing of vague and bf16 is wide: raise latency.processes."]


def test_fp32_is_the_answer_where_nothing_is_faster() -> None:
    recommended = on_cpu(FP32, row("slow", 0.9, 1.0, 80), NAIVE)
    assert recommended["answer"].startswith(
        "On cpu, batch 1, deploy fp32: nothing within the budget is faster beyond the noise"
    )
    assert recommended["alternatives"][-1].startswith("naive saves 50.00 ms per call")


def test_missing_intervals_make_nothing_distinguishable() -> None:
    rows = [r | {"speedup_ci_low": "", "speedup_ci_high": ""} for r in (FP32, GOOD, BF16)]
    recommended = on_cpu(*rows)
    assert recommended["answer"].startswith(
        "On cpu, batch 1, deploy good: 12.00 ms (11.50 to 12.50) per call, 5.00x as fast as fp32, 4.0x smaller"
    )
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
        "cpu": {
            "artifacts": [str(tmp_path / f"results/models/b/model.{suffix}") for suffix in ("xml", "bin")],
            "example": None,
            "example_cpp": None,
        },
        "cuda": {
            "artifacts": [str(tmp_path / "results/models/a/model.pt")],
            "example": "print()",
            "example_cpp": "int main() {}",
        },
    }
    link(devices, tmp_path / "results/recommended")
    links = {path.name: path for path in (tmp_path / "results/recommended").iterdir()}
    assert {name: path.read_text() for name, path in links.items()} == {
        "cpu.xml": "b model.xml",
        "cpu.bin": "b model.bin",
        "cuda.pt": "a model.pt",
        "cuda.py": "print()",
        "cuda.cpp": "int main() {}",
    }
    assert all(not Path(path.readlink()).is_absolute() for path in links.values() if path.is_symlink())


def test_images_without_labels_are_judged_by_the_cosine_alone_which_is_said() -> None:
    unlabelled = {"knn_top1_drop": "", "knn_top1_drop_ci_low": "", "knn_top1_drop_ci_high": ""}
    rows = [row | unlabelled for row in (FP32, NAIVE, GOOD)]
    recommended = on_cpu(*rows, knn_top1_drop=1)
    assert recommended["pick"] == "good"
    assert recommended["warnings"] == [
        "The images have no labels: the cosine was judged, and what k-NN top-1 loses is not known."
    ]
    assert on_cpu(*rows)["warnings"] == []  # nothing was asked of it
    unmeasured = on_cpu(FP32, GOOD | unlabelled, knn_top1_drop=1)
    assert unmeasured["rejected"]["good"] == "its loss of k-NN top-1 was not measured"


@pytest.mark.parametrize("substitutes", [[], ["seeded weights"]])
def test_the_terminal_gets_the_answer_and_on_a_substitute_the_run_that_tells(substitutes: list[str]) -> None:
    config: RecommendConfig = {
        **{"budget": BUDGET, "devices": ["cpu"], "batch_size": 1, "substitutes": substitutes},
        "artifacts": {"good": ["results/models/good/model.onnx"]},
    }
    recommended = recommend([FP32, GOOD | {"runtime": "onnxruntime"}], config)
    lines = conclusion(recommended).splitlines()
    assert "good (runs in onnxruntime)" in lines[0]
    assert recommended["devices"]["cpu"]["example"] is None  # which PyTorch alone would not run
    assert recommended["devices"]["cpu"]["example_cpp"] is None
    assert recommended["accuracy_judged"] == (not substitutes)
    if not substitutes:
        assert lines[0].endswith("; results/recommended/cpu.onnx")
        assert "make run" not in lines[-1]
    else:
        assert lines[-1].startswith("The run that tells is make run")
        targets = re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE)
        assert set(re.findall(r"make ([a-z]+)", lines[-1])) <= set(targets)


@pytest.mark.parametrize("substitutes", [[], ["seeded weights"]])
def test_a_package_comes_with_its_card_its_torchscript_file_and_two_programs(
    substitutes: list[str], tmp_path: Path
) -> None:
    files = [f"results/models/good/{name}" for name in ("model.pt2", "card.json", "model.pt")]
    config: RecommendConfig = {
        **{"budget": BUDGET, "devices": ["cpu"], "batch_size": 1, "substitutes": substitutes},
        "artifacts": {"good": files},
    }
    recommended = recommend([FP32, GOOD | {"runtime": "inductor"}], config)["devices"]
    link(recommended, tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"cpu.py", "cpu.cpp"} | (set() if substitutes else {"cpu.pt2", "cpu.json", "cpu.pt"})
    package, card = files[:2] if substitutes else ("results/recommended/cpu.pt2", "results/recommended/cpu.json")
    assert f'aoti_load_package("{package}")' in (tmp_path / "cpu.py").read_text()
    assert f'Path("{card}")' in (tmp_path / "cpu.py").read_text()
    assert f'AOTIModelPackageLoader model("{package}")' in (tmp_path / "cpu.cpp").read_text()
    for program in ("cpu.py", "cpu.cpp"):
        assert not re.search("FILE|CARD|DEVICE", (tmp_path / program).read_text())


def test_both_programs_in_python_prepare_a_photograph_alike() -> None:
    shared = [
        re.search(r"^size = .*\[None\]$", (TEMPLATES / name).read_text(), re.MULTILINE | re.DOTALL)
        for name in ("example.py", "package.py")
    ]
    assert shared[0]
    assert shared[1]
    assert shared[0][0] == shared[1][0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_example_runs_the_file_on_a_photograph_with_pytorch_and_pillow_alone(tmp_path: Path) -> None:
    """As it stands, in a process of its own that refuses every other library."""
    import numpy as np
    import torch
    from PIL import Image

    from dinoquant.data.preprocess import preprocess
    from samples import tiny_vit

    card = {"image_size": 224, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    model = torch.jit.trace(tiny_vit(img_size=224, patch_size=32), torch.zeros(1, 3, 224, 224))
    artifact = tmp_path / "results/models/good/model.pt"
    artifact.parent.mkdir(parents=True)
    torch.jit.save(model, artifact, _extra_files={"dinoquant.json": json.dumps(card)})
    recommended = on_cpu(FP32, GOOD) | {"artifacts": [str(artifact)]}
    link({"cpu": recommended}, tmp_path / "results/recommended")
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(
        (600, 400), Image.Resampling.BICUBIC
    )
    photograph.save(tmp_path / "photograph.png")
    allowed = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'torchvision', 'timm', 'dinoquant']))"
    program = f"{allowed}; import runpy; sys.argv[1:] = ['photograph.png']; "
    program += "runpy.run_path('results/recommended/cpu.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    features = torch.tensor([float(number) for number in done.stdout.split()])
    pixels = torch.from_numpy(np.asarray(photograph).copy()).permute(2, 0, 1)[None]
    expected = model(preprocess(pixels, **card))[0]
    assert features.shape == expected.shape
    assert torch.cosine_similarity(features, expected, dim=0) > 0.999
