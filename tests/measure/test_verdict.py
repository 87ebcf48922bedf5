"""Verdicts on ratios whose history is known."""

import numpy as np
import pytest

from dinoquant.measure import verdict
from dinoquant.measure.verdict import Contention, judge, widened

QUIET = Contention(0.0, [], 0)


@pytest.mark.parametrize(
    ("second_run", "processes", "word"),
    [(0.049, 8, "ok"), (0.051, 8, "wide"), (0.01, 1, "wide"), (None, 8, "wide")],
)
def test_a_second_run_must_confirm_what_is_ok(second_run: float | None, processes: int, word: str) -> None:
    """One process does not know how others differ."""
    result, reason = judge(np.zeros(8), second_run, processes, QUIET)
    assert (result, bool(reason)) == (word, word != "ok")


def test_rounds_that_go_on_changing_are_wide() -> None:
    values = np.linspace(0, 0.1, 12)
    word, reason = judge(values, 0.01, 8, QUIET)
    assert (word, reason.split(":")[0]) == ("wide", "the speed-up changed by +11% over the rounds")


def test_a_drift_is_not_what_others_did_if_there_were_none() -> None:
    rising = np.linspace(0, 0.1, 12)
    assert judge(rising, 0.01, 8, Contention(0.0, [0.0] * 12, 0))[0] == "wide"


def test_what_others_took_disturbs() -> None:
    flat, load = np.zeros(8), [0.0, 0.5] * 4
    assert judge(flat, 0.01, 8, Contention(0.0, [], 3))[0] == "disturbed"
    assert judge(flat, 0.01, 8, Contention(0.6, load, 0))[0] == "disturbed"
    assert judge(flat, 0.01, 8, Contention(0.25, load, 0))[0] == "ok"
    follows = np.array([0.05 * others + 0.0005 * n for n, others in enumerate(load * 2)])
    assert judge(follows, 0.01, 8, Contention(0.25, load * 2, 0)) == ("ok", ""), "by less than 5 %"
    result, reason = judge(8 * follows, 0.01, 8, Contention(0.25, load * 2, 0))
    assert (result, reason.startswith("the speed-up was +")) == ("disturbed", True)


def test_what_other_rows_show_widens() -> None:
    assert widened(0.04)[0] == "ok"
    word, reason = widened(0.04, 0.04)
    assert (word, reason) == ("wide", "a second run may differ by 6%: raise latency.rounds and latency.processes")
    assert "latency.rounds" not in widened(0.01, 0.2)[1], "more rounds would not help"


def test_a_trend_is_told_from_noise() -> None:
    rng = np.random.default_rng(11)
    assert sum(verdict.trend(rng.normal(0, 0.06, 16)) is not None for _ in range(300)) <= 6, (
        "noise was taken for a trend"
    )
    rising = verdict.trend(np.linspace(0, 0.1, 16) + rng.normal(0, 0.01, 16))
    assert rising == pytest.approx(0.1, abs=0.03)
    assert verdict.trend(np.linspace(0, 0.04, 16)) is None


def test_a_trend_equals_scipys() -> None:
    from scipy.stats import theilslopes

    values = np.sort(np.random.default_rng(0).normal(0, 1, size=21))
    assert verdict.trend(values) == pytest.approx(theilslopes(values).slope * 20)
