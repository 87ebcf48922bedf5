"""What a model file says about itself. Needs no PyTorch."""

import json
import zipfile
from pathlib import Path
from typing import Any

from dinoquant.errors import UserError

MEMBER = "extra/dinoquant.json"


def read_card(model: Path) -> dict[str, Any]:
    """Return the JSON that was saved in the TorchScript file ``model`` as its extra file "dinoquant.json".

    A TorchScript file is a zip archive with all members in one folder
    (https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md). Raises UserError where it is
    no such archive or has no such member.
    """
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
