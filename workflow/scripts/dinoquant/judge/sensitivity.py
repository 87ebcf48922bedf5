"""Measure what each Linear alone costs the features and the k-NN accuracy once it is quantized, all else in float32."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from dinoquant.judge.fidelity import cosine
from dinoquant.judge.knn import predict
from dinoquant.recipes import onednn
from dinoquant.recipes.base import scripted
from dinoquant.recipes.int8.assemble import (
    FP32,
    KINDS,
    PATCHES,
    PER_TOKEN,
    STATIC,
    build_block,
    build_patches,
    require_plain,
)
from dinoquant.recipes.int8.calibration import Observed

COLUMNS = (
    "module",
    "kind",
    "block",
    "precision",
    "images",
    "cosine_mean",
    "cosine_p5",
    "knn_top1_drop",
    "knn_agreement",
    "macs",
    "parameters",
)
MEASURED = (STATIC, PER_TOKEN)
BATCH = 16

Change = tuple[str, str]  # a module's name, or "*." and a kind; and its precision
UNCHANGED: Change = ("", FP32)


@dataclass(frozen=True)
class Unit:
    """A Linear or the patch embedding, or all Linears of one kind."""

    module: str
    kind: str
    block: int | None
    macs: int  # multiply-adds for one image
    parameters: int


@torch.no_grad()
def units(model: Any, image: Tensor) -> list[Unit]:
    """Return the modules in order, then the kinds, which are named ``*.mlp.fc2``; ``image`` ``[1, 3, S, S]``."""
    rows: dict[str, int] = {}
    places = {PATCHES: (PATCHES, None)} | {
        f"blocks.{block}.{kind}": (kind, block) for block in range(len(model.blocks)) for kind in KINDS
    }
    hooks = [model.get_submodule(name).register_forward_hook(_count(name, rows)) for name in places]
    model(image)
    for hook in hooks:
        hook.remove()
    found = []
    for name, (kind, block) in places.items():
        module: Any = model.get_submodule(name)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        found.append(Unit(name, kind, block, rows[name] * module.weight.numel(), parameters))
    for kind in (PATCHES, *KINDS):
        group = [unit for unit in found if unit.kind == kind]
        macs, parameters = sum(unit.macs for unit in group), sum(unit.parameters for unit in group)
        found.append(Unit(f"*.{kind}", kind, None, macs, parameters))
    return found


@torch.no_grad()
def changed_features(model: Any, images: Tensor, seen: Mapping[str, Observed]) -> dict[Change, Tensor]:
    """Return the features ``[N, D]`` of every model in which one module, or one kind, has another precision.

    Under `UNCHANGED` are those of the float32 model. Each block is rebuilt once for each of its Linears and precisions.
    What comes before it is the float32 model's and is computed once; what comes after is run for each.

    :param images: float32 ``[N, 3, S, S]``, normalised.
    :param seen: of `observe`.

    Raises UserError for a transformer built otherwise than DINO's.
    """
    require_plain(model)
    # The float32 blocks take most of the time; on AMD oneDNN needs half of what MKL, PyTorch's default, does.
    floats: Any = onednn.quantize(model, {}, None).module
    found: dict[Change, Tensor] = {}

    def finish(tokens: Tensor, done: int) -> Tensor:
        """Return the features of tokens that have passed the first ``done`` blocks."""
        rest = nn.Sequential(*floats.blocks[done:], floats.norm)
        return _in_batches(lambda batch: floats.forward_head(rest(batch)), tokens)

    embedding = _embedding(model)
    for precision in MEASURED:
        changed = _with_patches(embedding, precision, seen[PATCHES])
        features = finish(_in_batches(changed.forward_features, images), 0)
        found[PATCHES, precision] = found[f"*.{PATCHES}", precision] = features
    tokens = _in_batches(embedding.forward_features, images)
    together = {(kind, precision): tokens for kind in KINDS for precision in MEASURED}
    for number, block in enumerate(tqdm(model.blocks, desc="one change at a time", unit="block", disable=None)):
        for (kind, precision), before in together.items():
            changed_block = _changed_block(block, number, kind, precision, seen)
            found[f"blocks.{number}.{kind}", precision] = finish(_in_batches(changed_block, tokens), number + 1)
            together[kind, precision] = _in_batches(changed_block, before)
        tokens = _in_batches(floats.blocks[number], tokens)
    done = len(model.blocks)
    found |= {(f"*.{kind}", precision): finish(last, done) for (kind, precision), last in together.items()}
    found[UNCHANGED] = finish(tokens, done)
    return found


def rows(
    listed: Sequence[Unit],
    features: Mapping[Change, Tensor],
    labels: NDArray[np.int64],
    bank: tuple[NDArray[np.float32], NDArray[np.int64]],
    config: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each unit and precision, modules first.

    Drop and agreement compare with the float32 model's predictions for the same images: points and percent; empty where
    no bank has labels.

    :param features: of `changed_features`.
    :param labels: of the images ``[N]``.
    :param bank: features ``[Nb, D]`` and labels of the float32 model's bank, which is not perturbed.
    :param config: ``k`` and ``temperature`` of the k-NN.

    Raises UserError if a feature is zero, or the bank has fewer than ``k`` images.
    """
    bank_features, bank_labels = bank
    arrays = {change: tensor.numpy() for change, tensor in features.items()}
    classes = int(max(bank_labels.max(initial=-1), labels.max())) + 1

    def classify(change: Change) -> NDArray[np.int64]:
        knn = {"classes": classes, "k": config["k"], "temperature": config["temperature"]}
        return predict(bank_features, bank_labels, arrays[change], **knn)[:, 0]

    reference = classify(UNCHANGED) if len(bank_labels) else None
    for unit in listed:
        for precision in MEASURED:
            change = (unit.module, precision)
            cosines = cosine(arrays[change], arrays[UNCHANGED])
            drop: float | None = None
            agreement: float | None = None
            if reference is not None:
                predicted = classify(change)
                drop = 100 * (int((reference == labels).sum()) - int((predicted == labels).sum())) / len(labels)
                agreement = 100 * float((predicted == reference).mean())
            yield {
                "module": unit.module,
                "kind": unit.kind,
                "block": unit.block,
                "precision": precision,
                "images": len(labels),
                "cosine_mean": float(cosines.mean()),
                "cosine_p5": float(np.percentile(cosines, 5)),
                "knn_top1_drop": drop,
                "knn_agreement": agreement,
                "macs": unit.macs,
                "parameters": unit.parameters,
            }


