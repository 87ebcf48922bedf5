"""The table of runtimes: the file that each runs, and what it needs. Imports none of them.

`torchscript` is the pipeline's own; the others are peers to compare it with. Each has a module of its name here, which
makes its files and runs them (`dinoquant.runtimes.backend`). A new one is such a module, an entry in `RUNTIMES`, and
the options of its recipes in the config's schema.
"""

import os
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoquant.errors import UserError
from dinoquant.network.card import Card, read_card, require_intact
from dinoquant.recipes import TORCHSCRIPT as TORCHSCRIPT
from dinoquant.recipes import Recipe, recipes

BASELINE = "fp32"  # the variant that every other is compared with
# `make peers` makes it, beside the Snakefile.
PEERS_PYTHON = Path(__file__).resolve().parents[4] / ".venv-peers/bin/python"


@dataclass(frozen=True)
class Runtime:
    """What the workflow must know of a runtime before running it."""

    suffixes: Sequence[str]  # of the files that make up a model; the first is the one to load
    libraries: Sequence[str] = ()  # whose versions the numbers depend on, beside PyTorch's
    source: str = "model.onnx"  # of the float32 model's files, the one that its models are made of
    peer: bool = False  # runs in the peers' environment, not in the pipeline's
    compiles: bool = False  # with the machine's C++ compiler


RUNTIMES: Mapping[str, Runtime] = {
    TORCHSCRIPT: Runtime((".pt",), libraries=("torch",), source="state_dict.pt"),
    "onnxruntime": Runtime((".onnx",), libraries=("onnxruntime",), peer=True),
    "openvino": Runtime((".xml", ".bin"), libraries=("openvino", "nncf"), peer=True),
    "inductor": Runtime((".pt2",), libraries=("torch", "torchao"), source="state_dict.pt", compiles=True),
}


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """Return what is known of a variant's recipe, from the variant's options with their defaults."""
    return recipes(options["runtime"])[options["recipe"]]


def missing(runtime: str) -> str | None:
    """Return why models of a runtime can be neither made nor run on this machine, and what to do; None if they can."""
    if RUNTIMES[runtime].peer and not PEERS_PYTHON.exists():
        return "the peers' environment is missing: make peers"
    if RUNTIMES[runtime].compiles and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return f"{runtime} compiles C++ and there is no compiler here: install g++"
    return None


def checked_card(model: Path) -> Card:
    """Return the card of ``model``, which is to be run.

    Raises UserError if its runtime does not run such files, or if the file, where it is an archive, is damaged.
    """
    card = read_card(model)
    runtime = card["runtime"]
    if runtime not in RUNTIMES or model.suffix != RUNTIMES[runtime].suffixes[0]:
        raise UserError(f"{model} is no model of {runtime}, as its card says: another's. Delete both and run again.")
    if zipfile.is_zipfile(model):
        require_intact(model)
    return card


def python(runtime: str) -> str:
    """Return the Python that has the runtime."""
    return str(PEERS_PYTHON) if RUNTIMES[runtime].peer else sys.executable


def files(model: str | Path) -> list[Path]:
    """Return the files that make up a model, of which ``model`` is the one to load."""
    path = Path(model)
    return next([path.with_suffix(s) for s in r.suffixes] for r in RUNTIMES.values() if r.suffixes[0] == path.suffix)
