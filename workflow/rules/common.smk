"""What several stages share: where inputs lie, which devices there are, and what a rule's result depends on."""

import ast
import json
import os
import re
from functools import cache
from urllib.parse import urlparse

from dinoquant import runtimes
from dinoquant.config import unsupported
from dinoquant.machine import cuda_devices

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"


def in_workflow(path):
    """Name a file of the workflow relative to the working directory: Snakemake then compares it by content."""
    return os.path.relpath(Path(workflow.basedir) / path)


# Everything after the downloads depends on the versions of the libraries.
LOCK = in_workflow("envs/pipeline.lock")
PEERS_LOCK = in_workflow("envs/peers.lock")


@cache
def imported_modules(path):
    """Return the library's files that a Python file imports, directly or not, without running any of it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names),
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
    names = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
    stems = [SCRIPTS.joinpath(*name.split(".")) for name in names if name.split(".")[0] == "dinoquant"]
    files = {file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.exists()}
    return files.union(*map(imported_modules, files - {path})) if files - {path} else files


@cache
def code(script, *modules):
    """Return what decides how a script behaves: itself and all it imports; `modules` are those it imports by name."""
    roots = [
        SCRIPTS / f"{script}.py",
        *(SCRIPTS.joinpath(*m.split(".")).with_suffix(".py") for m in modules),
    ]
    return sorted(in_workflow(file) for root in roots for file in {root, *imported_modules(root)})


def tidy(value):
    """Sort the keys of nested dicts: Snakemake compares parameters as text, in which another order is a change."""
    return {key: tidy(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


def is_url(source):
    return "://" in source


def place(section, key, folder, substitute):
    """Return where the file of a source lies: downloads and generated files in `folder`, a local file where it is."""
    source = config[section][key]
    if source == substitute:
        return None
    if not is_url(source):
        if unsafe := sorted(set(re.findall(r"[$`\\{}\x00-\x1f]", source))):
            raise WorkflowError(
                f"{section}.{key}: {source!r} has {' '.join(map(repr, unsafe))} in its name, which means something else to "
                "Snakemake or to a shell on the way to a cluster's node. Rename the file, or link to it by another name."
            )
        if not Path(source).is_file():
            raise WorkflowError(
                f"{section}.{key}: there is no file {source}. Expected an http(s) URL, the path of an existing file "
                f"(relative to {os.getcwd()}), or `{substitute}`."
            )
        return source
    url = urlparse(source)
    if url.scheme not in ("http", "https") or not Path(url.path).name.strip("."):
        raise WorkflowError(f"{section}.{key}: {source} is not an http(s) URL that ends in a file's name.")
    return f"{folder}/{re.sub(r'[^A-Za-z0-9_.+-]', '_', Path(url.path).name)}"


def untracked_checksum(section, source, receipt):
    """Return the expected digest as a parameter that triggers no rerun: pinning what was used must cost nothing.

    Snakemake does not track parameters that name `output`. So that a digest that does not fit is noticed all the same,
    it is compared with the receipt of the file in use.
    """
    checksum = config[section]["checksum"]
    used = json.loads(Path(receipt).read_text()) if Path(receipt).is_file() else {}
    if checksum and used.get("source") == source:
        kind, digest = checksum.split(":")
        if used[kind] != digest:
            raise WorkflowError(
                f"{section}.checksum: expected {checksum}, but {used['file']}, which is in use, has {kind}:{used[kind]}. "
                f"Correct the checksum, or delete {used['file']} to get it again."
            )
    return lambda wildcards, output: checksum


def resolve_devices():
    """Return the devices to measure on; one that was asked for by name and is missing stops the run."""
    # The processors and GPUs of a head node say nothing about those of the nodes. What executor there is, Snakemake
    # tells only after it has read the rules; but only one that submits jobs is told how many there may be (--jobs).
    elsewhere = workflow.nodes is not None or workflow.remote_exec
    here = ["cpu"] if elsewhere or not cuda_devices() else ["cpu", "cuda"]
    asked = here if config["devices"] == "auto" else config["devices"]
    for key, device in [("devices", d) for d in asked] + [("accuracy.device", config["accuracy"]["device"])]:
        if device not in here and not elsewhere:
            raise WorkflowError(
                f"{key}: {device} was asked for, but this machine has no such device. It has: {', '.join(here)}."
            )
    return asked


DEVICES = resolve_devices()
VARIANTS = config["variants"]
UNSUPPORTED = unsupported(VARIANTS, ["cpu", "cuda"])
BATCH_SIZES = config["latency"]["batch_sizes"]
# What stands in for real images and trained weights; whatever shows an accuracy says so.
SUBSTITUTES = ["generated data set"] * (config["dataset"]["source"] == "generated")
SUBSTITUTES += ["seeded weights"] * (config["model"]["checkpoint"] == "seeded")


def runs_on(variant, device):
    return device not in UNSUPPORTED.get(variant, {})


def extraction_device(variant):
    """Return where the variant's features are extracted, or None if no device that may be used can run it."""
    return next(
        (d for d in [config["accuracy"]["device"], *DEVICES] if runs_on(variant, d)),
        None,
    )


