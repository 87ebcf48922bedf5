"""Which variant to deploy on each device: the fastest within the budget, the reasons, and what was turned down.

Standard library only: the Snakefile and the page import it too.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINE = "fp32"
TORCHSCRIPT = "torchscript"
LINKS = "results/recommended"
MOST_GIVEN_UP = 0.1  # of the fastest variant's speed, for a smaller file where the two cannot be told apart
Row = Mapping[str, str]  # of summary.csv, by column


@dataclass(frozen=True)
class Limit:
    """One key of the budget: the column it limits, and the end of its interval that has to keep within it.

    Judging by the unfavourable end is the test of non-inferiority: what passes was shown to be within the budget, and a
    measurement too small to show it does not pass.
    """

    key: str
    column: str
    end: str
    what: str
    form: str
    unit: str = ""
    at_least: bool = False

    def miss(self, row: Row, asked: float) -> tuple[str, float] | None:
        """Return why ``row`` misses the limit, and how many times over it is (infinite: not known); None if it is met.

        The cosine is counted as a distance, 1 - cosine.
        """
        value = number(row, self.column)
        if value is None:
            return f"its {self.what} was not measured", math.inf
        known = number(row, self.end)
        end = value if known is None else known
        if end >= asked if self.at_least else end <= asked:
            return None
        over, allowed = (1 - end, 1 - asked) if self.at_least else (end, asked)
        times = over / allowed if allowed > 0 else math.inf
        said = f"its {self.what} is {value:{self.form}}{self.unit}"
        if value >= asked if self.at_least else value <= asked:
            said += f", and may be {end:{self.form}}{self.unit}: too few samples to show that it keeps within"
        else:
            said += f", {abs(value - asked):{self.form}}{self.unit} {'short of' if self.at_least else 'over'}"
        return f"{said} the {asked:g}{self.unit} {'asked for' if self.at_least else 'allowed'}", times


LIMITS = [
    Limit("cosine", "cosine_mean", "cosine_mean_ci_low", "mean cosine to fp32", ".4f", at_least=True),
    Limit("knn_top1_drop", "knn_top1_drop", "knn_top1_drop_ci_high", "loss of k-NN top-1", ".2f", " points"),
    Limit("latency_ms", "latency_p50_ms", "latency_p50_ci_high_ms", "median latency", ".2f", " ms"),
    Limit("size_mb", "size_mb", "size_mb", "size", ".1f", " MB"),
    Limit("peak_rss_mb", "peak_rss_mb", "peak_rss_mb", "peak memory", ".0f", " MB"),
]


def recommend(rows: Sequence[Row], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to deploy, as written to `results/recommendation.json`.

    ``rows`` are those of the summary. ``config`` has ``budget``, ``devices``, ``batch_size`` (that of the rows to look
    at), ``artifacts`` (variant -> files, that which is loaded first) and ``substitutes`` (what stands in for real
    images or weights).
    """
    shown = [row for row in rows if row["batch_size"] == str(config["batch_size"])]
    return {
        "batch_size": config["batch_size"],
        "budget": config["budget"],
        "substitutes": config["substitutes"],
        "devices": {
            device: _on_device([row for row in shown if row["device"] == device], device, config)
            for device in config["devices"]
        },
    }


