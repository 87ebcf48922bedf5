"""Read a file of weights of any common format as tensors in plain containers, without running anything in it."""

import os
import re
from pathlib import Path

import numpy as np
import torch

from dinoquant.errors import UserError
from dinoquant.network.checkpoint import kinds, unpickling

# The names that Hugging Face's libraries give to the parts of large checkpoints, and to the list of them.
SHARD = re.compile(r"-\d+-of-\d+\.|\.index\.json$")
DOWNLOADS = "resources"


def read(path: Path) -> object:
    """Return what a checkpoint holds: tensors by name, possibly inside of other containers and beside other things.

    Takes what `torch.save` (of any version) and pickle write, safetensors and NumPy's ``.npz``, whatever the file is
    called. Objects of other classes become placeholders; nothing in the file is ever called.

    Raises UserError saying what the file is instead, and what to do.
    """
    if SHARD.search(path.name):
        safe = ".safetensors" in path.name
        library, reader, writer = (
            ("from safetensors.torch import load_file, save_file", "load_file", "save_file")
            if safe
            else ("import torch", "torch.load", "torch.save")
        )
        raise UserError(
            f"model.checkpoint: {path} is a part of a checkpoint in several files (shards), and one file is expected. "
            f"Join them in Python: {library}; "
            f"{writer}({{name: tensor for file in FILES for name, tensor in {reader}(file).items()}}, NEW_FILE)"
        )
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        raise UserError(
            "TORCH_FORCE_WEIGHTS_ONLY_LOAD is set, which keeps PyTorch from using this workflow's reader. That runs no "
            "code of a file either: unset the variable for this run."
        )
    with path.open("rb") as stream:
        head = stream.read(kinds.HEAD_BYTES)
    if kind := kinds.stranger(path, head):
        raise UserError(f"model.checkpoint: {path} is no checkpoint. {kind}{_if_downloaded(path)}")
    try:
        if kinds.is_safetensors(path, head):
            from safetensors.torch import load_file

            return load_file(path)
        if kinds.is_archive_of_arrays(path, head):
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with path.open("rb") as stream:
            return unpickling.load_saved(stream)
    except MemoryError:
        raise
    except Exception as error:  # a file that is cut short or made up can raise anything
        raise UserError(
            f"model.checkpoint: {path} ({path.stat().st_size:,} bytes) cannot be read as PyTorch's, pickle's, "
            f"safetensors' or NumPy's weights: {_reason(error)}. It may be cut short, or of a format that is not known "
            f"here: save its weights with torch.save(model.state_dict(), FILE).{_if_downloaded(path)}"
        ) from error


def _if_downloaded(path: Path) -> str:
    """Return what to do about a file that this workflow has fetched; a user's own file is never to be deleted."""
    if path.parts[:1] != (DOWNLOADS,):
        return ""
    return f" It came from the address in model.checkpoint: correct that, or delete {path} to fetch it anew."


def _reason(error: Exception) -> str:
    """Return the first sentence of an error, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].strip().rstrip(".") if lines else type(error).__name__
