"""Print what the machinery of the workflow costs: wall time of the demo outside all real work, and of a redraw.

Every script logs when its real work (download, pack, quantize, measure, extract, draw, ...) began and ended. The wall
time of a run that no such span covers is what Snakemake, imports and start-up take.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
SPAN = re.compile(r"DEBUG span (\w+) ([\d.]+) ([\d.]+)$", re.MULTILINE)
WORK = {"download", "generate", "pack", "quantize", "extract", "measure"}  # not checking, drawing and writing
BAR_OVERHEAD = 0.25
BAR_REDRAW_SECONDS = 20
BAR_NOTHING_SECONDS = 5


def snakemake(folder: Path, *arguments: str) -> float:
    """Run the demo in a folder and return the seconds it took."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--directory", folder, *arguments]
    start = time.time()
    subprocess.run(
        [*command, "--configfile", "config/demo.yaml"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.time() - start


def spans(folder: Path) -> pd.DataFrame:
    """Return the spans of all logs: rule, name, start, end."""
    rows = [
        (log.relative_to(folder / "logs").parts[0].removesuffix(".log"), name, float(start), float(end))
        for log in (folder / "logs").rglob("*.log")
        for name, start, end in SPAN.findall(log.read_text())
    ]
    return pd.DataFrame(rows, columns=["rule", "name", "start", "end"]).sort_values("start")


def covered(table: pd.DataFrame) -> float:
    """Return the seconds that at least one span covers."""
    total, reached = 0.0, float("-inf")
    for start, end in zip(table["start"], table["end"], strict=True):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def main() -> None:
    """Run the demo in a temporary folder, then again, then with another palette."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wall = snakemake(folder)
        table = spans(folder)
        nothing = snakemake(folder)
        redraw = snakemake(folder, "--config", "figures={palette: deep}")
    table["seconds"] = table["end"] - table["start"]
    print(table.groupby(["rule", "name"])["seconds"].agg(["count", "sum"]).round(1).to_string(), "\n")
    work = covered(table[table["name"].isin(WORK)])
    overhead = 1 - work / wall
    results = [
        ("demo, wall, s", wall, 360),
        ("outside measuring, extracting, quantizing, share of wall", overhead, BAR_OVERHEAD),
        ("demo again, nothing to do, s", nothing, BAR_NOTHING_SECONDS),
        ("another palette, s", redraw, BAR_REDRAW_SECONDS),
    ]
    table = pd.DataFrame(results, columns=["what", "measured", "bar"])
    table["met"] = table["measured"] < table["bar"]
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()
