"""The choice of a variant: what the budget allows, what noise can tell apart, and what decides where it cannot.

Light libraries only: the Snakefile imports it by way of `dinoquant.report.recommend`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dinoquant.report.columns import COLUMN, Column, Row, number
from dinoquant.runtimes import TORCHSCRIPT

MOST_GIVEN_UP = 0.1  # of the fastest variant's speed, for a smaller file where the two cannot be told apart
Budget = Mapping[str, float | None]  # by the keys of ``LIMITED``; None: no limit
LIMITED = {  # key of the budget -> the column that it limits
    "cosine": COLUMN["cosine_mean"],
    "knn_top1_drop": COLUMN["knn_top1_drop"],
    "latency_ms": COLUMN["latency_p50_ms"],
    "size_mb": COLUMN["size_mb"],
    "peak_rss_mb": COLUMN["peak_rss_mb"],
}


@dataclass(frozen=True)
class Miss:
    """A limit of the budget that a row does not keep, or was not shown to keep."""

    key: str
    limit: float
    value: float | None  # None: not measured
    end: float  # of the interval, the unfavourable one; the value itself where there is none
    times: float  # how many times over the limit; infinite if that is not known. A cosine counts as 1 - cosine

    @property
    def column(self) -> Column:
        return LIMITED[self.key]


class Merits(NamedTuple):
    """What decides between variants of one speed, the weightiest first; less is better.

    Sizes count to two digits, as less is nobody's reason.
    """

    doubtful_timing: bool
    size: float
    other_runtime: bool
    distance: float


@dataclass(frozen=True)
class Choice:
    """The pick on one device, and what it was chosen from."""

    rows: Sequence[Row]  # all of the device
    measured: Sequence[Row]
    misses: Mapping[str, Miss]  # by variant, of those that are not within the budget
    within: Sequence[Row]  # the budget, the fastest first
    pick: Row | None

    @property
    def runner_up(self) -> Row | None:
        """The fastest within the budget that was not picked."""
        return next((row for row in self.within if row is not self.pick), None)

    @property
    def closest(self) -> str | None:
        """The variant that misses the budget by least, if none was picked."""
        return None if self.pick else min(self.misses, key=lambda name: (self.misses[name].times, name), default=None)

    @property
    def fastest_missed(self) -> Row | None:
        """The fastest of those that are faster than the pick, beyond noise, and outside the budget."""
        pick = self.pick
        faster = [row for row in self.measured if pick and row["variant"] in self.misses and distinguishable(row, pick)]
        return max(faster, key=lambda row: known(row, "speedup"), default=None)


def choose(rows: Sequence[Row], budget: Budget) -> Choice:
    """Return the choice among the rows of one device at one batch size."""
    measured = [row for row in rows if row["status"] not in ("unsupported", "saturates")]
    misses = {row["variant"]: miss for row in measured if (miss := _worst_miss(row, budget))}
    within = sorted((row for row in measured if row["variant"] not in misses), key=lambda row: -known(row, "speedup"))
    return Choice(rows, measured, misses, within, _pick(within))


def _worst_miss(row: Row, budget: Budget) -> Miss | None:
    """Return the limit that ``row`` misses by most."""
    limits = {key: limit for key in LIMITED if (limit := budget[key]) is not None}
    misses = [miss for key, limit in limits.items() if (miss := _miss(row, key, limit))]
    return max(misses, key=lambda miss: miss.times, default=None)


def _miss(row: Row, key: str, limit: float) -> Miss | None:
    """Judge by the unfavourable end of the interval, which is the test of non-inferiority.

    What passes was shown to be within the budget; a measurement too small to show it does not pass.
    """
    column = LIMITED[key]
    at_least = column.better == "higher"
    value = number(row, column.name)
    if value is None:
        return Miss(key, limit, None, math.nan, math.inf)
    end = number(row, column.ends[0 if at_least else 1])
    end = value if end is None else end
    if end >= limit if at_least else end <= limit:
        return None
    over, allowed = (1 - end, 1 - limit) if at_least else (end, limit)
    return Miss(key, limit, value, end, over / allowed if allowed > 0 else math.inf)


def _pick(within: Sequence[Row]) -> Row | None:
    """Return the fastest, or of those that cannot be told from it the one with the least against it.

    These are the ones that nothing is faster than beyond noise, and whose speed-up lies within the fastest one's
    interval or the noise floor below it: a wide interval of its own must not make a slow variant as good as a fast one,
    nor must that of the fastest, so that no more than ``MOST_GIVEN_UP`` is given up on a disturbed machine.
    """
    if not within:
        return None
    fastest = within[0]
    low = number(fastest, "speedup_ci_low") or known(fastest, "speedup")
    low = max(low / (1 + (number(fastest, "noise_floor") or 0)), (1 - MOST_GIVEN_UP) * known(fastest, "speedup"))
    alike = [
        row
        for row in within
        if known(row, "speedup") >= low and not any(distinguishable(other, row) for other in within)
    ]
    return min(alike, key=merits)


def merits(row: Row) -> Merits:
    """Return what decides if speed does not."""
    size = float(f"{known(row, 'size_mb'):.2g}")
    return Merits(row["status"] != "ok", size, row["runtime"] != TORCHSCRIPT, -known(row, "cosine_mean"))


def distinguishable(fast: Row, slow: Row) -> bool:
    """Say whether ``fast`` is faster beyond noise: disjoint intervals, and further apart than fp32 is from itself."""
    low, high = number(fast, "speedup_ci_low"), number(slow, "speedup_ci_high")
    if low is None or high is None:
        return False
    floor = number(fast, "noise_floor") or 0.0
    return low > high and known(fast, "speedup") > (1 + floor) * known(slow, "speedup")


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of those (cost, value) that no other beats or equals in both, the cheapest first."""
    best, names = -math.inf, []
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if value > best:
            best = value
            names.append(name)
    return names


def known(row: Row, name: str) -> float:
    """Return a cell of which it is known that it is not empty."""
    return float(row[name])
