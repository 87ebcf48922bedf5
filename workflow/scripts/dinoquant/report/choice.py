"""The choice of a variant: what the budget allows, what noise can tell apart, and what decides where it cannot.

Light libraries only: the Snakefile imports it by way of `dinoquant.report.recommend`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dinoquant.report.columns import COLUMN, COLUMNS, Column, Row, Source, number
from dinoquant.runtimes import BASELINE, TORCHSCRIPT

NOTEBOOK = "int8-dynamic-linear-conv"  # the preset that is the notebook's recipe
MOST_SHOWN = 5  # variants that matter
MOST_GIVEN_UP = 0.1  # of the fastest variant's speed, for a smaller file where the two cannot be told apart
Budget = Mapping[str, float | None]  # by the keys of ``LIMITED``; None: no limit
LIMITED = {  # key of the budget -> the column that it limits
    "cosine": COLUMN["cosine_mean"],
    "patch_cosine": COLUMN["patch_cosine_mean"],
    "knn_top1_drop": COLUMN["knn_top1_drop"],
    "latency_ms": COLUMN["latency_p50_ms"],
    "size_mb": COLUMN["size_mb"],
    "peak_rss_mb": COLUMN["peak_rss_mb"],
}
KNN = "knn_top1_drop"
ABOUT_ACCURACY = [column for column in COLUMNS if column.source in (Source.ACCURACY, Source.PROBE, Source.PATCHES)]


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
    misses: Mapping[str, Sequence[Miss]]  # by variant, of those that are not within the budget; the worst first
    within: Sequence[Row]  # the budget, the fastest first
    pick: Row | None

    @property
    def runner_up(self) -> Row | None:
        """The fastest within the budget that was not picked."""
        return next((row for row in self.within if row is not self.pick), None)

    @property
    def closest(self) -> str | None:
        """The variant that misses the budget by least, if none was picked."""
        return None if self.pick else min(self.misses, key=self._distance, default=None)

    @property
    def almost(self) -> Row | None:
        """Of those that are faster than the pick, beyond noise, the one that misses the budget by least."""
        pick = self.pick
        faster = [row for row in self.measured if pick and row["variant"] in self.misses and distinguishable(row, pick)]
        return min(faster, key=lambda row: self._distance(row["variant"]), default=None)

    @property
    def more_faithful(self) -> Row | None:
        """The fastest within the budget that is slower than the pick and has a better cosine, intervals apart."""
        low, high = COLUMN["cosine_mean"].ends
        highest = number(self.pick, high) if self.pick else None
        if not self.pick or highest is None:
            return None
        latency = known(self.pick, "latency_p50_ms")
        slower = (row for row in self.within if known(row, "latency_p50_ms") > latency and row["variant"] != BASELINE)
        return next((row for row in slower if (number(row, low) or -math.inf) > highest), None)

    def _distance(self, variant: str) -> tuple[float, str]:
        return self.misses[variant][0].times, variant

    def that_matter(self, chosen: str) -> Mapping[str, str]:
        """Return the variants that matter, five at most, and what each is; the pick is called ``chosen``."""
        fastest = max(self.measured, key=lambda row: known(row, "speedup"), default=None)
        smallest = min(self.measured, key=lambda row: known(row, "size_mb"), default=None)
        names = {
            chosen: self.pick,
            "runner-up": self.runner_up if self.pick else None,
            "baseline": next((row for row in self.measured if row["variant"] == BASELINE), None),
            "the notebook's int8": next((row for row in self.measured if row["variant"] == NOTEBOOK), None),
            "fastest": fastest,
            "almost chosen": self.almost,
            "more faithful": self.more_faithful,
            "smallest": smallest,
        }
        roles: dict[str, list[str]] = {}
        for role, row in names.items():
            if row and (row["variant"] in roles or len(roles) < MOST_SHOWN):
                roles.setdefault(row["variant"], []).append(role)
        return {variant: ", ".join(its) for variant, its in roles.items()}


def choose(rows: Sequence[Row], budget: Budget) -> Choice:
    """Return the choice among the rows of one device at one batch size."""
    measured = [row for row in rows if row["status"] not in ("unsupported", "saturates")]
    if without_labels(measured):
        budget = {**budget, KNN: None}
    misses = {row["variant"]: its for row in measured if (its := _misses(row, budget))}
    within = sorted((row for row in measured if row["variant"] not in misses), key=lambda row: -known(row, "speedup"))
    return Choice(rows, measured, misses, within, _pick(within))


def without_accuracy(rows: Sequence[Row], budget: Budget) -> tuple[list[Row], Budget]:
    """Return rows and budget as if no accuracy had been measured: on a substitute it says nothing."""
    unknown = {name: "" for column in ABOUT_ACCURACY for name in column.names}
    return [{**row, **unknown} for row in rows], {**budget, "cosine": None, "patch_cosine": None, KNN: None}


def without_labels(measured: Sequence[Row]) -> bool:
    """Say whether no variant has a k-NN accuracy, because the images have no labels."""
    return not any(row[KNN] for row in measured)


def queries_short(row: Row, budget: Budget) -> float | None:
    """Return how many times the queries it takes to judge the loss of k-NN top-1; None where there are enough.

    They are too few where the half width of the interval alone exceeds the loss allowed. It falls with the root of
    their number.
    """
    low, high = (number(row, end) for end in LIMITED[KNN].ends)
    limit = budget[KNN]
    if limit is None or low is None or high is None or (high - low) / 2 <= limit:
        return None
    return ((high - low) / 2 / limit) ** 2 if limit else math.inf


def _misses(row: Row, budget: Budget) -> list[Miss]:
    """Return the limits that ``row`` misses, the one missed by most first.

    A loss of k-NN top-1 that the queries are too few to judge is missed only where a larger one was shown.
    """
    limits = {key: limit for key in LIMITED if (limit := budget[key]) is not None}
    low = number(row, LIMITED[KNN].ends[0])
    if queries_short(row, budget) and low is not None and low <= limits[KNN]:
        del limits[KNN]
    misses = [miss for key, limit in limits.items() if (miss := _miss(row, key, limit))]
    return sorted(misses, key=lambda miss: -miss.times)


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
    return Merits(row["status"] != "ok", size, row["runtime"] != TORCHSCRIPT, -(number(row, "cosine_mean") or 0))


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
