"""Check what the workflow states against tools that share no line with it.

For three cells: the median latency against `torch.utils.benchmark` in a process of its own, in turn; k-NN
top-1 against scikit-learn's, on the saved features; sizes, memory and counts against the operating system's own. Needs
the configuration of a run after `--`, and makes there what is missing of it:

    agreement.py --folder FOLDER -- --configfile config/demo.yaml
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

ROOT = Path(__file__).parents[2]
BAR_LATENCY = BAR_MEMORY = 0.05
REPEATS = 3
SECONDS = 3
SIDE, COLOURS = 64, 3  # of the packed images
SPLITS = ("bank", "query")
# What measures, in a fresh process: nothing of this project is imported. glibc keeps freed memory, as in the workflow.
PLAIN = """
import sys, torch
from torch.utils.benchmark import Timer
path, batch, threads, what, seconds = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4], float(sys.argv[5])
torch.set_num_threads(threads)
images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
if what != "import":
    with torch.inference_mode():
        model = torch.jit.load(path).eval()
        model(images)
if what == "time":
    with torch.inference_mode():
        for _ in range(10):
            model(images)
    timer = Timer("with torch.inference_mode(): model(images)", globals=globals(), num_threads=threads)
    print(1e3 * timer.blocked_autorange(min_run_time=seconds).median)
"""
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def workflow(folder: Path, arguments: list[str], *targets: str) -> None:
    """Make files of a run."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet", "all", "--directory", str(folder)]
    subprocess.run([*command, *arguments, "--", *targets], cwd=ROOT, check=True)


def plain(model: Path, batch: int, threads: int, what: str, environment: dict[str, str]) -> tuple[str, float]:
    """Run ``PLAIN``; return what it printed, and the kernel's word on the most memory that it held, in 1e6 bytes."""
    arguments = [sys.executable, "-c", PLAIN, str(model), str(batch), str(threads), what, str(SECONDS)]
    quiet = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, **quiet, **environment})
    assert process.stdout
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{what} of {model} failed")
    return printed, usage.ru_maxrss * 1024 / 1e6


def read(folder: Path, *parts: str) -> dict[str, Any]:
    """Read a result."""
    found: dict[str, Any] = json.loads(folder.joinpath("results", *parts).read_text())
    return found


def latencies(folder: Path, arguments: list[str], cell: str) -> list[tuple[float, float]]:
    """Return what the workflow and the other one gave, turn by turn: medians in ms."""
    variant, _, batch = cell.partition("/batch")
    file = f"results/latency/cpu/{cell}.json"
    model = folder / f"results/models/{variant}/model.pt"
    turns = []
    for _ in range(REPEATS):
        workflow(folder, [*arguments, "--forcerun", "measure_latency"], file)
        timing = json.loads((folder / file).read_text())
        other = float(plain(model, int(batch), timing["threads"], "time", KEEP_MEMORY)[0])
        turns.append((timing["latency_p50_ms"], other))
    return turns


def knn_top1(folder: Path, variant: str, k: int, temperature: float) -> float:
    """Return scikit-learn's share of right answers on the saved features, in percent."""
    with (folder / "results/data/manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = {split: np.array([int(row["label"]) for row in rows if row["split"] == split]) for split in SPLITS}
    with np.load(folder / f"results/features/{variant}.npz") as features:
        bank, query = (features[split].astype(np.float64) for split in SPLITS)
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    )
    return 100 * float((classifier.fit(bank, labels["bank"]).predict(query) == labels["query"]).mean())


def row(what: str, stated: float, found: float, tolerance: float, note: str = "") -> bool:
    """Print a comparison; return whether it holds."""
    off = abs(found / stated - 1)
    holds = off <= tolerance
    print(f"{what:44} {stated:12.6g} {found:12.6g} {off:8.2%}  {'agrees' if holds else 'DIFFERS':8} {note}", flush=True)
    return holds


def main() -> None:
    """Print the comparisons; fail if one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the run is, or is made")
    parser.add_argument("--cells", nargs=3, default=["fp32/batch1", "int8-smooth/batch1", "bf16/batch4"])
    parser.add_argument("--parts", nargs="*", default=["latency", "accuracy", "system"])
    parser.add_argument("run", nargs="+", help="the run's configuration, as arguments of snakemake, after --")
    options = parser.parse_args()
    folder, variants = options.folder.resolve(), sorted({cell.split("/")[0] for cell in options.cells})
    stated = [f"results/{kind}{variant}.json" for kind in ("accuracy/", "footprint/cpu/") for variant in variants]
    workflow(folder, options.run, *stated)
    print(f"{'':44} {'stated':>12} {'found':>12} {'off':>8}")
    held = []
    if "latency" in options.parts:
        for cell in options.cells:
            turns = latencies(folder, options.run, cell)
            ours, theirs = sorted(turns, key=lambda turn: turn[1] / turn[0])[REPEATS // 2]  # the middle one
            note = ", ".join(f"{a:.2f}/{b:.2f}" for a, b in turns)
            held.append(row(f"{cell}: p50 ms", ours, theirs, BAR_LATENCY, f"in turn: {note}"))
    if "accuracy" in options.parts:
        for variant in variants:
            found = read(folder, f"accuracy/{variant}.json")
            top1 = knn_top1(folder, variant, found["k"], found["temperature"])
            held.append(row(f"{variant}: k-NN top-1", found["knn_top1"], top1, 0))
    if "system" in options.parts:
        for variant in variants:
            found, model = read(folder, f"footprint/cpu/{variant}.json"), folder / f"results/models/{variant}/model.pt"
            size = int(subprocess.check_output(["stat", "--format=%s", model])) / 1e6
            held.append(row(f"{variant}: file size, MB", found["size_mb"], size, 0))
            empty, full = (plain(model, 1, found["threads"], what, {})[1] for what in ("import", "load"))
            held.append(row(f"{variant}: peak memory, MB", found["peak_rss_mb"], full - empty, BAR_MEMORY))
        with (folder / "results/data/manifest.csv").open() as stream:
            images = sum(1 for _ in stream) - 1
        packed = int(subprocess.check_output(["stat", "--format=%s", folder / "results/data/images.npy"]))
        held.append(row("images in the manifest, and in the packed file", images, packed // (COLOURS * SIDE**2), 0))
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
