"""Print how well complete latency runs repeat, and whether their verdicts tell which rows a second run confirms.

A run is the workflow's own, `snakemake --forcerun measure_latency`, of a few cells by as many processes and rounds as
`config/config.yaml` has, but with a smaller model and short blocks; or of what `--cells` and `--latency` ask for. Some
runs are made on the machine as it is, others beside something that disturbs them, each of `--disturbances` in turn: a
busy core, memory traffic, a process that works now and then. What each run took is printed. A row is confirmed if its
speed-up is within 5 % of the median of the other undisturbed runs. Runs add up in `--folder`, so that they can be made
a few at a time; `--quiet 0 --disturbed 0` prints the tables of those that are there.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from dinoquant.files import read_json
from dinoquant.measure.verdict import CONFIRMED
from dinoquant.report.summary import machine_states, verdict

ROOT = Path(__file__).parents[2]
CELLS = ["fp32/batch1", "int8-static/batch1", "int8-per-token/batch4", "bf16/batch1", "bf16/batch4"]
DISTURBANCES = {
    "busy core": "while True: pass",
    "memory traffic": "block = bytearray(1 << 28)\nwhile True: bytes(block)",
    "stop and go": """
import random, time
while True:
    end = time.monotonic() + random.uniform(0.2, 2)
    while time.monotonic() < end: pass
    time.sleep(random.uniform(0.2, 2))
""",
}
OK_CONFIRMED, UNCONFIRMED_MARKED, QUIET_OK = 0.9, 0.8, 0.7  # at least


def snakemake(folder: Path, config: Sequence[str], *arguments: str) -> None:
    """Run the workflow in a folder."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--directory", str(folder), *config]
    subprocess.run([*command, "--quiet", "all", *arguments], cwd=ROOT, check=True)


@contextmanager
def beside(program: str | None) -> Iterator[None]:
    """Run a Python program meanwhile, if there is one."""
    process = subprocess.Popen([sys.executable, "-c", program]) if program else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def run(folder: Path, config: Sequence[str], cells: Sequence[str], kept: Path) -> None:
    """Time all cells once and keep the results."""
    paths = {cell: f"results/latency/cpu/{cell}.json" for cell in cells}
    snakemake(folder, config, "--forcerun", "measure_latency", "--", *paths.values())
    for cell, path in paths.items():
        (kept / cell).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / path, kept / f"{cell}.json")


def read(folder: Path) -> pd.DataFrame:
    """Return a row per cell of each run in `folder/{kind}/{run}/`, with the status that its summary would give."""
    rows = []
    for made in sorted(folder.glob("*/*")):
        files = {f"{path.parent.name}/{path.stem}": read_json(path) for path in sorted(made.glob("*/batch*.json"))}
        timings = {cell: timing for cell, timing in files.items() if "unsupported" not in timing}
        states = machine_states(timings.values())
        about = {"kind": made.parent.name, "run": made.name}
        rows += [{**timing, **verdict(timing, states), **about, "cell": cell} for cell, timing in timings.items()]
    return pd.DataFrame(rows)


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what the other quiet runs found for their cell, and whether that confirms them."""

    def others(row: pd.Series) -> float:
        same = (rows["cell"] == row["cell"]) & (rows["kind"] == "quiet") & (rows.index != row.name)
        return float(rows.loc[same, "speedup"].median())

    rows = rows.assign(others=rows.apply(others, axis=1))
    return rows.assign(confirmed=(rows["speedup"] / rows["others"] - 1).abs() <= CONFIRMED)


def per_cell(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per kind and cell: runs, rounds, median and spread of its speed-ups, verdicts, confirmed rows."""
    rows = rows.assign(width=(rows["speedup_ci_high"] - rows["speedup_ci_low"]) / rows["speedup"])
    groups = rows.groupby(["kind", "cell"], sort=False)
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "rounds": groups["rounds"].mean(),
            "p50_ms": groups["latency_p50_ms"].median(),
            "speedup": groups["speedup"].median(),
            "spread": groups["speedup"].agg(lambda ratios: (ratios.max() - ratios.min()) / ratios.median()),
            "width": groups["width"].median(),
            "confirmed": groups["confirmed"].sum(),
            "verdicts": groups["status"].agg(
                lambda statuses: ", ".join(f"{count} {status}" for status, count in statuses.value_counts().items())
            ),
        }
    )


def calibration(rows: pd.DataFrame) -> list[tuple[str, pd.Series, float]]:
    """Return each bar: what is counted, for which rows it is so, and the least share of them."""
    ok = rows["status"] == "ok"
    return [
        ("ok rows that the other runs confirm", rows.loc[ok, "confirmed"], OK_CONFIRMED),
        ("unconfirmed rows that are marked", ~ok[~rows["confirmed"]], UNCONFIRMED_MARKED),
        ("rows of quiet runs that are ok", ok[rows["kind"] == "quiet"], QUIET_OK),
    ]


def main() -> None:
    """Make the runs that were asked for, and print the tables; fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", type=int, default=5, help="runs to add on the machine as it is")
    parser.add_argument("--disturbed", type=int, default=5, help="runs to add beside something else")
    parser.add_argument("--disturbances", nargs="+", default=list(DISTURBANCES), choices=DISTURBANCES, metavar="NAME")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="VARIANT/BATCH", help="what to time")
    parser.add_argument("--config", type=Path, default=ROOT / "config/demo.yaml")
    parser.add_argument("--architecture", default="vit_tiny_patch16_224", help="the model, of those that timm names")
    short = "{processes: 12, rounds: 48, block_seconds: 0.1, warmup_seconds: 0.3}"
    parser.add_argument("--latency", default=short, help=f"keys of the config's latency that differ, as YAML: {short}")
    parser.add_argument("--folder", type=Path, help="where models and runs are kept; a temporary folder by default")
    options = parser.parse_args()
    overrides = [f"latency={options.latency}", f"model={{architecture: {options.architecture}}}"]
    config = ["--configfile", str(options.config), "--config", *overrides]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        names = [options.disturbances[number % len(options.disturbances)] for number in range(options.disturbed)]
        beside_what = [None] * options.quiet + names
        if beside_what:
            models = {f"results/models/{cell.split('/')[0]}/model.pt" for cell in [*options.cells, "fp32/"]}
            snakemake(folder, config, "--", *sorted(models))
        for name in beside_what:
            kind, start = folder / "runs" / ("disturbed" if name else "quiet"), time.monotonic()
            with beside(DISTURBANCES[name] if name else None):
                run(folder, config, options.cells, kind / f"{len(list(kind.glob('*'))):03}")
            print(f"a run beside {name or 'nothing'}: {time.monotonic() - start:.0f} s", flush=True)
        rows = judged(read(folder / "runs"))
        print(f"{per_cell(rows).to_string(float_format='%.4g')}\n")
        missed = False
        for what, counted, bar in calibration(rows):
            share = counted.mean() if len(counted) else 1.0
            missed |= share < bar
            result = "MISSED" if share < bar else "met" if len(counted) else "met, as there are none"
            print(f"{what:38}{counted.sum():4} of {len(counted):3}   {share:6.1%}   at least {bar:.0%}: {result}")
        if missed:
            sys.exit(1)


if __name__ == "__main__":
    main()
