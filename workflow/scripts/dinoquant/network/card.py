"""What a model file says about itself. Needs no PyTorch."""

import json
import zipfile
from pathlib import Path
from typing import Any

from dinoquant.errors import UserError
from dinoquant.files import read_json

MEMBER = "extra/dinoquant.json"
BESIDE = "card.json"
BESIDE_SUFFIXES = (".onnx", ".xml", ".pt2")


def read_card(model: Path) -> dict[str, Any]:
    """Return the JSON that was saved in the TorchScript file ``model`` as its extra file "dinoquant.json".

    A TorchScript file is a zip archive with all members in one folder
    (https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md). The models of other runtimes
    have theirs beside them. Raises UserError where there is none.
    """
    if model.suffix in BESIDE_SUFFIXES:
        return _read_beside(model)
    try:
        with zipfile.ZipFile(model) as archive:
            members = [name for name in archive.namelist() if name.partition("/")[2] == MEMBER]
            card: dict[str, Any] = json.loads(archive.read(members[0]))
    except (zipfile.BadZipFile, IndexError, ValueError) as error:
        raise UserError(
            f"{model} is not a model of this workflow: expected a TorchScript file with {MEMBER} in it ({error!r}). "
            "Delete it and run again: it will be rebuilt."
        ) from error
    return card


def _read_beside(model: Path) -> dict[str, Any]:
    path = model.with_name(BESIDE)
    try:
        card: dict[str, Any] = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{model} has no {BESIDE} beside it ({error!r}). Delete it and run again.") from error
    return card