def _on_device(rows: Sequence[Row], device: str, config: Mapping[str, Any]) -> dict[str, Any]:
    measured = [row for row in rows if row["status"] != "unsupported"]
    misses = {row["variant"]: _miss(row, config["budget"]) for row in measured}
    within = sorted((row for row in measured if not misses[row["variant"]]), key=lambda row: -_known(row, "speedup"))
    pick = _pick(within)
    runner_up = next((row for row in within if row is not pick), None)
    rejected = {row["variant"]: f"does not run here: {row['reason']}" for row in rows if row not in measured}
    rejected |= {variant: miss[0] for variant, miss in misses.items() if miss}
    if pick:
        rejected |= {row["variant"]: _against(row, pick) for row in within if row is not pick}
    closest = min(filter(None, ((m and (m[1], v)) for v, m in misses.items())), default=None)
    found: dict[str, Any] = {
        "pick": pick["variant"] if pick else None,
        "artifacts": config["artifacts"][pick["variant"]] if pick else [],
        "link": None,
        "answer": "",
        "reasons": [],
        "warnings": [],
        "runner_up": None,
        "closest": closest[1] if closest and not pick else None,
        "rejected": {row["variant"]: rejected[row["variant"]] for row in rows if row["variant"] in rejected},
        "fronts": {
            "speed": front(_points(measured, "speedup", -1)),
            "size": front(_points(measured, "size_mb", 1)),
        },
    }
    where = f"On {device}, batch {config['batch_size']},"
    if not pick:
        nearest = f" {closest[1]} comes closest: {rejected[closest[1]]}." if closest else ""
        return found | {"answer": f"{where} nothing meets the budget.{nearest}"}
    found["link"] = f"{LINKS}/{device}{Path(found['artifacts'][0]).suffix}"
    found["answer"] = f"{where} deploy {_deploy(pick)}; {found['link']}"
    found["reasons"] = [*_reasons(pick, within, config["budget"])]
    if runner_up:
        found["runner_up"] = {
            "variant": runner_up["variant"],
            "distinguishable": _distinguishable(pick, runner_up),
        }
        found["reasons"].append(f"The runner-up is {runner_up['variant']}: {rejected[runner_up['variant']]}.")
    faster = [row for row in measured if misses[row["variant"]] and _distinguishable(row, pick)]
    if faster:
        fastest = max(faster, key=lambda row: _known(row, "speedup"))
        found["reasons"].append(
            f"{fastest['variant']} is faster, {_speed(fastest)}, but {rejected[fastest['variant']]}."
        )
    found["warnings"] = [_warning(row) for row in (pick, runner_up) if row and row["status"] != "ok"]
    return found


def _miss(row: Row, budget: Mapping[str, float | None]) -> tuple[str, float] | None:
    """Return the limit that ``row`` misses by most, in words and in times over it."""
    asked = ((limit, budget[limit.key]) for limit in LIMITS)
    missed = [miss for limit, value in asked if value is not None and (miss := limit.miss(row, value))]
    return max(missed, key=lambda miss: miss[1], default=None)


def _pick(within: Sequence[Row]) -> Row | None:
    """Return the fastest, or of those that cannot be told from it the one with the least against it.

    These are the ones that nothing is faster than beyond noise, and whose speed-up lies within the fastest one's
    interval or the noise floor below it: a wide interval of its own must not make a slow variant as good as a fast one,
    nor must that of the fastest, so that no more than ``MOST_GIVEN_UP`` is given up on a disturbed machine.
    """
    if not within:
        return None
    fastest = within[0]
    low = number(fastest, "speedup_ci_low") or _known(fastest, "speedup")
    low = max(low / (1 + (number(fastest, "noise_floor") or 0)), (1 - MOST_GIVEN_UP) * _known(fastest, "speedup"))
    alike = [
        row
        for row in within
        if _known(row, "speedup") >= low and not any(_distinguishable(other, row) for other in within)
    ]
    return min(alike, key=lambda row: [order for order, _ in _objections(row)])


def _objections(row: Row) -> list[tuple[Any, str]]:
    """Return what decides between variants of one speed, the weightiest first: what to order by, and in words.

    Sizes count to two digits, as less is nobody's reason.
    """
    size, cosine = _known(row, "size_mb"), _known(row, "cosine_mean")
    return [
        (row["status"] != "ok", f"its timing is {row['status']}"),
        (float(f"{size:.2g}"), f"larger, {size:.1f} MB"),
        (row["runtime"] != TORCHSCRIPT, f"it needs {row['runtime']}"),
        (-cosine, f"its mean cosine is {cosine:.4f}"),
    ]


def _distinguishable(fast: Row, slow: Row) -> bool:
    """Say whether ``fast`` is faster beyond noise: disjoint intervals, and further apart than fp32 is from itself."""
    low, high = number(fast, "speedup_ci_low"), number(slow, "speedup_ci_high")
    if low is None or high is None:
        return False
    floor = number(fast, "noise_floor") or 0.0
    return low > high and _known(fast, "speedup") > (1 + floor) * _known(slow, "speedup")


def _against(row: Row, pick: Row) -> str:
    """Return why ``pick`` was preferred to ``row``, both being within the budget."""
    if _distinguishable(pick, row):
        return f"slower, {_speed(row)}"
    for (mine, why), (its, _) in zip(_objections(row), _objections(pick), strict=True):
        if mine > its:
            return f"not distinguishable in speed, {_speed(row)}; {why}"
        if mine < its:
            break
    return f"slower, {_speed(row)}, though not beyond noise"


