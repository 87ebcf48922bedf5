"""What a model file says about itself. Needs no PyTorch."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from dinoquant.errors import UserError
from dinoquant.files import read_json

TORCHSCRIPT_SUFFIX = ".pt"
MEMBER = "extra/dinoquant.json"
BESIDE = "card.json"
AGAIN = "Delete it and run again: it will be rebuilt."


class Card(TypedDict):
    """What made a model, what goes in, and which libraries wrote it."""

    variant: str
    runtime: str
    recipe: str
    options: Mapping[str, object]  # the variant's, with their defaults
    architecture: str
    image_size: int
    pooling: str
    output: str  # "features" [B, D], or "tokens" [B, N, D]
    mean: list[float]
    std: list[float]
    engine: str | None  # of PyTorch's `quantized::` operators, for which weights are packed on loading
    torch: NotRequired[str]  # of TorchScript files
    operators: NotRequired[list[str]]  # outside `aten::`, that a TorchScript file takes; not every build has them
    versions: NotRequired[dict[str, str]]  # of other runtimes' models, by library
    convert_s: NotRequired[float]  # the seconds in which another runtime made its model
    # Of the first images of the calibration, from a runtime that hides the integers of a finished model.
    exact: NotRequired[list[list[float]]]
    instructions: NotRequired[list[str]]  # the instruction sets that machine code was compiled for
    kernels: NotRequired[dict[str, str]]  # by module of the float model: what multiplies it in the compiled code


def new_card(
    variant: str, runtime: str, options: Mapping[str, Any], info: Mapping[str, Any], engine: str | None = None
) -> Card:
    """Return the card of a variant's model, from the variant's options and the float model's `info.json`."""
    return {
        "variant": variant,
        "runtime": runtime,
        "recipe": options["recipe"],
        "options": dict(options),
        "architecture": info["architecture"],
        "image_size": info["image_size"],
        "pooling": info["pooling"],
        "output": info["output"],
        "mean": info["mean"],
        "std": info["std"],
        "engine": engine,
    }


def read_card(model: Path) -> Card:
    """Return the JSON that was saved in the TorchScript file ``model`` as its extra file "dinoquant.json".

    A TorchScript file is a zip archive with all members in one folder
    (https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md). The models of other runtimes
    have theirs beside them. Raises UserError where there is none.
    """
    if model.suffix != TORCHSCRIPT_SUFFIX:
        return _read_beside(model)
    try:
        with zipfile.ZipFile(model) as archive:
            members = [name for name in archive.namelist() if name.partition("/")[2] == MEMBER]
            card: Card = json.loads(archive.read(members[0]))
    except (zipfile.BadZipFile, zlib.error, IndexError, ValueError) as error:
        raise UserError(
            f"{model} is not a model of this workflow: expected a TorchScript file with {MEMBER} in it ({error!r}). "
            f"{AGAIN}"
        ) from error
    return card


def require_intact(model: Path) -> None:
    """Raise UserError if a member of the zip archive ``model`` has another checksum than when it was written.

    PyTorch reads members without looking at their checksums: weights would be others, and machine code would crash.
    """
    try:
        with zipfile.ZipFile(model) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error) as error:
        damaged = str(error)
    if damaged:
        raise UserError(f"{model} is damaged ({damaged}). {AGAIN}")


def _read_beside(model: Path) -> Card:
    path = model.with_name(BESIDE)
    try:
        card: Card = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{model} has no {BESIDE} beside it ({error!r}). Delete it and run again.") from error
    return card