def recipe_of(variant):
    return runtimes.recipe_of(VARIANTS[variant])


def runtime_of(variant):
    return VARIANTS[variant]["runtime"]


def of_runtime(runtime):
    """Return a pattern of the names of the runtime's variants; it fits nothing if there are none."""
    return "|".join(re.escape(variant) for variant in VARIANTS if runtime_of(variant) == runtime) or "(?!)"


def artifacts(variant):
    """Return the files that make up the variant's model; none where what makes it is missing."""
    if runtimes.missing(runtime_of(variant)):
        return []
    return [f"results/models/{variant}/model{suffix}" for suffix in runtimes.RUNTIMES[runtime_of(variant)].suffixes]


def artifact(variant):
    """Return the file of the variant's model that is loaded, and measured."""
    return artifacts(variant)[0]


def runtime_modules(variant):
    """Return the modules of the library by which the variant's model is made and run, in other runtimes than ours."""
    return [] if runtime_of(variant) == runtimes.TORCHSCRIPT else [f"dinoquant.runtimes.{runtime_of(variant)}"]


def locks(variant):
    """Return the locks of all environments that the variant depends on."""
    return [LOCK, PEERS_LOCK] if runtimes.RUNTIMES[runtime_of(variant)].peer else [LOCK]


def calibration(wildcards):
    """Return the images, for the recipes that look at some."""
    calibrated = recipe_of(wildcards.variant).calibrated
    return {"images": "results/data/images.npy", "manifest": "results/data/manifest.csv"} if calibrated else {}


def sensitivity_table(wildcards):
    """Return what the analysis of single modules found, for the recipes that choose by it."""
    return {"sensitivity": "results/sensitivity.csv"} if recipe_of(wildcards.variant).sensitivity else {}


def whole_machine(wildcards):
    """Take every core of --cores, so that nothing runs beside a measurement; under Slurm the profile sees to it."""
    return workflow.cores


def timing(threads, batch_size):
    """Return what a timing depends on."""
    keys = ("rounds", "processes", "block_seconds", "warmup_seconds")
    protocol = {key: config["latency"][key] for key in keys} | {"seed": config["seed"]}
    return tidy({"protocol": protocol, "threads": threads, "batch_size": batch_size})


def look(wildcards):
    """Return the part of the config that this figure shows; what it does not use must not redraw it."""
    return tidy(
        {key: config["figures"][key] for key in ("palette", "font_scale", "dpi")}
        | {
            "variants": [] if wildcards.figure == "sensitivity" else list(VARIANTS),
            "batch_size": (
                config["figures"]["batch_size"] if wildcards.figure in ("latency", "distribution", "pareto") else None
            ),
            "missing": without_attention() if wildcards.figure == "attention" else {},
            "substitute": ", ".join(SUBSTITUTES) or None,
        }
    )


def without_attention():
    """Return the variants whose attention cannot be looked at, with the reasons."""
    reasons = {}
    for variant in VARIANTS:
        if runtime_of(variant) != runtimes.TORCHSCRIPT:
            reasons[variant] = "only the operators of TorchScript files can be watched"
        elif not extraction_device(variant):
            reasons[variant] = "; ".join(UNSUPPORTED[variant][device] for device in DEVICES)
    return reasons


wildcard_constraints:
    variant=r"[A-Za-z0-9][A-Za-z0-9_.+-]*",
    device="cpu|cuda",
    batch=r"\d+",
    threads=r"\d+",
    shard=r"\d+",
    shards=r"\d+",
    figure="[a-z]+",
