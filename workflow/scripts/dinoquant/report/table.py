"""`results/summary.csv` as a table for the terminal. The Snakefile imports it: light libraries only."""

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from dinoquant.files import read_rows
from dinoquant.report.columns import COLUMNS, Row, number

WIDTH = 120
LONGEST_NAME = 30
SHOWN = [column for column in COLUMNS if column.short]
MARKS = {"ok": " ", "wide": "~", "disturbed": "!", "saturates": "#"}  # behind the speed-up
MEANINGS = {
    "wide": "a second run may differ by more than 5 %: raise latency.rounds and latency.processes",
    "disturbed": "something else moved the speed-up: delete its file in results/latency and run again",
    "saturates": "its int8 sums overflow on this processor, which spoils the features: not recommended",
}


def render(csv_path: str | Path) -> str:
    """Return the table as lines of at most 120 characters, one per row of the summary, in its order.

    An unsupported variant has its reason in the place of the measurements. Below stand what the marks mean, where there
    are some, and what else the machine did.
    """
    rows = read_rows(csv_path)
    flagged = [row for row in rows if row["status"] in MARKS and row["status"] != "ok"]
    titles = [column.short_title + " " * bool(flagged and column.name == "speedup") for column in SHOWN]
    lines = aligned([["variant", "device", "batch", *titles], *(_cells(row, bool(flagged)) for row in rows)])
    for line, row in enumerate(rows, start=1):
        if row["status"] == "unsupported":
            lines[line] = f"{lines[line]}  {row['status']}: {row['reason']}"
    statuses = [row["status"] for row in flagged]
    lines += [f"{MARKS[status]} {status}: {MEANINGS[status]}" for status in MEANINGS if status in statuses]
    return "\n".join(_cut(line, WIDTH) for line in [*lines, *machine_lines(rows)])


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


def machine_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line on what else each machine did while its rows were timed, as far as that is known."""
    lines = []
    for node in dict.fromkeys(row.get("node", "") for row in rows if row.get("foreign_processors")):
        timed = [row for row in rows if row.get("node") == node]
        foreign, stolen, slow = (
            [value for row in timed if (value := number(row, name)) is not None]
            for name in ("foreign_processors", "stolen_processors", "rounds_set_aside")
        )
        lines.append(
            f"{node} meanwhile: other processes had {fmean(foreign):.2f} processors (at most {max(foreign):.2f}), "
            f"other guests {fmean(stolen):.2f} ({max(stolen):.2f}); {fmean(slow):.0%} of rounds were slow: not counted"
        )
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
