"""`results/summary.csv` as a table for the terminal. Standard library only: the Snakefile imports it."""

from collections.abc import Mapping
from pathlib import Path

from dinoquant.files import read_rows

WIDTH = 120
LONGEST_NAME = 30
HEADER = ["variant", "device", "batch", "p50 ms", "speed-up", "MB", "k-NN %", "cosine"]
NAMING_CELLS = 3  # which say what a row is about, also where nothing was measured
LEFT_ALIGNED = {"variant", "device"}
MARKS = {"ok": " ", "noisy": "~", "unstable": "!"}  # behind the speed-up; a footnote has the reason


def render(csv_path: str | Path) -> str:
    """Return the table as lines of at most 120 characters, one per row of the summary, in its order.

    Below it stands a line for each row whose timing is noisy or unstable, with what was seen.
    """
    rows = read_rows(csv_path)
    flagged = [row for row in rows if row["status"] in MARKS and row["status"] != "ok"]
    header = [f"{name} " if name == "speed-up" and flagged else name for name in HEADER]
    lines = [header, *(_cells(row, bool(flagged)) for row in rows)]
    measured = [line for line in lines if len(line) == len(HEADER)]
    widths = [max(len(line[i]) for line in (lines if i < NAMING_CELLS else measured)) for i in range(len(HEADER))]
    return "\n".join([*(_line(line, widths) for line in lines), *map(_footnote, flagged)])


def _cells(row: Mapping[str, str], marked: bool) -> list[str]:
    """Return a row's cells; an unsupported variant has its reason in the place of the measurements."""
    start = [_cut(row["variant"], LONGEST_NAME), row["device"], row["batch_size"]]
    if row["status"] == "unsupported":
        return [*start, f"{row['status']}: {row['reason']}"]
    return [
        *start,
        _number(row["latency_p50_ms"], ".2f"),
        _with_interval(row) + (MARKS[row["status"]] if marked else ""),
        _number(row["size_mb"], ".1f"),
        _number(row["knn_top1"], ".2f"),
        _number(row["cosine_mean"], ".4f"),
    ]


def _footnote(row: Mapping[str, str]) -> str:
    name = f"{row['variant']} on {row['device']}, batch {row['batch_size']}"
    return _cut(f"{MARKS[row['status']]} {name}, is {row['status']}: {row['reason']}", WIDTH)


def _line(cells: list[str], widths: list[int]) -> str:
    aligned = (
        cell.ljust(width) if name in LEFT_ALIGNED else cell.rjust(width)
        for name, cell, width in zip(HEADER, cells, widths, strict=False)  # a reason is a row's last cell
    )
    return _cut("  ".join(aligned), WIDTH)


def _with_interval(row: Mapping[str, str]) -> str:
    speedup = _number(row["speedup"], ".2f")
    if not row["speedup_ci_low"]:
        return speedup
    return f"{speedup} [{_number(row['speedup_ci_low'], '.2f')}, {_number(row['speedup_ci_high'], '.2f')}]"


def _number(text: str, form: str) -> str:
    return format(float(text), form) if text else "-"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
