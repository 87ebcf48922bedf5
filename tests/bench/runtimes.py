"""Compare this project's files with OpenVINO, NNCF and ONNX Runtime: speed, size, and fidelity to fp32.

Each model has a process of its own, and they take turns in short blocks in a random order: as in
`dinoquant/latency.py`, ratios are taken round by round. The other runtimes come with `make peers`. Fidelity takes real
images and weights, from the folder that DINOQUANT_REAL_DATA names.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from peers import CALIBRATION, FP32, PEERS
from tqdm import tqdm

from dinoquant import checkpoint, fidelity, machine, model
from dinoquant.archive import open_archive, select
from dinoquant.config import complete, unsupported
from dinoquant.export import export, torchscript_warnings_known
from dinoquant.features import prepared
from dinoquant.latency import median_interval
from dinoquant.pack import pack
from dinoquant.recipes import RECIPES

ROOT = Path(__file__).parents[2]
BENCH = Path(__file__).parent
BATCHES = (1, 16)
REFERENCES = {"fp32": ["fp32"], "onednn": ["fp32-onednn"], "nncf": ["openvino-nncf-int8", "openvino-nncf-int8-bf16"]}
BARS = {"over_fp32": 0.22, "over_onednn": 0.45, "over_nncf": 1.0, "size": 0.28, "cosine": 0.998, "cosine_p5": 0.995}
KNN = {"k": 20, "temperature": 0.07, "confidence": 0.95, "resamples": 2000, "seed": 0}
CALIBRATION_IMAGES, COSINE_IMAGES = 64, 256


class Entry(NamedTuple):
    """A model to compare: how to run it and its bytes, or why it is missing."""

    command: list[str | Path]
    size: float = np.nan
    missing: str = ""


def variants(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return config.yaml's variants that run on a CPU, or those asked for, with the defaults of their options."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["variants"] |= yaml.safe_load(options.also)
    found = complete(config, yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text()))["variants"]
    wanted = options.variants or found.keys() - unsupported(found, ["cpu"]).keys()
    return {"fp32": found["fp32"]} | {name: found[name] for name in found if name in wanted}


def entries(
    network: Any, architecture: str, calibration: torch.Tensor, folder: Path, options: argparse.Namespace
) -> dict[str, Entry]:
    """Make every model in ``folder``; fp32 comes first. Ours always anew, as the recipes are what changes."""
    info = model.info(network, architecture, "imagenet", substitute=None, dropped=[])
    found = {}
    for name, recipe in tqdm(variants(options).items(), desc="exporting", disable=None):
        path = folder / f"{name}.pt"
        try:
            module = importlib.import_module(f"dinoquant.recipes.{RECIPES[recipe['recipe']].module}")
            export(module.quantize(network, recipe, calibration), path, name, recipe, info)
            found[name] = Entry([sys.executable, BENCH / "worker.py", "torch", path], path.stat().st_size)
        except Exception as error:  # one variant that this machine cannot run must not cost the others
            found[name] = Entry([], missing=repr(error))
    chosen = {name: peer for name, peer in PEERS.items() if name in (options.peers or PEERS)}
    if not options.python.exists():
        return found | dict.fromkeys(chosen, Entry([], missing=f"no {options.python}: `make peers` makes it"))
    np.save(folder / CALIBRATION, calibration.numpy())
    write_onnx(network, calibration[:1], folder / FP32, options.python)
    for name, (runtime, file, precision) in tqdm(chosen.items(), desc="converting", disable=None):
        path = folder / file
        if not path.exists():
            made = subprocess.run([options.python, BENCH / "peers.py", path], capture_output=True, text=True)
            if made.returncode:
                found[name] = Entry([], missing=made.stderr.strip().rpartition("\n")[2])
                continue
        size = sum(part.stat().st_size for part in {path, path.with_suffix(".bin")} if part.exists())
        found[name] = Entry([options.python, BENCH / "worker.py", runtime, path, "--precision", precision], size)
    return found


def write_onnx(network: torch.nn.Module, example: torch.Tensor, path: Path, python: Path) -> None:
    """Write the float32 model for the other runtimes, with a free batch size."""
    # PyTorch's exporter looks at its result with `onnx`, which only the peers' environment has.
    sys.path += map(str, python.parents[1].glob("lib/python*/site-packages"))
    names = {"input_names": ["images"], "output_names": ["features"]}
    axes = {name: {0: "batch"} for name in ("images", "features")}
    with warnings.catch_warnings(), torchscript_warnings_known():
        warnings.filterwarnings("ignore", "You are using the legacy", DeprecationWarning)
        # `dynamo=True` would take one more package.
        torch.onnx.export(network, (example,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)


def blocks(models: dict[str, Entry], batch: int, start: int, options: argparse.Namespace) -> pd.DataFrame:
    """Start every model; return the ms per image of each (column) in each round (row)."""
    workers, calls = {}, {}
    for name, entry in models.items():
        if not entry.missing:
            command = [*entry.command, "--batch", str(batch), "--threads", str(options.threads)]
            workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            calls[name] = max(1, round(1e3 * options.block_seconds / json.loads(workers[name].stdout.readline())))

    def block(name: str) -> float:
        print(calls[name], file=workers[name].stdin, flush=True)
        return float(np.median(json.loads(workers[name].stdout.readline()))) / batch

    rng = np.random.default_rng(start)
    progress = tqdm(range(max(1, options.rounds // options.starts)), desc=f"batch {batch}", disable=None)
    rounds = [{name: block(name) for name in rng.permutation(list(workers))} for _ in progress]
    for worker in workers.values():
        worker.communicate()  # the end of its input ends it
    return pd.DataFrame(rounds, columns=list(workers))


def speed(folder: Path, options: argparse.Namespace) -> None:
    """Time everything with seeded weights: speed and size do not depend on their values."""
    architecture = "vit_small_patch16_224"
    network = model.seeded(architecture, None, 0)
    calibration = torch.randn(CALIBRATION_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    models = entries(network, architecture, calibration, folder, options)
    for batch in BATCHES:
        # PyTorch's speed differs by a third from process to process: with luck, malloc keeps its pages between calls.
        times = pd.concat([blocks(models, batch, start, options) for start in range(options.starts)], ignore_index=True)
        table = pd.DataFrame({"ms": times.median()})
        for reference, names in REFERENCES.items():
            if present := [name for name in names if name in times]:
                ratios = times.div(times[times[present].median().idxmin()], axis=0)
                table[f"over_{reference}"] = ratios.median()
                ends = [median_interval(ratios[[name]].to_numpy(), 0) for name in times]  # None for too few rounds
                table[[f"over_{reference}_low", f"over_{reference}_high"]] = np.array(ends, dtype=float)
        table = table.reindex(models)
        table["size"] = [entry.size / models["fp32"].size for entry in models.values()]
        table["missing"] = [entry.missing for entry in models.values()]
        how = f"{options.threads} threads, {options.rounds} rounds, {options.starts} starts, ms per image"
        show(table, f"speed-batch{batch}", f"{architecture}, {how}", options)


def pack_real(data: Path, folder: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Write each split's real images as models take them, float32, to SPLIT.npy; return the labels of each split."""
    info = {"image_size": 224, "mean": model.IMAGENET_DEFAULT_MEAN, "std": model.IMAGENET_DEFAULT_STD}
    with open_archive(data / "tiny-imagenet-200.subset.zip") as archive:
        per_class = options.knn_bank // len(archive.wnids)
        selection = select(archive, per_class, max(COSINE_IMAGES, options.queries), CALIBRATION_IMAGES, 0)
        manifest = pd.DataFrame(pack(archive, selection, folder / "images.npy", "error").rows)
    images = np.load(folder / "images.npy", mmap_mode="r")
    for split, rows in manifest.groupby("split"):
        ready = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", np.float32, (len(rows), 3, 224, 224))
        for place, batch in enumerate(prepared(images, rows["index"].to_numpy(), 16, info, "cpu")):
            ready[16 * place : 16 * place + len(batch)] = batch.numpy()
    return {split: rows["label"].to_numpy() for split, rows in manifest.groupby("split")}


