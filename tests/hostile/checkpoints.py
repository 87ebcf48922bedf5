"""Checkpoints that run code, are damaged, are of another network, or hold what no network should."""

import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cases import Case
from safetensors.torch import save_file
from torch import Tensor

from dinoquant.network import architecture, checkpoint

ARCHITECTURE = "test_vit.r160_in1k"


class Runs:
    """Something whose unpickling would run a command."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch ran",)


@cache
def weights() -> dict[str, Tensor]:
    return dict(architecture.seeded(ARCHITECTURE, None, 0).state_dict())


def use(folder: Path, name: str, make: Callable[[Path], object]) -> str:
    """Make a checkpoint and load it, as the workflow would."""
    make(folder / name)
    network = architecture.build(ARCHITECTURE)
    dropped = checkpoint.fit(network, checkpoint.load_state_dict(Path(name)))
    return "accepted" + (f"; left out: {', '.join(dropped)}" if dropped else "")


def case(what: str, words: str, make: Callable[[Path], object], name: str = "weights.pth") -> Case:
    return Case("checkpoint", what, words, lambda folder: use(folder, name, make))


def saved(what: str, words: str, content: Callable[[], Any]) -> Case:
    return case(what, words, lambda path: torch.save(content(), path))


def changed(what: str, words: str, **changes: Tensor | None) -> Case:
    """Return a case of the right weights with some changed, added, or left out (None); dots are double underscores."""

    def content() -> dict[str, Tensor]:
        state = weights() | {name.replace("__", "."): value for name, value in changes.items()}
        return {name: value for name, value in state.items() if value is not None}

    return saved(what, words, content)


def as_type(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in weights().items()}


def one_value(value: float) -> Tensor:
    bias = weights()["norm.bias"].clone()
    bias[3] = value
    return bias


def itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def cut(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:100_000])


def first_shard(path: Path) -> None:
    save_file(dict(list(weights().items())[:20]), path)


def cut_safetensors(path: Path) -> None:
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:10_000])


CHECKPOINTS = [
    case("a pickle that runs a command", "refused", lambda path: path.write_bytes(pickle.dumps(Runs(), protocol=2))),
    case("the same in a newer protocol", "cannot be read", lambda path: path.write_bytes(pickle.dumps(Runs()))),
    saved("weights, and beside them an object that runs a command", "refused", lambda: weights() | {"x": Runs()}),
    saved("a whole module instead of its weights", "refused", lambda: torch.nn.Linear(2, 2)),
    case("empty file", "0 bytes", lambda path: path.write_bytes(b"")),
    case("an error page instead of weights", "error page", lambda path: path.write_text("<html>404</html>")),
    case("cut short", "cut short", cut),
    case("a zip file of something else", "cannot be read", lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18))),
    case("safetensors, cut short", "cut short", cut_safetensors, "weights.safetensors"),
    case(
        "safetensors with a header of 2^62 bytes",
        "cannot be read",
        lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "weights.safetensors",
    ),
    case("safetensors, empty", "0 bytes", lambda path: path.write_bytes(b""), "weights.safetensors"),
    case("the first of three shards", "shard", first_shard, "model-00001-of-00003.safetensors"),
    case(
        "the index of a sharded checkpoint",
        "shard",
        lambda path: path.write_text('{"weight_map": {"norm.bias": "model-00001-of-00002.safetensors"}}'),
        "model.safetensors.index.json",
    ),
    saved("an empty dict", "holds no state dict", dict),
    saved("a list", "holds no state dict", lambda: [1, 2]),
    saved("a dict without tensors", "holds no state dict", lambda: {"epoch": 3}),
    saved("a dict that holds itself", "holds no state dict", itself),
    saved("names that are numbers", "is missing", lambda: dict(enumerate(weights().values()))),
    changed("a tensor of another shape", "expected [64]", norm__weight=torch.ones(65)),
    changed("a tensor that claims 4 TB", "expected [64]", norm__weight=torch.ones(1).expand(1 << 40)),
    changed("a tensor missing", "norm.bias [64] is missing", norm__bias=None),
    changed("a tensor too many", "extra [2] is unexpected", extra=torch.ones(2)),
    saved(
        "of another architecture",
        "Set model.architecture",
        lambda: {f"layers.{i}.weight": torch.ones(3) for i in range(40)},
    ),
    changed("NaN", "NaN or infinite values in norm.bias", norm__bias=one_value(float("nan"))),
    changed("infinite", "NaN or infinite values in norm.bias", norm__bias=one_value(float("inf"))),
    changed("beyond float32", "NaN or infinite", norm__bias=one_value(0).double().fill_(1e300)),
    changed("integers", "torch.int64", norm__bias=torch.zeros(64, dtype=torch.int64)),
    changed("complex numbers", "torch.complex64", norm__bias=torch.zeros(64, dtype=torch.complex64)),
    changed("a sparse tensor", "torch.sparse_coo", norm__bias=torch.ones(64).to_sparse()),
    changed("a tensor without data", "meta", norm__bias=torch.empty(64, device="meta")),
    saved("fp16 weights", "accepted", lambda: as_type(torch.float16)),
    saved("bf16 weights", "accepted", lambda: as_type(torch.bfloat16)),
    changed(
        "with a classifier",
        "accepted; left out: head.bias, head.weight",
        head__weight=torch.ones(9, 64),
        head__bias=torch.ones(9),
    ),
    saved(
        "a training checkpoint with `state_dict`",
        "accepted",
        lambda: {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights().items()}},
    ),
    saved(
        "DINO's training checkpoint with `teacher`",
        "accepted; left out: head.mlp.0.weight",
        lambda: {
            "student": {},
            "teacher": {f"backbone.{name}": value for name, value in weights().items()}
            | {"head.mlp.0.weight": torch.ones(2)},
        },
    ),
    case("safetensors", "accepted", lambda path: save_file(weights(), path), "weights.safetensors"),
]
