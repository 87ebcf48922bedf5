"""`results/summary.csv` as a table for the terminal. The Snakefile imports it: light libraries only."""

from collections.abc import Collection, Sequence
from pathlib import Path

from tabulate import tabulate

from dinoquant.files import read_rows
from dinoquant.report.columns import COLUMNS, Row

WIDTH = 120
LONGEST_NAME = 30
SHOWN = [column for column in COLUMNS if column.short]
MARKS = {"ok": " ", "noisy": "~", "unstable": "!", "saturates": "#"}  # behind the speed-up; a footnote has the reason


def render(csv_path: str | Path) -> str:
    """Return the table as lines of at most 120 characters, one per row of the summary, in its order.

    An unsupported variant has its reason in the place of the measurements. Below stands a line for each row whose
    timing is noisy or unstable, or whose int8 sums saturate, with the reason.
    """
    rows = read_rows(csv_path)
    flagged = [row for row in rows if row["status"] in MARKS and row["status"] != "ok"]
    titles = [column.short_title + " " * bool(flagged and column.name == "speedup") for column in SHOWN]
    lines = aligned([["variant", "device", "batch", *titles], *(_cells(row, bool(flagged)) for row in rows)])
    for number, row in enumerate(rows, start=1):
        if row["status"] == "unsupported":
            lines[number] = f"{lines[number]}  {row['status']}: {row['reason']}"
    return "\n".join(_cut(line, WIDTH) for line in [*lines, *map(_footnote, flagged)])


def aligned(rows: Sequence[Sequence[str]], left: Collection[str] = ("variant", "device")) -> list[str]:
    """Return the rows, the first being the header, as lines; columns not headed by ``left`` are aligned to the right.

    The header is a row as any other to tabulate, which would widen the columns by two for one that it knows of.
    """
    sides = ["left" if title in left else "right" for title in rows[0]]
    text = tabulate(rows, tablefmt="plain", disable_numparse=True, preserve_whitespace=True, colalign=sides)
    return [line.rstrip() for line in text.splitlines()]


def _cells(row: Row, marked: bool) -> list[str]:
    """Return a row's cells, empty where an unsupported variant has no measurements."""
    cells = [_cut(row["variant"], LONGEST_NAME), row["device"], row["batch_size"]]
    for column in SHOWN:
        if row["status"] == "unsupported":
            cells.append("")
            continue
        text = column.text(row) or "-"
        if column.name == "speedup":
            interval = column.interval_text(row)
            text += (f" [{', '.join(interval)}]" if interval else "") + (MARKS[row["status"]] if marked else "")
        cells.append(text)
    return cells


def _footnote(row: Row) -> str:
    mark = MARKS[row["status"]]
    status = row["status"] if row["status"] == "saturates" else f"is {row['status']}"
    return f"{mark} {row['variant']} on {row['device']}, batch {row['batch_size']}, {status}: {row['reason']}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
