"""The analysis of single modules runs where a variant chooses by it or a person asks for it, and only there."""

from checkout import Checkout
from test_unusual_run import ANALYSIS, AUTO, FIGURE

WITHOUT = {"variants": {"int8-auto": None}}
WITH = {"variants": {"int8-auto": AUTO}}


def test_nobody_pays_for_it_unasked(fresh: Checkout) -> None:
    assert not {ANALYSIS, FIGURE} & set(fresh.stale(overlay=WITHOUT))


def test_a_variant_that_chooses_by_it_brings_it(fresh: Checkout) -> None:
    jobs = fresh.stale(overlay=WITH)
    assert {ANALYSIS, FIGURE} <= set(jobs)
    assert jobs[ANALYSIS] == 1


def test_it_can_be_asked_for_without_measuring_anything_else(fresh: Checkout) -> None:
    jobs = set(fresh.stale("sensitivity", overlay=WITHOUT)) - {"sensitivity"}
    made = {"generate_dataset", "verify_dataset", "pack_images", "export_fp32", "extract_features variant=fp32"}
    assert jobs == made | {ANALYSIS, FIGURE}
