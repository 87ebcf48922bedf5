"""How far a speed-up can be trusted: would a second run confirm it, and did anything else on the machine move it?

``ok``: nine second runs in ten would find a ratio within 5 %. ``wide``: they may well find another, so that rows as
close cannot be ranked. ``disturbed``: something beside the timing moved the ratio itself. What else the machine did, as
long as it did it to variant and fp32 alike, is no doubt. `tests/bench/repeatability.py` prints how often that is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIRMED = 0.05  # a second run confirms a ratio from which its own differs by less
# Processors that others had and the timing would have used, on average. Snakemake takes some while it waits; one busy
# core beside two threads moved three of five ratios by 7 to 60 %.
MOST_CONTENTION = 0.5
LEAST_CONTENTION = 0.1  # others that never had more of the processors move no ratio
# A trend is what chance would hardly make of as many rounds, and what changes the speed-up by more than this.
TREND_Z = 2.58  # p = 0.01
TREND_SIZE = 0.05

MORE = "raise latency.rounds and latency.processes"
Verdict = tuple[str, str]  # the word, and why; no reason is given for ok


@dataclass(frozen=True)
class Contention:
    """What others took from a timing: processors on average, processors by round (or nothing), throttlings."""

    mean: float
    by_round: Sequence[float]
    throttles: int


def judge(log_ratios: NDArray[np.float64], second_run: float | None, processes: int, contention: Contention) -> Verdict:
    """Return the verdict on the rounds of one timing.

    Args:
        log_ratios: logarithms of the speed-up, by round, in the order of time.
        second_run: what `dinoquant.measure.stopping.second_run` says of them.
        processes: how many processes made the rounds.
        contention: what others did meanwhile.
    """
    if contention.throttles:
        return "disturbed", f"the processors were throttled, or their quota used up, {contention.throttles} times"
    if contention.mean > MOST_CONTENTION:
        return "disturbed", f"others had {contention.mean:.1f} of the processors that it needs"
    by_load = log_ratios[np.argsort(contention.by_round, kind="stable")]
    if max(contention.by_round, default=0.0) > LEAST_CONTENTION and (change := trend(by_load)):
        return "disturbed", f"the speed-up was {np.expm1(change):+.0%} where others had most of the processors"
    if change := trend(log_ratios):
        return "wide", f"the speed-up changed by {np.expm1(change):+.0%} over the rounds: {MORE}"
    if second_run is None:
        return "wide", "too few rounds for an interval: raise latency.rounds"
    if processes == 1:
        return "wide", "one process cannot tell how others differ: raise latency.processes"
    return widened(second_run)


def widened(second_run: float, more: float = 0.0) -> Verdict:
    """Return the verdict on a speed-up from which a second run differs so much, and by ``more`` besides (fractions)."""
    off = float(np.hypot(second_run, more))
    if off <= CONFIRMED:
        return "ok", ""
    if more > CONFIRMED:
        return "wide", f"a second run may differ by {off:.0%}, as the control or slow rounds show: wait for quiet"
    return "wide", f"a second run may differ by {off:.0%}: {MORE}"


def trend(values: NDArray[np.float64]) -> float | None:
    """Return how much ``values`` change from the first to the last, if that is sure and more than `TREND_SIZE`.

    By the Theil-Sen slope (Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968) and the
    standard score of Mann's rank test against trend (1945). A few lines of NumPy, as `scipy.stats` takes more than a
    second to import.
    """
    n = len(values)
    if n < 2:
        return None
    early, late = np.triu_indices(n, 1)
    rises = values[late] - values[early]
    change = float(np.median(rises / (late - early))) * (n - 1)
    z = float(np.sign(rises).sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))
    return change if abs(change) > TREND_SIZE and abs(z) > TREND_Z else None
