"""The contract of what runs again after which change, row by row: users rely on it as on an interface."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import Checkout

from dinoquant import runtimes

# From the summary; what [CLS] attends to is drawn from the maps alone, and what the modules became from the audits.
FIGURES = ["pareto", "latency", "distribution", "throughput", "roofline", "size", "fidelity"]
VARIANTS = ["fp32", "int8-static"]  # of tests/small.yaml, those that run on a CPU


def draw(*figures: str) -> set[str]:
    return {f"draw_figure figure={figure}" for figure in figures}


PAGE = {*draw(*FIGURES, "attention", "patches", "audit"), "write_report"}
AGGREGATE = {"summarise", "recommend", "record_provenance", *draw(*FIGURES), "write_report"}


def latency(*variants: str) -> set[str]:
    return {f"measure_latency device=cpu, variant={variant}, batch=1" for variant in variants}


def footprint(*variants: str) -> set[str]:
    return {f"measure_footprint device=cpu, variant={variant}" for variant in variants}


def energy(*variants: str) -> set[str]:
    return {f"measure_energy device=cpu, variant={variant}" for variant in variants}


def per_variant(rule: str, *variants: str) -> set[str]:
    return {f"{rule} variant={variant}" for variant in variants}


def accuracy(*variants: str) -> set[str]:
    return per_variant("evaluate_accuracy", *variants)


def probe(*variants: str) -> set[str]:
    return per_variant("evaluate_probe", *variants)


def attention(*variants: str) -> set[str]:
    return per_variant("extract_attention", *variants) | draw("attention")


def patches(*variants: str) -> set[str]:
    return per_variant("measure_patches", *variants) | draw("patches")


def whole(*variants: str) -> set[str]:
    return (
        per_variant("quantize", *variants)
        | per_variant("extract_features", *variants)
        | accuracy(*variants)
        | probe(*variants)
        | attention(*variants)
        | patches(*variants)
        | latency(*variants)
        | footprint(*variants)
        | energy(*variants)
        | {"derive_limits", *draw("audit")}
    )


MACHINE = "measure_machine device=cpu"
URLS = ("https://example.org/a.zip", "https://example.org/b.pth")
EVERYTHING = (
    {"generate_dataset", "verify_dataset", "pack_images", "export_fp32", "quantize variant=fp16", MACHINE}
    | (whole(*VARIANTS) - {"quantize variant=fp32"})
    | AGGREGATE
)


def append(run: Checkout, path: str, text: str = "\n# changed\n") -> None:
    file = run.folder / path
    file.write_text(file.read_text() + text)


def test_nothing(run: Checkout) -> None:
    assert set(run.stale()) == set()


def test_a_fresh_run_does_everything_once(fresh: Checkout) -> None:
    jobs = fresh.stale()
    assert set(jobs) == EVERYTHING
    assert set(jobs.values()) == {1}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        pytest.param({"figures": {"palette": "deep"}}, PAGE, id="figures, used by all"),
        pytest.param(
            {"figures": {"batch_size": 1}},
            {*draw("latency", "distribution", "pareto"), "write_report"},
            id="figures, used by three",
        ),
        pytest.param({"budget": {"cosine": 0.9}}, {"recommend", "write_report"}, id="the budget"),
        pytest.param(
            {"variants": {"int8-static": {"observer": "histogram"}}}, whole("int8-static") | AGGREGATE, id="an option"
        ),
        pytest.param({"variants": {"bf16": {"recipe": "bf16"}}}, whole("bf16") | AGGREGATE, id="a new variant"),
        pytest.param(
            {"latency": {"thread_scaling": [1]}},
            {f"measure_scaling device=cpu, variant={variant}, threads=1" for variant in VARIANTS}
            | {*draw("scaling"), "write_report", "record_provenance"},
            id="thread scaling",
        ),
        pytest.param({"latency": {"rounds": 7}}, latency(*VARIANTS) | AGGREGATE, id="a latency key"),
        pytest.param(
            {"latency": {"threads": 1}},
            latency(*VARIANTS) | footprint(*VARIANTS) | energy(*VARIANTS) | {MACHINE, "derive_limits"} | AGGREGATE,
            id="the number of threads",
        ),
        pytest.param({"energy": {"seconds": 2}}, energy(*VARIANTS) | AGGREGATE, id="the energy's seconds"),
        pytest.param({"accuracy": {"k": 2}}, accuracy(*VARIANTS) | AGGREGATE, id="an accuracy key"),
        pytest.param({"accuracy": {"probe": {"C": 2}}}, probe(*VARIANTS) | AGGREGATE, id="the probe's key"),
        pytest.param(
            {"accuracy": {"batch_size": 2}},
            per_variant("extract_features", *VARIANTS)
            | accuracy(*VARIANTS)
            | probe(*VARIANTS)
            | patches(*VARIANTS)
            | AGGREGATE,
            id="an accuracy key of the extraction",
        ),
        pytest.param({"patches": {"images": 2}}, patches(*VARIANTS) | AGGREGATE, id="the patches' key"),
        pytest.param({"patches": {"images": 0}}, AGGREGATE, id="no patches"),
        pytest.param(
            {"attention": {"images": 2}},
            attention(*VARIANTS) | {"write_report", "record_provenance"},
            id="the attention's key",
        ),
        pytest.param({"attention": {"images": 0}}, {"write_report", "record_provenance"}, id="no attention"),
        pytest.param(
            {"variants": {"int8-static": None}}, {"derive_limits"} | AGGREGATE | PAGE, id="a variant left out"
        ),
    ],
)
def test_a_change_of_the_config(run: Checkout, overlay: dict, expected: set[str]) -> None:
    assert set(run.stale(overlay=overlay)) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("judge/knn", accuracy(*VARIANTS) | probe(*VARIANTS) | AGGREGATE),
        ("judge/fidelity", accuracy(*VARIANTS) | AGGREGATE),
        ("judge/attention", attention(*VARIANTS) | {"write_report", "record_provenance"}),
        ("judge/patches", patches(*VARIANTS) | AGGREGATE),
        ("judge/retrieval", accuracy(*VARIANTS) | AGGREGATE),
        ("judge/probe", probe(*VARIANTS) | AGGREGATE),
        ("measure/rounds", latency(*VARIANTS) | energy(*VARIANTS) | AGGREGATE),
        ("recipes/static", whole("int8-static") | AGGREGATE),
        ("report/figures/size", {*draw("size"), "write_report"}),
        ("report/figures/style", PAGE),
        ("report/figures/catalogue", {"write_report"}),
        ("report/page", {"write_report"}),
        ("report/provenance", {"record_provenance"}),
        ("measure/energy", energy(*VARIANTS) | AGGREGATE),
        ("measure/peaks", {MACHINE, "derive_limits"} | AGGREGATE),
        ("network/operations", {"derive_limits"} | AGGREGATE),
        ("data/generate", EVERYTHING - {"export_fp32", "quantize variant=fp16", MACHINE} - whole(*VARIANTS)
         | accuracy(*VARIANTS) | probe(*VARIANTS) | attention(*VARIANTS) | patches(*VARIANTS)
         | per_variant("extract_features", *VARIANTS)
         | whole("int8-static")),
    ],
)  # fmt: skip
def test_a_library_module(run: Checkout, module: str, expected: set[str]) -> None:
    append(run, f"workflow/scripts/dinoquant/{module}.py")
    assert set(run.stale()) == expected


def test_bf16_is_judged_on_a_gpu_if_there_is_one(fresh: Checkout) -> None:
    """On the nodes of a cluster (--jobs), whose processors may only emulate it."""
    overlay = {"devices": ["cpu", "cuda"], "variants": {"bf16": {"recipe": "bf16"}}}
    jobs = fresh.snakemake("--dry-run", "--jobs", "1", overlay=overlay).stdout.split("rule extract_features:")[1:]
    gpus = {re.search(r"variant=(\S+)", job)[1]: int(re.search(r"\bgpu=(\d)", job)[1]) for job in jobs}
    assert gpus == {"fp32": 0, "int8-static": 0, "fp16": 1, "bf16": 1}


@pytest.mark.skipif(bool(runtimes.missing("inductor")), reason=str(runtimes.missing("inductor")))
def test_what_is_compiled_is_quantized_first_and_audited_last(run: Checkout) -> None:
    overlay = {"variants": {"package": {"runtime": "inductor", "recipe": "int8-smooth"}}}
    made = [f"{rule} variant=package" for rule in ("quantize_to_compile", "convert_inductor", "audit_compiled")]
    others = whole("package") - per_variant("quantize", "package") - per_variant("extract_attention", "package")
    assert set(run.stale(overlay=overlay)) == {*made, *others, *AGGREGATE}


def test_what_a_worker_loads_models_with_is_code_of_every_footprint(run: Checkout) -> None:
    """Its process imports that by name, which no import in the script shows."""
    append(run, "workflow/scripts/dinoquant/runtimes/torchscript.py")
    assert footprint(*VARIANTS) <= set(run.stale())


def test_a_script(run: Checkout) -> None:
    append(run, "workflow/scripts/evaluate_accuracy.py")
    assert set(run.stale()) == accuracy(*VARIANTS) | AGGREGATE


def test_the_lock(run: Checkout) -> None:
    append(run, "envs/pipeline.lock")
    assert set(run.stale()) == EVERYTHING


def test_the_lock_downloads_nothing_again(run: Checkout) -> None:
    sources = {"dataset": {"source": URLS[0]}, "model": {"checkpoint": URLS[1]}}
    data, weights = (hashlib.sha256(url.encode()).hexdigest()[:8] for url in URLS)
    for path in (f"datasets/a-{data}.zip", f"checkpoints/b-{weights}.pth"):
        file = run.folder / "resources" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text("placed by hand")
    append(run, "envs/pipeline.lock")
    jobs = run.stale(overlay=sources)
    assert {"verify_dataset", "verify_checkpoint", "pack_images", "export_fp32"} <= set(jobs)
    assert not [job for job in jobs if job.startswith("download")]


def test_touch_and_a_fresh_checkout(run: Checkout) -> None:
    """Time stamps of the sources mean nothing, nor does another order of a dict's keys."""
    for part in ("Snakefile", "config", "envs", "profiles", "workflow"):
        path = run.folder / part
        for file in [path, *path.rglob("*")]:
            os.utime(file)
    overlay = {"latency": {"warmup_seconds": 0.2, "block_seconds": 0.02, "rounds": 6, "threads": "auto"}}
    assert set(run.stale(overlay=overlay)) == set()


def test_every_module_that_a_script_imports_is_an_input(finished: Checkout) -> None:
    """What Python really imports while a script is loaded is among what the static scan declares."""
    program = """
import json, runpy, sys
sys.path.insert(0, "workflow/scripts")
loaded = {}
for script in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "dinoquant"]:
        del sys.modules[name]
    runpy.run_path(f"workflow/scripts/{script}.py", run_name=script)
    loaded[script] = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "dinoquant"]
print(json.dumps(loaded))
"""
    scripts = ("quantize", "export_fp32", "pack_images", "measure_latency", "recommend")
    detailed = finished.snakemake("--forceall", "--dry-run").stdout
    command = [sys.executable, "-c", program, *scripts]
    done = subprocess.run(command, cwd=finished.folder, check=True, text=True, stdout=subprocess.PIPE)
    for script, files in json.loads(done.stdout).items():
        loaded = {str(Path(file).relative_to(finished.folder)) for file in files}
        assert len(loaded) > 3
        inputs = detailed.split(f"rule {script}:\n    input: ")[1].split("\n")[0]
        assert loaded <= set(inputs.split(", "))
