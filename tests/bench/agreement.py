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
REPEATS = 5
SECONDS = 3
SIDE, COLOURS = 64, 3  # of the packed images
SPLITS = ("bank", "query")
# What measures, in a fresh process: nothing of this project is imported.
PLAIN = """
import os, sys, torch
from torch.utils.benchmark import Timer
path, batch, threads, seconds = sys.argv[1], *map(int, sys.argv[2:5])
torch.set_num_threads(threads)
images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
print("imported", flush=True)
sys.stdin.readline()
with torch.inference_mode():
    model = torch.jit.load(path).eval()
    model(images)
    if seconds:
        for _ in range(10):
            model(images)
if seconds:
    timer = Timer("with torch.inference_mode(): model(images)", globals=globals(), num_threads=threads)
    print(1e3 * timer.blocked_autorange(min_run_time=seconds).median, flush=True)
os._exit(0)  # the interpreter's shutdown takes up to 120 MB, which no user of the model meets
"""
# As in the workflow, glibc keeps freed memory while something is timed.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def workflow(folder: Path, arguments: list[str], *targets: str) -> None:
    """Make files of a run."""
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet", "all", "--directory", str(folder)]
    subprocess.run([*command, *arguments, "--", *targets], cwd=ROOT, check=True)


def plain(model: Path, batch: int, threads: int, seconds: int = 0) -> tuple[float | None, float]:
    """Time a model, if ``seconds`` says how long; return the median ms, and the peak memory over the imports' in MB.

    Memory is what ps says after the imports, and what the kernel says of the process after its end.
    """
    arguments = [sys.executable, "-c", PLAIN, str(model), str(batch), str(threads), str(seconds)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment |= KEEP_MEMORY if seconds else {}
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "imported\n"
    imported = int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(process.pid)]))
    process.stdin.write("go\n")
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{model} failed")
    return float(printed) if seconds else None, (usage.ru_maxrss - imported) * 1024 / 1e6


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
        other, _ = plain(model, int(batch), timing["threads"], SECONDS)
        assert other
        turns.append((timing["latency_p50_ms"], other))
    return turns


def memory(folder: Path, arguments: list[str], variant: str) -> tuple[list[float], list[float]]:
    """Return the peaks over the imports in MB, of the workflow and of the other one."""
    file, model = f"results/footprint/cpu/{variant}.json", folder / f"results/models/{variant}/model.pt"
    ours, theirs = [], []
    for _ in range(REPEATS):
        workflow(folder, [*arguments, "--forcerun", "measure_footprint"], file)
        stated = json.loads((folder / file).read_text())
        ours.append(stated["peak_rss_mb"])
        theirs.append(plain(model, 1, stated["threads"])[1])
    return ours, theirs


def knn_hits(folder: Path, variant: str, k: int, temperature: float) -> int:
    """Return how many queries scikit-learn classifies rightly by the saved features."""
    with (folder / "results/data/manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = {split: np.array([int(row["label"]) for row in rows if row["split"] == split]) for split in SPLITS}
    with np.load(folder / f"results/features/{variant}.npz") as features:
        bank, query = (features[split].astype(np.float64) for split in SPLITS)
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    )
    return int((classifier.fit(bank, labels["bank"]).predict(query) == labels["query"]).sum())


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
    needed = [f"results/{kind}{variant}.json" for kind in ("accuracy/", "footprint/cpu/") for variant in variants]
    workflow(folder, options.run, *needed)
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
            hits = knn_hits(folder, variant, found["k"], found["temperature"])
            stated = round(found["knn_top1"] * found["queries"] / 100)
            held.append(row(f"{variant}: k-NN hits of {found['queries']}", stated, hits, 0))
    if "system" in options.parts:
        for variant in variants:
            found, model = read(folder, f"footprint/cpu/{variant}.json"), folder / f"results/models/{variant}/model.pt"
            size = int(subprocess.check_output(["stat", "--format=%s", model])) / 1e6
            held.append(row(f"{variant}: file size, MB", found["size_mb"], size, 0))
            ours, theirs = memory(folder, options.run, variant)
            note = f"in turn: {', '.join(f'{a:.0f}/{b:.0f}' for a, b in zip(ours, theirs, strict=True))}"
            # Whether a freed block is used again depends on which thread is first: fp32's peak differs by process.
            held.append(row(f"{variant}: lowest peak memory, MB", min(ours), min(theirs), BAR_MEMORY, note))
        with (folder / "results/data/manifest.csv").open() as stream:
            images = sum(1 for _ in stream) - 1
        packed = int(subprocess.check_output(["stat", "--format=%s", folder / "results/data/images.npy"]))
        held.append(row("images in the manifest, and in the packed file", images, packed // (COLOURS * SIDE**2), 0))
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