def _count(name: str, rows: dict[str, int]) -> Callable[[Any, Any, Tensor], None]:
    def hook(module: Any, inputs: Any, output: Tensor) -> None:
        rows[name] = output.numel() // len(module.weight)

    return hook


def _with_patches(embedding: Any, precision: str, seen: Observed) -> Any:
    """Return a copy with the patch embedding in ``precision``."""
    changed = copy.deepcopy(embedding)
    changed.set_submodule(PATCHES, scripted(build_patches(embedding.get_submodule(PATCHES), precision, seen, True)))
    return changed


def _changed_block(block: nn.Module, number: int, kind: str, precision: str, seen: Mapping[str, Observed]) -> nn.Module:
    """Return the block with one Linear in ``precision`` and everything else in float32."""
    precisions = dict.fromkeys(KINDS, FP32) | {kind: precision}
    built, _ = build_block(block, precisions, {name: seen[f"blocks.{number}.{name}"] for name in KINDS}, FP32, True)
    return scripted(built)


def _embedding(model: Any) -> Any:
    """Return a copy of the model whose ``forward_features`` ends before the first block."""
    embedding = copy.deepcopy(model)
    embedding.blocks, embedding.norm = nn.Sequential(), nn.Identity()
    return embedding


def _in_batches(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    return torch.cat([function(batch) for batch in torch.split(tokens, BATCH)])