def _deploy(pick: Row) -> str:
    size, compression = _known(pick, "size_mb"), _known(pick, "compression")
    smaller = f"{compression:.1f}x smaller" if compression >= 1.05 else f"{size:.1f} MB"
    if pick["variant"] == BASELINE:
        return f"{BASELINE}: nothing within the budget is faster beyond the noise; {size:.1f} MB"
    runtime = f" (runs in {pick['runtime']})" if pick["runtime"] != TORCHSCRIPT else ""
    return f"{pick['variant']}{runtime}: {_speed(pick)}, {smaller}, cosine {_known(pick, 'cosine_mean'):.4f}"


def _speed(row: Row) -> str:
    low, high = number(row, "speedup_ci_low"), number(row, "speedup_ci_high")
    interval = f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else ""
    return f"{_known(row, 'speedup'):.2f}x as fast as fp32{interval}"


def _reasons(pick: Row, within: Sequence[Row], budget: Mapping[str, float | None]) -> list[str]:
    """Return why this one, and how it stands to the budget, in sentences."""
    low, high = number(pick, "cosine_mean_ci_low"), number(pick, "cosine_mean_ci_high")
    interval = f" ({low:.4f} to {high:.4f})" if low is not None and high is not None else ""
    count = f"the {len(within)} variants" if len(within) > 1 else "the one variant"
    fastest = "the fastest" if pick is within[0] else "among the fastest"
    reasons = [
        f"Of {count} within the budget it is {fastest}: {_speed(pick)}, "
        f"{_known(pick, 'latency_p50_ms'):.2f} ms per call.",
        f"Its features have a mean cosine of {_known(pick, 'cosine_mean'):.4f}{interval} to fp32's; "
        f"{budget['cosine']:g} was asked for.",
    ]
    drop, low, high = (number(pick, f"knn_top1_drop{end}") for end in ("", "_ci_low", "_ci_high"))
    if drop is not None and low is not None and high is not None and pick["variant"] != BASELINE:
        seen = "no loss that these queries would show" if low <= 0 <= high else "a loss" if drop > 0 else "a gain"
        allowed = "" if budget["knn_top1_drop"] is None else f"; {budget['knn_top1_drop']:g} allowed"
        reasons.append(f"k-NN top-1 lost: {drop:.2f} points ({low:.2f} to {high:.2f}), {seen}{allowed}.")
    reasons.append(
        f"Its file has {_known(pick, 'size_mb'):.1f} MB, fp32's {_known(pick, 'compression'):.2f} times that."
    )
    floor = number(pick, "noise_floor")
    if floor is not None:
        reasons.append(f"In this run fp32 differed from itself by at most {100 * floor:.1f} %.")
    return reasons


def _warning(row: Row) -> str:
    return (
        f"The timing of {row['variant']} is {row['status']}: {row['reason']}. To repeat it, delete "
        f"results/latency/{row['device']}/{row['variant']}/batch{row['batch_size']}.json and run again."
    )


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of those (cost, value) that no other beats or equals in both, the cheapest first."""
    best, names = -math.inf, []
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if value > best:
            best = value
            names.append(name)
    return names


def _points(rows: Sequence[Row], column: str, sign: int) -> dict[str, tuple[float, float]]:
    known = [row for row in rows if row[column] and row["cosine_mean"]]
    return {row["variant"]: (sign * _known(row, column), _known(row, "cosine_mean")) for row in known}


def number(row: Row, column: str) -> float | None:
    """Return a cell as a number; None where it is empty."""
    return float(row[column]) if row[column] else None


def _known(row: Row, column: str) -> float:
    """Return a cell of which it is known that it is not empty."""
    return float(row[column])


def link(recommendation: Mapping[str, Any], folder: str | Path) -> None:
    """Make ``folder`` with a relative link to each file of each device's pick."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for device, found in recommendation["devices"].items():
        for artifact in map(Path, found["artifacts"]):
            Path(folder, device + artifact.suffix).symlink_to(os.path.relpath(artifact, folder))


def conclusion(recommendation: Mapping[str, Any]) -> str:
    """Return the answers for the terminal, a line for each device, and the warnings that go with them."""
    lines = []
    for found in recommendation["devices"].values():
        lines += [found["answer"], *(f"  {warning}" for warning in found["warnings"])]
    if recommendation["substitutes"]:
        lines.append(
            f"  Made with a substitute ({', '.join(recommendation['substitutes'])}): only speed and size are real."
        )
    return "\n".join(lines)
