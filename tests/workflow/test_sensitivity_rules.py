"""The analysis of single modules runs where a variant chooses by it or a person asks for it, and only there."""

from conftest import Checkout

WITHOUT = {"variants": {"int8-auto": None}}
AUTO = {"recipe": "int8-auto", "cosine": 0.99}
WITH = {"variants": {"int8-auto": AUTO}, "sensitivity": {"images": 4}}
ANALYSIS = "measure_sensitivity"
FIGURE = "draw_figure figure=sensitivity"
OF_THE_VARIANT = {
    "quantize variant=int8-auto",
    "extract_features variant=int8-auto",
    "evaluate_accuracy variant=int8-auto",
    "evaluate_probe variant=int8-auto",
    "extract_attention variant=int8-auto",
    "measure_patches variant=int8-auto",
    "measure_latency device=cpu, variant=int8-auto, batch=1",
    "measure_footprint device=cpu, variant=int8-auto",
    "measure_energy device=cpu, variant=int8-auto",
}


def test_nobody_pays_for_it_unasked(fresh: Checkout) -> None:
    assert not {ANALYSIS, FIGURE} & set(fresh.stale(overlay=WITHOUT))


def test_a_variant_that_chooses_by_it_brings_it(fresh: Checkout) -> None:
    jobs = fresh.stale(overlay=WITH)
    assert {ANALYSIS, FIGURE, *OF_THE_VARIANT} <= set(jobs)
    assert jobs[ANALYSIS] == 1


def test_it_can_be_asked_for_without_measuring_anything_else(fresh: Checkout) -> None:
    jobs = set(fresh.stale("sensitivity", overlay=WITHOUT)) - {"sensitivity"}
    made = {"generate_dataset", "verify_dataset", "pack_images", "export_fp32", "extract_features variant=fp32"}
    assert jobs == made | {ANALYSIS, FIGURE}


def test_what_a_change_makes_stale(run: Checkout) -> None:
    done = run.snakemake(overlay=WITH)
    assert done.returncode == 0, done.stdout
    assert 'class="muted">(int8: 1 - cosine' in (run.folder / "results/report.html").read_text()
    assert set(run.stale(overlay=WITH)) == set()

    budget = {**WITH, "variants": {"int8-auto": {**AUTO, "cosine": 0.98}}}
    stale = set(run.stale(overlay=budget))
    assert not {ANALYSIS, FIGURE} & stale
    assert {job for job in stale if "variant=" in job} == OF_THE_VARIANT

    stale = set(run.stale(overlay=WITH | {"sensitivity": {"images": 5}}))
    assert {ANALYSIS, FIGURE, *OF_THE_VARIANT} <= stale
    assert {job for job in stale if "variant=" in job} == OF_THE_VARIANT

    without_figures = set(run.stale(overlay=WITH | {"figures": {"batch_size": 1}}))
    assert not {ANALYSIS, FIGURE} & without_figures
    assert FIGURE in set(run.stale(overlay=WITH | {"figures": {"dpi": 60}}))
