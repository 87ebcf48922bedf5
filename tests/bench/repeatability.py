"""Print how well complete latency runs repeat: the spread of the speed-ups, the worth of intervals and verdicts.

A run is the workflow's own, `snakemake --forcerun measure_latency`, of all cells of the demo unless `--cells` names
some (`bf16/batch1`). The bars are for the rows that a summary calls ok. `--burn` runs a process beside it that keeps
one core busy: every row has to be flagged then. Runs add up in `--folder`, so that they can be made a few at a time;
`--runs 0` prints the table of those that are there.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from dinoquant.measure.intervals import statistics
from dinoquant.report.summary import fastest_probes, verdict

ROOT = Path(__file__).parents[2]
BAR_SPREAD = 0.03
BAR_COVERED = 0.95
CONTROL = "fp32/"


def snakemake(folder: Path, config: list[str], *arguments: str) -> str:
    """Run the workflow in a folder and return its standard output."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--directory", folder, *config]
    done = subprocess.run([*command, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def cells(folder: Path, config: list[str]) -> list[str]:
    """Return what is timed on the CPU, as `variant/batchN`."""
    return re.findall(r"^results/latency/cpu/(\S+)\.json", snakemake(folder, config, "--summary"), re.MULTILINE)


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Keep one core busy meanwhile."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run(folder: Path, config: list[str], wanted: list[str], kept: Path) -> None:
    """Time all wanted cells once and keep the results."""
    targets = [f"results/latency/cpu/{cell}.json" for cell in wanted]
    snakemake(folder, config, "--quiet", "all", "--forcerun", "measure_latency", "--", *targets)
    for cell in wanted:
        (kept / cell).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / f"results/latency/cpu/{cell}.json", kept / f"{cell}.json")


def read(kept: Path) -> pd.DataFrame:
    """Return a row per run and cell: statistics anew from the samples, the status that a summary of all would give."""
    rows = []
    for path in sorted(kept.glob("*/*/*.json")):
        timing = json.loads(path.read_text())
        timing |= statistics(timing["samples_ms"], timing["process"], timing["batch_size"], timing["protocol"]["seed"])
        rows.append({"run": path.parts[-3], "cell": f"{path.parts[-2]}/{path.stem}", **timing})
    fastest = fastest_probes(rows)
    return pd.DataFrame([{**row, **verdict(row, fastest)} for row in rows])


def per_cell(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell: runs, median and spread of its speed-ups, intervals that cover that median, verdicts."""
    groups = rows.groupby("cell", sort=False)
    middle = groups["speedup"].transform("median")
    rows = rows.assign(covered=(rows["speedup_ci_low"] <= middle) & (middle <= rows["speedup_ci_high"]))
    rows["width"] = (rows["speedup_ci_high"] - rows["speedup_ci_low"]) / middle
    groups = rows.groupby("cell", sort=False)
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "p50_ms": groups["latency_p50_ms"].median(),
            "p50_spread": groups["latency_p50_ms"].agg(lambda p50: (p50.max() - p50.min()) / p50.median()),
            "speedup": groups["speedup"].median(),
            "spread": groups["speedup"].agg(lambda ratios: (ratios.max() - ratios.min()) / ratios.median()),
            "width": groups["width"].median(),
            "covered": groups["covered"].sum(),
            "verdicts": groups["status"].agg(
                lambda found: ", ".join(f"{n} {v}" for v, n in found.value_counts().items())
            ),
        }
    )


def main() -> None:
    """Make the runs that were asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="complete runs to add")
    parser.add_argument("--cells", nargs="*", help="only these, such as bf16/batch1")
    parser.add_argument("--burn", action="store_true", help="beside a process that keeps one core busy")
    parser.add_argument("--config", type=Path, default=ROOT / "config/demo.yaml")
    parser.add_argument("--latency", default="{}", help="keys of its latency that differ, as YAML: '{processes: 8}'")
    parser.add_argument("--folder", type=Path, help="where models and runs are kept; a temporary folder by default")
    options = parser.parse_args()
    config = ["--configfile", str(options.config), "--config", f"latency={options.latency}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        kept = folder / ("disturbed" if options.burn else "quiet")
        wanted = options.cells or cells(folder, config)
        if options.runs:
            models = {f"results/models/{cell.split('/')[0]}/model.pt" for cell in wanted}
            snakemake(folder, config, "--quiet", "all", "--", *sorted(models))
        for _ in range(options.runs):
            with busy_core(options.burn):
                run(folder, config, wanted, kept / f"{len(list(kept.glob('*'))):03}")
        rows = read(kept)
        print(f"all rows\n{per_cell(rows).to_string(float_format='%.4g')}\n")
        if options.burn:
            flagged = (rows["status"] != "ok").sum()
            print(f"flagged beside a busy core: {flagged} of {len(rows)}")
            return
        citable = rows[rows["status"] == "ok"]
        if citable.empty:
            sys.exit("no row is ok: the machine was too busy")
        table = per_cell(citable)
        print(f"rows that are ok\n{table.to_string(float_format='%.4g')}\n")
        controls = citable[citable["cell"].str.startswith(CONTROL)]
        fair = ((controls["speedup_ci_low"] <= 1) & (controls["speedup_ci_high"] >= 1)).mean()
        bars = [
            ("largest spread of a cell's speed-ups", table["spread"].max(), BAR_SPREAD, True),
            ("intervals that cover their cell's median", table["covered"].sum() / len(citable), BAR_COVERED, False),
            ("A/A controls that cover 1", fair, BAR_COVERED, False),
        ]
        print(f"{len(citable)} of {len(rows)} rows are ok, of {len(table)} cells; {len(controls)} of them are controls")
        for what, found, bar, at_most in bars:
            met = "met" if (found <= bar if at_most else found >= bar) else "MISSED"
            print(f"{what:42} {found:6.1%}   {'at most' if at_most else 'at least'} {bar:.0%}: {met}")


if __name__ == "__main__":
    main()
