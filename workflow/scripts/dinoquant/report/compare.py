"""Two results folders side by side: what changed from one to the other, and whether that is more than noise."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinoquant.errors import UserError
from dinoquant.files import read_json, read_rows

Row = Mapping[str, str]
HEADER = ["variant", "device", "batch", "p50 ms", "speed-up", "MB", "cosine", "k-NN %", "verdict"]
LEFT_ALIGNED = {"variant", "device", "verdict"}
# Column of the summary, the ends of its interval, its name in the verdict.
TIMED = [
    ("latency_p50_ms", "latency_p50_ci_low_ms", "latency_p50_ci_high_ms", "p50"),
    ("speedup", "speedup_ci_low", "speedup_ci_high", "speed-up"),
]
# These do not depend on the moment, so that every difference is one.
EXACT = [("size_mb", "MB", ".1f"), ("cosine_mean", "cosine", ".4f"), ("knn_top1", "k-NN", ".2f")]
ARROW = " -> "


def compare(a: str | Path, b: str | Path) -> str:
    """Return what changed from the results folder ``a`` to ``b``, as text: what they were made on, and a row per cell.

    A timing has changed if the two intervals are disjoint and the values further apart than either run's noise floor;
    without intervals or floors nothing is known, which is said. Results of an older version may lack columns.

    Raises:
        UserError: a folder without a summary.
    """
    rows = [_rows(folder) for folder in (a, b)]
    both = [key for key in rows[0] if key in rows[1]]
    lines = [HEADER, *(_line(rows[0][key], rows[1][key]) for key in both)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    parts = [f"A: {a}\nB: {b}", _origins(a, b)]
    if both:
        parts.append("\n".join(_aligned(line, widths) for line in lines))
    for name, mine, other in (("A", *rows), ("B", *reversed(rows))):
        only = [" ".join(key) for key in mine if key not in other]
        parts += [f"Only in {name}: {', '.join(only)}"] * bool(only)
    changed = sum(line[-1] not in ("no change", "unsupported in both") for line in lines[1:])
    parts.append(f"{changed} of {len(both)} rows changed beyond noise, or cannot be judged.")
    return "\n\n".join(parts)


def _rows(folder: str | Path) -> dict[tuple[str, str, str], Row]:
    path = Path(folder, "summary.csv")
    if not path.is_file():
        raise UserError(f"{folder} has no summary.csv; expected a results folder of a finished run")
    return {(row["variant"], row["device"], row["batch_size"]): row for row in read_rows(path)}


def _origins(a: str | Path, b: str | Path) -> str:
    """Return the facts about machines, versions and commits in which the timings of ``a`` and ``b`` differ."""
    facts = [_facts(folder) for folder in (a, b)]
    values = {
        key: [" and ".join(sorted(fact.get(key, {"unknown"}))) for fact in facts]
        for key in dict.fromkeys(key for fact in facts for key in fact)
    }
    differing = [f"  {key}: {ARROW.join(value)}" for key, value in values.items() if value[0] != value[1]]
    return "\n".join(["What differs:", *differing]) if differing else "Machine, versions and commit: the same"


def _facts(folder: str | Path) -> dict[str, set[str]]:
    """Return the values that each fact about machine and commit takes in a folder's timings."""
    facts: dict[str, set[str]] = {}
    for path in Path(folder).glob("latency/*/*/batch*.json"):
        machine: dict[str, Any] = dict(read_json(path)["machine"])
        git = machine.pop("git", None) or {}
        machine |= {"commit": git.get("commit"), "uncommitted changes": git.get("dirty")}
        for key, value in machine.items():
            facts.setdefault(key, set()).add(str(value))
    return facts


def _line(a: Row, b: Row) -> list[str]:
    cells = [a["variant"], a["device"], a["batch_size"]]
    cells += [ARROW.join(_number(row, column, ".2f") for row in (a, b)) for column, *_ in TIMED]
    cells += [ARROW.join(dict.fromkeys(_number(row, column, form) for row in (a, b))) for column, _, form in EXACT]
    return [*cells, _verdict(a, b)]


def _verdict(a: Row, b: Row) -> str:
    statuses = [row["status"] for row in (a, b)]
    if "unsupported" in statuses:
        return "unsupported in both" if statuses[0] == statuses[1] else ARROW.join(statuses)
    seen = [*_timed(a, b), *_exact(a, b)]
    if statuses[0] != statuses[1]:
        seen.append(f"status {ARROW.join(statuses)}")
    elif statuses[0] != "ok" and seen:
        seen.append(f"timings {statuses[0]}")
    return ", ".join(seen) or "no change"


def _timed(a: Row, b: Row) -> Iterable[str]:
    floors = [_value(row, "noise_floor") or 0.0 for row in (a, b)]
    for column, low, high, name in TIMED:
        before, after = _value(a, column), _value(b, column)
        ends = [_value(row, end) for row in (a, b) for end in (low, high)]
        if before is None or after is None:
            if before != after:
                yield f"{name} measured in one only"
        elif None in ends:
            yield f"{name} {after / before - 1:+.1%}, without intervals to judge by"
        elif _disjoint([end for end in ends if end is not None]) and _apart(before, after) > max(floors):
            yield f"{name} {after / before - 1:+.1%}"


def _disjoint(ends: Sequence[float]) -> bool:
    """Say whether two intervals, given as four ends, have nothing in common."""
    return ends[1] < ends[2] or ends[3] < ends[0]


def _apart(one: float, other: float) -> float:
    """Return by how much the larger exceeds the smaller, as a fraction of it: the same in either direction."""
    return max(one, other) / min(one, other) - 1


def _exact(a: Row, b: Row) -> Iterable[str]:
    for column, name, _ in EXACT:
        before, after = _value(a, column), _value(b, column)
        if before is None or after is None:
            if before != after:
                yield f"{name} measured in one only"
        elif before != after:
            yield f"{name} {after - before:+.3g}"


def _value(row: Row, column: str) -> float | None:
    return float(row[column]) if row.get(column) else None


def _number(row: Row, column: str, form: str) -> str:
    value = _value(row, column)
    return "-" if value is None else f"{value:{form}}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.ljust(width) if name in LEFT_ALIGNED else cell.rjust(width)
        for name, cell, width in zip(HEADER, cells, widths, strict=True)
    )
    return "  ".join(aligned).rstrip()
