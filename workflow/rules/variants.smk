"""Which devices and variants there are, which runs where, and the files of their models."""

import re

from dinoquant import runtimes
from dinoquant.config import unsupported
from dinoquant.machine import cuda_devices


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


def runs_on(variant, device):
    return device not in UNSUPPORTED.get(variant, {})


def extraction_device(variant):
    """Return where the variant's features are extracted, or None if no device that may be used can run it.

    Of bfloat16 on a GPU if there is one: many processors only emulate it, and those of the nodes are not known here.
    """
    devices = [config["accuracy"]["device"], *DEVICES]
    if recipe_of(variant).precision == "bf16":
        devices.sort(key="cuda".__ne__)
    return next((d for d in devices if runs_on(variant, d)), None)


def recipe_of(variant):
    return runtimes.recipe_of(VARIANTS[variant])


def runtime_of(variant):
    return VARIANTS[variant]["runtime"]


def pattern(variants):
    """Return a pattern of the names of variants; it fits nothing if there are none."""
    return "|".join(map(re.escape, variants)) or "(?!)"


def compiled(variant):
    """Tell whether another runtime makes the variant's model of the TorchScript file of a recipe of our own."""
    return runtime_of(variant) != runtimes.TORCHSCRIPT and bool(recipe_of(variant).module)


def has_torchscript(variant):
    """Tell whether there is a TorchScript file of the variant: its model, or what that is compiled from."""
    return runtime_of(variant) == runtimes.TORCHSCRIPT or (compiled(variant) and bool(artifacts(variant)))


COMPILED = pattern(filter(compiled, VARIANTS))


def artifacts(variant):
    """Return the files that make up the variant's model; none where what makes it is missing."""
    if runtimes.missing(runtime_of(variant)):
        return []
    return [f"results/models/{variant}/model{suffix}" for suffix in runtimes.RUNTIMES[runtime_of(variant)].suffixes]


def artifact(variant):
    """Return the file of the variant's model that is loaded, and measured."""
    if missing := runtimes.missing(runtime_of(variant)):
        raise WorkflowError(f"{variant}: {missing}")
    return artifacts(variant)[0]


def card(variant):
    """Return the file that describes the variant's model; none where the model does so itself."""
    beside = runtime_of(variant) != runtimes.TORCHSCRIPT and artifacts(variant)
    return [f"results/models/{variant}/card.json"] if beside else []


def beside(variant):
    """Return what the variant's model is loaded with besides: weights in a file of their own, and the card."""
    return artifacts(variant)[1:] + card(variant)


def deployed(variant):
    """Return what to deploy of a variant: its model, the card, and the TorchScript file that it was compiled from."""
    fallback = [f"results/models/{variant}/model.pt"] if has_torchscript(variant) else []
    return list(dict.fromkeys(artifacts(variant) + card(variant) + fallback))


CARDS = [file for variant in VARIANTS for file in card(variant)]


def runtime_modules(variant):
    """Return the modules of the library by which the variant's model is made and run, in other runtimes than ours."""
    return [] if runtime_of(variant) == runtimes.TORCHSCRIPT else [f"dinoquant.runtimes.{runtime_of(variant)}"]


def locks(variant):
    """Return the locks of all environments that the variant depends on."""
    return [LOCK, PEERS_LOCK] if runtimes.RUNTIMES[runtime_of(variant)].peer else [LOCK]


wildcard_constraints:
    variant=r"[A-Za-z0-9][A-Za-z0-9_.+-]*",
    device="cpu|cuda",
    batch=r"\d+",
    threads=r"\d+",
    shard=r"\d+",
    shards=r"\d+",
