"""Compare this project's files with other runtimes' on this machine: speed, size, and fidelity to fp32.

The workflow does so too, each variant beside fp32. Here all take turns in the same rounds, each in a process of its
own, so that any two can be compared; and there are bars. The other runtimes come with `make peers`. Fidelity takes real
images and weights, from the folder that DINOQUANT_REAL_DATA names.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from dinoquant import machine
from dinoquant.config import complete
from dinoquant.data.layout import open_dataset
from dinoquant.data.pack import pack
from dinoquant.data.preprocess import calibration_images
from dinoquant.data.selection import select
from dinoquant.judge import fidelity
from dinoquant.judge.features import extract
from dinoquant.measure.rounds import calls_per_block, warm_up
from dinoquant.measure.stopping import interval
from dinoquant.network import architecture, checkpoint
from dinoquant.network.card import TORCHSCRIPT_SUFFIX
from dinoquant.network.export import export
from dinoquant.recipes.base import load_recipe
from dinoquant.runtimes import RUNTIMES, TORCHSCRIPT, files, missing, onnx_file, recipe_of
from dinoquant.runtimes.convert import convert
from dinoquant.runtimes.opened import RemoteModel
from dinoquant.runtimes.torchscript import random_images

ROOT = Path(__file__).parents[2]
BATCHES = (1, 16)
REFERENCES = {
    "fp32": ["fp32"],
    "onednn": ["fp32-onednn"],
    "nncf": ["openvino-nncf-int8", "openvino-nncf-int8-bf16"],
    "smooth": ["int8-smooth"],  # the TorchScript file
}
BARS = {"over_fp32": 0.22, "over_onednn": 0.45, "over_nncf": 1.0, "size": 0.28, "cosine": 0.998, "cosine_p5": 0.995}
CALIBRATION_IMAGES, COSINE_IMAGES = 64, 256
WARMUP_SECONDS = 2.0


class Entry(NamedTuple):
    """A model to compare: its file and bytes, or why it is missing."""

    file: Path
    size: float = np.nan
    missing: str = ""


def chosen(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the variants to compare, fp32 first, with the defaults of their options."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["variants"] |= yaml.safe_load(options.also)
    found = complete(config, yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text()))["variants"]
    # int8-auto takes the workflow's sensitivity analysis.
    runs = {name: v for name, v in found.items() if "cpu" not in recipe_of(v).unsupported}
    runs = {name: v for name, v in runs.items() if not recipe_of(v).sensitivity}
    ours = {name: v for name, v in runs.items() if v["runtime"] == TORCHSCRIPT}
    peers = {name: v for name, v in runs.items() if v["runtime"] != TORCHSCRIPT}
    for asked, known in ((options.variants, ours), (options.peers, peers)):
        if unknown := set(asked or ()) - known.keys():
            raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return {
        "fp32": ours["fp32"],
        **{name: v for name, v in ours.items() if options.variants is None or name in options.variants},
        **{name: v for name, v in peers.items() if options.peers is None or name in options.peers},
    }


def entries(
    network: Any, info: dict[str, Any], calibration: torch.Tensor, folder: Path, options: argparse.Namespace
) -> dict[str, Entry]:
    """Make every model in ``folder``. Ours always anew, as the recipes are what changes."""
    fp32 = folder / "fp32/model.pt"
    torch.save(network.state_dict(), folder / "state_dict.pt")
    variants, found = chosen(options), {}
    if not missing("onnxruntime") and any(RUNTIMES[variant["runtime"]].peer for variant in variants.values()):
        onnx_file.write(network, info["image_size"], folder / "model.onnx")
    for name, variant in tqdm(variants.items(), desc="making", disable=None):
        runtime = variant["runtime"]
        path = folder / name / f"model{RUNTIMES[runtime].suffixes[0]}"
        path.parent.mkdir(exist_ok=True)
        try:
            source, images = folder / RUNTIMES[runtime].source, calibration.numpy()
            if recipe_of(variant).module and not missing(runtime):
                source = path.with_suffix(TORCHSCRIPT_SUFFIX)
                quantized = load_recipe(variant["recipe"]).quantize(network, variant, calibration)
                export(quantized, source, name, variant, info)
            if runtime != TORCHSCRIPT and (recipe_of(variant).module or not path.exists()):
                convert(source, path, name, variant, info, fp32=fp32, images=images, threads=options.threads)
            found[name] = Entry(path, sum(file.stat().st_size for file in files(path)))
        except Exception as error:  # one variant that this machine cannot run must not cost the others
            found[name] = Entry(path, missing=str(error).strip().rpartition("\n")[2] or repr(error))
    return found


def blocks(models: dict[str, Entry], batch: int, size: int, start: int, options: argparse.Namespace) -> pd.DataFrame:
    """Start every model; return the ms per image of each (column) in each round (row)."""
    with ExitStack() as stack:
        remotes, counts = {}, {}
        for name, entry in models.items():
            if not entry.missing:
                remote = RemoteModel(entry.file, batch_size=batch, threads=options.threads, timed=True)
                remotes[name] = stack.enter_context(remote)
                remote.ready(random_images(batch, size, "cpu", 0))
                seconds = warm_up(remote.time, WARMUP_SECONDS).call_seconds
                counts[name] = calls_per_block(seconds, options.block_seconds)

        def block(name: str) -> float:
            remotes[name].time()  # untimed: the others have emptied the caches
            return float(np.median([remotes[name].time() for _ in range(counts[name])])) / batch

        rng = np.random.default_rng(start)
        progress = tqdm(range(max(1, options.rounds // options.starts)), desc=f"batch {batch}", disable=None)
        rounds = [{name: block(name) for name in rng.permutation(list(remotes))} for _ in progress]
    return pd.DataFrame(rounds, columns=list(remotes))


def speed(folder: Path, options: argparse.Namespace) -> None:
    """Time everything with seeded weights: speed and size do not depend on their values."""
    network_name = options.architecture
    network = architecture.seeded(network_name, options.image_size, 0)
    info = architecture.info(network, network_name, "imagenet", substitute="seeded weights")
    size = info["image_size"]
    models = entries(network, info, random_images(CALIBRATION_IMAGES, size, "cpu", 0), folder, options)
    for batch in BATCHES:
        # A process may have luck with where its memory lies: each is started several times.
        times = pd.concat(
            [blocks(models, batch, size, start, options) for start in range(options.starts)], ignore_index=True
        )
        table = pd.DataFrame({"ms": times.median()})
        for reference, names in REFERENCES.items():
            if present := [name for name in names if name in times]:
                ratios = times.div(times[times[present].median().idxmin()], axis=0)
                table[f"over_{reference}"] = ratios.median()
                starts = np.repeat(range(options.starts), len(ratios) // options.starts).tolist()
                logs, middle = np.log(ratios), ratios.median()
                ends = [interval(logs[name].to_numpy(), starts, middle[name]) for name in times]  # None of few rounds
                table[[f"over_{reference}_low", f"over_{reference}_high"]] = np.array(ends, dtype=float)
        table = table.reindex(models)
        table["size"] = [entry.size / models["fp32"].size for entry in models.values()]
        table["missing"] = [entry.missing for entry in models.values()]
        how = f"{options.threads} threads, {options.rounds} rounds, {options.starts} starts, ms per image"
        show(table, f"speed-batch{batch}", f"{network_name}, {size} pixels, {how}", options)


def trust(data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Compare features of real images by trained weights with fp32's."""
    network_name = "vit_tiny_patch16_224"
    network = architecture.build(network_name)
    checkpoint.load(network, data / f"{network_name}.imagenet1k.pth")
    info = architecture.info(network, network_name, "imagenet", substitute=None)
    with open_dataset(data / "tiny-imagenet-200.subset.zip") as dataset:
        manifest = pd.DataFrame(
            pack(dataset, select(dataset, 1, COSINE_IMAGES, CALIBRATION_IMAGES, 0), folder / "images.npy", "error").rows
        )
    manifest.to_csv(folder / "manifest.csv", index=False)
    calibration = calibration_images(folder / "images.npy", folder / "manifest.csv", info)
    models = entries(network, info, calibration, folder, options)
    images = np.load(folder / "images.npy", mmap_mode="r")
    queries = manifest.loc[manifest["split"] == "query", "index"].to_numpy()
    features = {}
    for name, entry in models.items():
        if not entry.missing:
            with RemoteModel(entry.file, batch_size=16, threads=options.threads) as remote:
                features[name], _ = extract(
                    remote, images, queries, batch_size=16, info=info, device="cpu", variant=name
                )
    cosines = {name: fidelity.cosine(found, features["fp32"]) for name, found in features.items()}
    table = pd.DataFrame(
        {name: {"cosine": each.mean(), "cosine_p5": np.percentile(each, 5)} for name, each in cosines.items()}
    ).T.reindex(models)
    table["size"] = [entry.size / models["fp32"].size for entry in models.values()]
    table["missing"] = [entry.missing for entry in models.values()]
    show(table, "fidelity", f"{network_name}, {len(queries)} real images", options)


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
    names = {"type": lambda text: [name for name in text.split(",") if name], "metavar": "A,B"}
    parser.add_argument("--variants", **names, help="ours, of the presets; all that run on a CPU by default")
    parser.add_argument("--also", default="{}", help="more variants, as YAML: '{NAME: {recipe: RECIPE}}'")
    parser.add_argument("--peers", **names, help="other runtimes', of the presets; all by default")
    parser.add_argument("--parts", **names, default=["speed", "fidelity"], help="speed,fidelity")
    parser.add_argument("--architecture", default="vit_small_patch16_224", help="timm's name of what is timed")
    parser.add_argument("--image-size", type=int, help="in pixels; the architecture's by default")
    parser.add_argument("--threads", type=int, default=min(2, machine.compute_threads()))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--starts", type=int, default=3, help="times that each process is started anew for its rounds")
    parser.add_argument("--block-seconds", type=float, default=0.3)
    parser.add_argument("--work", type=Path, help="keep the models here, and use those of the peers that are here")
    parser.add_argument("--csv", type=Path, help="write the tables to this folder, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine.describe()['cpu']}; torch {version('torch')}", flush=True)
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
