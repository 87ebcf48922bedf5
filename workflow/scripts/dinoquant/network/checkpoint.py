"""Read a checkpoint as plain tensors, without running anything in it, and fit it to a model without leftovers."""

import argparse
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from dinoquant.errors import UserError

# Where training scripts put the weights; DINO evaluates the teacher (facebookresearch/dino, eval_knn.py).
WRAPPERS = ("teacher", "student", "model", "state_dict")
# What a feature extractor has no use for: classifiers, DINO's projection head, and the token of masked training.
NOT_FEATURES = re.compile(r"head\.|head_dist\.|mask_token$")
# DINO's full checkpoints also hold the command line and numpy learning rates; building these runs no foreign code.
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype("float64")),
    multiarray.scalar,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
]
# The names that Hugging Face's libraries give to the parts of large checkpoints, and to the list of them.
SHARD = re.compile(r"-\d+-of-\d+\.|\.index\.json$")
LISTED = 10


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint on the CPU, under the names they have in the backbone.

    Takes `.safetensors` and what `torch.save` writes: a plain state dict or one inside a training checkpoint (see
    WRAPPERS); the prefixes ``module.`` and ``backbone.`` are removed. Code inside a pickle is never run.

    Raises UserError if the file is damaged, is no state dict, or holds anything that would have to be executed.
    """
    path = Path(path)
    if SHARD.search(path.name):
        raise UserError(
            f"model.checkpoint: {path} is a part of a checkpoint in several files (shards), and one file is expected. "
            "Join them: from safetensors.torch import load_file, save_file; "
            "save_file({name: tensor for file in FILES for name, tensor in load_file(file).items()}, NEW_FILE)"
        )
    content = _unwrap(_read(path))
    tensors = content if isinstance(content, Mapping) else {}
    strangers = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or strangers:
        found = f"entries that are not tensors: {_first(strangers)}" if strangers else type(content).__name__
        raise UserError(
            f"model.checkpoint: {path} holds no state dict. Found {found}; expected a mapping from names to tensors, "
            f"plain or under one of {', '.join(WRAPPERS)}."
        )
    return {str(name).removeprefix("module.").removeprefix("backbone."): value for name, value in tensors.items()}


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load ``state`` into ``model`` as float32 and return the names of the tensors that features do not need.

    Raises UserError naming every tensor that is missing, unexpected, of another shape, or not finite.
    """
    expected = model.state_dict()
    dropped = sorted(name for name in state if name not in expected and NOT_FEATURES.match(name))
    found = {name: value for name, value in state.items() if name not in dropped}
    problems = _misfits(expected, found)
    if problems:
        raise UserError(
            f"model.checkpoint does not fit model.architecture: {_first(problems)}. "
            "Set model.architecture to the timm name of the network that the checkpoint belongs to."
        )
    converted = {name: value.to(torch.float32) for name, value in found.items()}
    broken = [name for name, value in converted.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"model.checkpoint holds NaN or infinite values in {_first(broken)}. "
            "Fetch the file again, or use a checkpoint from before the training diverged."
        )
    model.load_state_dict(converted)
    return dropped


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from error
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "reduce" in str(error):
            raise UserError(
                f"model.checkpoint: {path} was refused: it is not made of plain tensors, and reading the rest could "
                f"run code from the file ({_last_sentence(error)}). If you trust where it comes from, save its tensors "
                'alone: import torch; content = torch.load(FILE, weights_only=False, map_location="cpu"); '
                "torch.save(content.state_dict() if isinstance(content, torch.nn.Module) else content[KEY], NEW_FILE)"
            ) from error
        raise _damaged(path, error) from error
    except (RuntimeError, EOFError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"model.checkpoint: {path} ({path.stat().st_size} bytes) cannot be read as a PyTorch or safetensors "
        f"checkpoint: {_last_sentence(error)}. It may be cut short, or be an error page instead of the weights: "
        "remove it and fetch it again."
    )


def _last_sentence(error: Exception) -> str:
    """Return what is specific in PyTorch's message; the rest recommends to read the file unsafely."""
    specific = [line for line in str(error).splitlines() if re.search("GLOBAL|reduce|Unsupported|rror", line)]
    return specific[-1].partition(". Please")[0].strip().rstrip(".") if specific else type(error).__name__


def _unwrap(content: Any) -> Any:
    """Return what is inside of the wrappers; no more of them are opened than there are, for a dict can hold itself."""
    for _ in WRAPPERS:
        inside = [
            content[key] for key in WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
        ]
        content = inside[0] if inside else content
    return content


def _misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    return [
        *(f"{name} {_shape(expected[name])} is missing" for name in expected if name not in found),
        *(f"{name} {_shape(found[name])} is unexpected" for name in found if name not in expected),
        *(
            f"{name} has shape {_shape(found[name])}, expected {_shape(expected[name])}"
            for name in expected
            if name in found and found[name].shape != expected[name].shape
        ),
        *(
            f"{name} holds {value.dtype}, not real numbers"
            for name, value in found.items()
            if not value.is_floating_point()
        ),
        *(
            f"{name} is no plain tensor with values ({value.layout}, {value.device})"
            for name, value in found.items()
            if value.layout != torch.strided or value.is_meta
        ),
    ]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _first(names: list[str]) -> str:
    rest = f" and {len(names) - LISTED} more ({len(names)} in all)" if len(names) > LISTED else ""
    return "; ".join(names[:LISTED]) + rest
