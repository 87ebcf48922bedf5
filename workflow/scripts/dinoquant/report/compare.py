"""Two results folders side by side: what changed from one to the other, and whether that is more than noise."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dinoquant.errors import UserError
from dinoquant.files import read_json, read_rows
from dinoquant.report.columns import Column, Row, Source, number
from dinoquant.report.table import SHOWN, aligned

ARROW = " -> "


def compare(a: str | Path, b: str | Path) -> str:
    """Return what changed from the results folder ``a`` to ``b``, as text: what they were made on, and a row per cell.

    A timing has changed if the two intervals are disjoint and the values further apart than either run's noise floor;
    without intervals or floors nothing is known, which is said. What does not depend on the moment has changed if it
    differs at all. Results of an older version may lack columns.

    Raises:
        UserError: a folder without a summary, or with one that is broken.
    """
    rows_a, rows_b = _rows(a), _rows(b)
    both = [key for key in rows_a if key in rows_b]
    verdicts = [_verdict(rows_a[key], rows_b[key]) for key in both]
    header = ["variant", "device", "batch", *(column.short_title for column in SHOWN), "verdict"]
    cells = [
        [*key, *(_change(column, rows_a[key], rows_b[key]) for column in SHOWN), verdict]
        for key, verdict in zip(both, verdicts, strict=True)
    ]
    paragraphs = [f"A: {a}\nB: {b}", _origins(a, b)]
    if both:
        paragraphs.append("\n".join(aligned([header, *cells], left=("variant", "device", "verdict"))))
    for name, mine, other in (("A", rows_a, rows_b), ("B", rows_b, rows_a)):
        only = [" ".join(key) for key in mine if key not in other]
        paragraphs += [f"Only in {name}: {', '.join(only)}"] * bool(only)
    changed = sum(verdict not in ("no change", "unsupported in both") for verdict in verdicts)
    paragraphs.append(
        f"{changed} of {len(both)} rows changed beyond noise, or cannot be judged."
        if both
        else "No row is in both: nothing is compared."
    )
    return "\n\n".join(paragraphs)


def _rows(folder: str | Path) -> dict[tuple[str, str, str], Row]:
    path = Path(folder, "summary.csv")
    if not path.is_file():
        raise UserError(f"{folder} has no summary.csv; expected a results folder of a finished run")
    rows = read_rows(path)
    # A row that is cut off lacks its last columns: csv.DictReader has None for them.
    if not rows or "batch_size" not in rows[0] or any(None in row.values() for row in rows):
        raise UserError(f"{path} is broken: it has no rows, or some that are cut off. Have it made again by a run.")
    return {(row["variant"], row["device"], row["batch_size"]): row for row in rows}


def _origins(a: str | Path, b: str | Path) -> str:
    """Return in which facts about machines, versions, commits, inputs and config ``a`` and ``b`` differ."""
    recorded = [_recorded(folder) for folder in (a, b)]
    facts = [{**_facts(folder), **record} for folder, record in zip((a, b), recorded, strict=True)]
    values = {
        key: [" and ".join(sorted(fact.get(key, {"unknown"}))) for fact in facts]
        for key in dict.fromkeys(key for fact in facts for key in fact)
        if not key.startswith("variants.") or all(key in fact for fact in facts)  # a variant of one is said below
    }
    differing = [f"  {key}: {ARROW.join(value)}" for key, value in values.items() if value[0] != value[1]]
    if differing:
        return "\n".join(["What differs:", *differing])
    if all(recorded):
        return "Machine, versions, commit, inputs and config: the same"
    return "Machine, versions and commit: the same; inputs and config are not known without provenance.json"


def _facts(folder: str | Path) -> Mapping[str, set[str]]:
    """Return the values that each fact about machine and commit takes in a folder's timings."""
    facts: dict[str, set[str]] = {}
    for path in Path(folder).glob("latency/*/*/batch*.json"):
        machine: dict[str, object] = read_json(path)["machine"]
        git = machine.pop("git", None)
        commit = git if isinstance(git, dict) else {}
        machine |= {"commit": commit.get("commit"), "uncommitted changes": commit.get("dirty")}
        for key, value in machine.items():
            facts.setdefault(key, set()).add(str(value))
    return facts


def _recorded(folder: str | Path) -> Mapping[str, set[str]]:
    """Return a folder's inputs by digest, and its config key by key, without what only figures and budget depend on."""
    path = Path(folder, "provenance.json")
    if not path.is_file():
        return {}
    record: dict[str, dict[str, Any]] = read_json(path)
    inputs = {name: {receipt["sha256"][:12]} for name, receipt in record["inputs"].items()}
    return inputs | {key: {value} for key, value in _flat(record["config"])}


def _flat(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield where + key, str(value)


def _timed(column: Column) -> bool:
    """Say whether a column's value depends on the moment."""
    return column.source is Source.LATENCY


def _change(column: Column, a: Row, b: Row) -> str:
    """Return both values; only one if they print alike and do not depend on the moment."""
    texts = [column.text(row) or "-" for row in (a, b)]
    return ARROW.join(texts if _timed(column) else dict.fromkeys(texts))


def _verdict(a: Row, b: Row) -> str:
    before, after = a["status"], b["status"]
    if "unsupported" in (before, after):
        return "unsupported in both" if before == after else f"{before}{ARROW}{after}"
    changes = list(_changes(a, b))
    if before != after:
        changes.append(f"status {before}{ARROW}{after}")
    elif before != "ok" and changes:
        changes.append(f"timings {before}")
    return ", ".join(changes) or "no change"


def _changes(a: Row, b: Row) -> Iterator[str]:
    """Yield what changed from ``a`` to ``b``, a column after the other."""
    floors = [floor for row in (a, b) if (floor := number(row, "noise_floor")) is not None]
    for column in SHOWN:
        before, after = number(a, column.name), number(b, column.name)
        if before is None or after is None:
            if before != after:
                yield f"{column.short} measured in one only"
        elif not _timed(column):
            if before != after:
                yield f"{column.short} {after - before:+.3g}"
        else:
            change = f"{column.short} {after / before - 1:+.1%}"
            disjoint = _disjoint(column, a, b)
            # By how much the larger exceeds the smaller is the same in either direction.
            if disjoint is None:
                yield f"{change}, without intervals to judge by"
            elif disjoint and max(before, after) / min(before, after) - 1 > max(floors, default=0.0):
                yield change if len(floors) == 2 else f"{change}, without a noise floor to judge by"


def _disjoint(column: Column, a: Row, b: Row) -> bool | None:
    """Say whether the intervals of two rows have nothing in common; None if one of them has none."""
    (a_low, a_high), (b_low, b_high) = ([number(row, end) for end in column.ends] for row in (a, b))
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return None
    return a_high < b_low or b_high < a_low