def trust(data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Compare features of real images by trained weights with fp32's: cosine, and k-NN where it was asked for."""
    architecture = "vit_tiny_patch16_224"
    network = model.build(architecture)
    checkpoint.fit(network, checkpoint.load_state_dict(data / f"{architecture}.imagenet1k.pth"))
    labels = pack_real(data, folder, options)
    models = entries(network, architecture, torch.from_numpy(np.load(folder / CALIBRATION)), folder, options)
    reference: dict[str, np.ndarray] = {}
    table = pd.DataFrame({"cosine": np.nan, "cosine_p5": np.nan}, index=list(models))
    for name, entry in tqdm(models.items(), desc="features", disable=None):
        if entry.missing:
            continue
        found = {}
        for split in labels.keys() - {"calibration"}:
            files = [folder / f"{split}.npy", folder / "features.npy"]
            command = [*entry.command, "--batch", "16", "--threads", str(options.threads), "--features", *files]
            subprocess.run(command, check=True)
            found[split] = np.load(files[1])
        reference = reference or found
        cosines = fidelity.cosine(*(each["query"][:COSINE_IMAGES] for each in (found, reference)))
        table.loc[name, ["cosine", "cosine_p5"]] = cosines.mean(), np.percentile(cosines, 5)
        if "bank" in labels:
            result = fidelity.evaluate(found, reference, labels, KNN)
            for key in ("top1", "agreement", "top1_drop", "top1_drop_ci_low", "top1_drop_ci_high"):
                table.loc[name, f"knn_{key.replace('_ci', '')}"] = result[f"knn_{key}"]
    table["missing"] = [entry.missing for entry in models.values()]
    counts = ", ".join(f"{split} {len(values)}" for split, values in labels.items())
    show(table, "fidelity", f"{architecture}, cosine over {COSINE_IMAGES} real images; {counts}", options)


def show(table: pd.DataFrame, name: str, title: str, options: argparse.Namespace) -> None:
    """Print a table with the bars that each row misses, and keep it as CSV if that was asked for."""
    bars = {name: bar for name, bar in BARS.items() if name in table}
    met = [table[name] >= bar if name.startswith("cosine") else table[name] <= bar for name, bar in bars.items()]
    missed = [", ".join(np.array(list(bars))[~row]) for row in np.array(met).T]
    table["misses"] = [reason or names or "none" for reason, names in zip(table["missing"], missed, strict=True)]
    printed = pd.DataFrame(index=table.index)
    for column in table.select_dtypes("number"):
        if not column.endswith(("_low", "_high")):
            printed[column] = table[column].map("{:#.4g}".format)
            if f"{column}_low" in table:
                ends = zip(table[f"{column}_low"], table[f"{column}_high"], strict=True)
                printed[column] += [f" [{low:.3g}, {high:.3g}]" for low, high in ends]
    printed = printed.where(table[printed.columns].notna(), "-")
    printed["misses"] = table["misses"].mask(table["missing"] != "", "missing")
    print(f"\n{name}: {title}", f"bars: {bars}", printed.to_string(), sep="\n", flush=True)
    for reason, rows in table[table["missing"] != ""].groupby("missing"):
        print(f"missing: {', '.join(rows.index)}: {reason}")
    if options.csv:
        options.csv.mkdir(parents=True, exist_ok=True)
        table.drop(columns="missing").to_csv(options.csv / f"{name}.csv", index_label="name")


def main() -> None:
    """Print the machine and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--variants", **names, help="of config.yaml; all that run on a CPU by default")
    parser.add_argument("--also", default="{}", help="more variants, as YAML: '{NAME: {recipe: RECIPE}}'")
    parser.add_argument("--peers", **names, help=f"of {', '.join(PEERS)}; all by default")
    parser.add_argument("--parts", **names, default=["speed", "fidelity"], help="speed,fidelity")
    parser.add_argument("--threads", type=int, default=min(2, machine.compute_threads()))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--starts", type=int, default=3, help="times that each process is started anew for its rounds")
    parser.add_argument("--block-seconds", type=float, default=0.3)
    parser.add_argument("--knn-bank", type=int, default=0, help="train images that vote; 0 leaves k-NN out")
    parser.add_argument("--queries", type=int, default=0, help="validation images that k-NN classifies")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers/bin/python")
    parser.add_argument("--work", type=Path, help="keep the models here, and use those of the peers that are here")
    parser.add_argument("--csv", type=Path, help="write the tables to this folder, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine.describe()['cpu']}; torch {version('torch')}", flush=True)
    if options.python.exists():
        subprocess.run([options.python, BENCH / "peers.py"], check=True)
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.parts:
            folder = (options.work or Path(temporary)) / part
            folder.mkdir(parents=True, exist_ok=True)
            if part == "speed":
                speed(folder, options)
            elif data := os.environ.get("DINOQUANT_REAL_DATA"):
                trust(Path(data), folder, options)
            else:
                print("\nfidelity: not measured, DINOQUANT_REAL_DATA names no folder of real images and weights")


if __name__ == "__main__":
    main()
