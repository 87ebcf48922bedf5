"""Checkpoints that run code, are damaged, are of another network, or hold what no network should."""

import argparse
import gzip
import os
import pickle
import zipfile
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
    loaded = checkpoint.load(network, Path(name))
    parts = [
        f"accepted: {loaded.weights}",
        *([f"not taken: {', '.join(loaded.other_weights)}"] if loaded.other_weights else []),
        *([f"left out: {', '.join([*loaded.beside, *loaded.dropped])}"] if loaded.beside or loaded.dropped else []),
        *loaded.notes,
    ]
    return "; ".join(parts)


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


def program(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run7/weights.pth", b"...")


def changed_grid(height: int, width: int) -> dict[str, Tensor]:
    return weights() | {"pos_embed": torch.ones(1, 1 + height * width, 64)}


def doubled() -> dict[str, Tensor]:
    return {name: 2 * value for name, value in weights().items()}


def named(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights().items()}


CHECKPOINTS = [
    case("a pickle that runs a command", "holds no tensors", lambda path: path.write_bytes(pickle.dumps(Runs(), 2))),
    case("the same in a newer protocol", "holds no tensors", lambda path: path.write_bytes(pickle.dumps(Runs()))),
    saved("weights, and beside them an object that runs a command", "accepted", lambda: {**weights(), "x": Runs()}),
    case(
        "a pickle that changes a function of PyTorch",
        "sets attributes of a function",
        lambda path: path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."),
    ),
    saved(
        "a whole module instead of its weights",
        "accepted: all of the file",
        lambda: architecture.seeded(ARCHITECTURE, None, 0),
    ),
    saved("a whole module of another network", "no weights of a vision transformer", lambda: torch.nn.Linear(2, 2)),
    case("empty file", "0 bytes", lambda path: path.write_bytes(b"")),
    case("an error page instead of weights", "a web page", lambda path: path.write_text("<html>404</html>")),
    case("an answer of a server in XML", "a web page", lambda path: path.write_text('<?xml version="1.0"?><Error/>')),
    case("a text", "begins with 'Not Found'", lambda path: path.write_text("Not Found")),
    case(
        "a Git LFS pointer",
        "git lfs pull",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ),
    case("a TorchScript program", "a TorchScript program", program, "model.pt"),
    case("an ONNX model", "an ONNX model", lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x062.15.0:")),
    case("compressed with gzip", "Unpack it", lambda path: path.write_bytes(gzip.compress(b"weights"))),
    case("a Keras file", "HDF5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(9))),
    case("the config.json beside the weights", "model.safetensors", lambda path: path.write_text('{"depth": 12}')),
    case("cut short", "cut short", cut),
    case("an empty zip archive", "an empty zip archive", lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18))),
    case("a zip archive of a folder", "holds run7/weights.pth. Unpack it", zipped),
    case("safetensors, cut short", "cut short", cut_safetensors, "weights.safetensors"),
    case("safetensors by another name", "accepted", lambda path: save_file(weights(), path)),
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
    saved("an empty dict", "holds no tensors", dict),
    saved("a list", "holds no tensors", lambda: [1, 2]),
    saved("a dict without tensors", "holds no tensors", lambda: {"epoch": 3}),
    saved("a dict that holds itself", "holds no tensors", itself),
    saved("names that are numbers", "by names that are known", lambda: dict(enumerate(weights().values()))),
    changed("a tensor of another shape", "expected [64]", norm__weight=torch.ones(65)),
    changed("a tensor that claims 4 TB", "expected [64]", norm__weight=torch.ones(1).expand(1 << 40)),
    changed("a tensor missing", "norm.bias [64] is missing", norm__bias=None),
    changed("a parameter too many", "prompts [2] is unexpected", prompts=torch.ones(2)),
    saved(
        "of another architecture",
        "Set model.architecture to vit_tiny_patch16_224",
        lambda: architecture.build("vit_tiny_patch16_224").state_dict(),
    ),
    saved(
        "of a Swin transformer",
        "a Swin transformer",
        lambda: {f"layers.{i}.blocks.0.attn.qkv.weight": torch.ones(3) for i in range(40)},
    ),
    changed("NaN", "NaN or infinite values in norm.bias", norm__bias=one_value(float("nan"))),
    changed("infinite", "NaN or infinite values in norm.bias", norm__bias=one_value(float("inf"))),
    changed("beyond float32", "NaN or infinite", norm__bias=one_value(0).double().fill_(1e300)),
    changed("integers", "torch.int64", norm__bias=torch.zeros(64, dtype=torch.int64)),
    changed("complex numbers", "torch.complex64", norm__bias=torch.zeros(64, dtype=torch.complex64)),
    changed("a sparse tensor", "torch.sparse_coo", norm__bias=torch.ones(64).to_sparse()),
    changed("a tensor without data", "meta", norm__bias=torch.empty(64, device="meta")),
    saved("a position embedding of 12 x 8 patches", "no square grid", lambda: changed_grid(12, 8)),
    saved("a position embedding of 96 pixels", "images of 96 pixels", lambda: changed_grid(6, 6)),
    saved("two sets of weights, neither known", "Set model.weights", lambda: {"mine": weights(), "yours": doubled()}),
    saved("fp16 weights", "accepted", lambda: as_type(torch.float16)),
    saved("bf16 weights", "accepted", lambda: as_type(torch.bfloat16)),
    changed(
        "with a classifier",
        "left out: head.bias, head.weight",
        head__weight=torch.ones(9, 64),
        head__bias=torch.ones(9),
    ),
    saved("a training checkpoint", "accepted: state_dict;", lambda: {"epoch": 3, "state_dict": named("module.")}),
    saved(
        "timm's training checkpoint with averaged weights",
        "accepted: state_dict_ema; not taken: state_dict; left out: epoch, args",
        lambda: {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": doubled(), "state_dict_ema": weights()},
    ),
    saved(
        "DINO's training checkpoint with `teacher`",
        "accepted: teacher.backbone; left out: student, head.mlp.0.weight",
        lambda: {"student": {}, "teacher": named("backbone.") | {"head.mlp.0.weight": torch.ones(2)}},
    ),
    case("safetensors", "accepted", lambda path: save_file(weights(), path), "weights.safetensors"),
]
