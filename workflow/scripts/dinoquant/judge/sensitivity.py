"""Measure what each Linear alone costs the features and the k-NN accuracy once it is quantized, all else in float32."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from dinoquant.judge.knn import predict
from dinoquant.judge.paired import cosine
from dinoquant.recipes import onednn
from dinoquant.recipes.anatomy.description import KINDS, Block
from dinoquant.recipes.anatomy.families import anatomy_of
from dinoquant.recipes.base import scripted
from dinoquant.recipes.int8.assemble import FP32, PER_TOKEN, STATIC, build_block, build_patches
from dinoquant.recipes.int8.calibration import Observed

MEASURED = (STATIC, PER_TOKEN)
BATCH = 16

Change = tuple[str, str]  # a module's name, or "*." and a kind; and its precision
UNCHANGED: Change = ("", FP32)


class Row(TypedDict):
    """What one change alone does, in `sensitivity.csv`; images whose prediction changed are counted against fp32's."""

    module: str
    kind: str
    block: int | None
    precision: str
    images: int
    cosine_mean: float
    cosine_p5: float
    knn_top1_drop: float | None  # points; None where no bank has labels
    knn_agreement: float | None  # percent; likewise
    macs: int
    parameters: int


COLUMNS = tuple(Row.__annotations__)


class Knn(TypedDict):
    """How images are classified."""

    k: int
    temperature: float


@dataclass(frozen=True)
class Unit:
    """A Linear or the patch embedding, or all Linears of one kind."""

    module: str
    kind: str
    block: int | None
    macs: int  # multiply-adds for one image
    parameters: int


@torch.no_grad()
def units(model: nn.Module, image: Tensor) -> list[Unit]:
    """Return the modules in order, then the kinds, which are named ``*.mlp.fc2``; ``image`` ``[1, 3, S, S]``."""
    network = anatomy_of(model)
    macs: dict[str, int] = {}
    hooks = [model.get_submodule(name).register_forward_hook(_count(name, macs)) for name in network.targets]
    model(image)
    for hook in hooks:
        hook.remove()
    positions: list[tuple[str, int | None]] = [(network.patches, None)]
    positions += [(kind, block) for block in range(network.depth) for kind in network.kinds]
    modules = []
    for name, (kind, block) in zip(network.targets, positions, strict=True):
        parameters = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        modules.append(Unit(name, kind, block, macs[name], parameters))
    groups = []
    for kind in (network.patches, *network.kinds):
        group = [unit for unit in modules if unit.kind == kind]
        total, parameters = sum(unit.macs for unit in group), sum(unit.parameters for unit in group)
        groups.append(Unit(f"*.{kind}", kind, None, total, parameters))
    return modules + groups


@torch.no_grad()
def changed_features(model: nn.Module, images: Tensor, seen: Mapping[str, Observed]) -> dict[Change, Tensor]:
    """Return the features ``[N, D]`` of every model in which one module, or one kind, has another precision.

    Under `UNCHANGED` are those of the float32 model. Each block is rebuilt once for each of its Linears and precisions.
    What comes before it is the float32 model's and is computed once; what comes after is run for each.

    :param images: float32 ``[N, 3, S, S]``, normalised.
    :param seen: of `observe`.

    Raises UserError for a transformer built otherwise than DINO's.
    """
    network = anatomy_of(model)
    convolution, blocks = network.patch_embedding(), network.blocks()
    # The float32 blocks take most of the time; on AMD oneDNN needs half of what MKL, PyTorch's default, does.
    floats = anatomy_of(onednn.quantize(model, {}).module)
    layers = floats.layers()
    features: dict[Change, Tensor] = {}

    def finish(tokens: Tensor, done: int) -> Tensor:
        """Return the features of tokens that have passed the first ``done`` blocks."""

        def rest(batch: Tensor) -> Tensor:
            for layer in layers[done:]:
                batch = layer(batch)
            return floats.head(batch)

        return _in_batches(rest, tokens)

    for precision in MEASURED:
        patches = scripted(build_patches(convolution, precision, seen[network.patches], portable=True))
        changed = anatomy_of(network.rebuilt(patches=patches))
        features[network.patches, precision] = finish(_in_batches(changed.embed, images), 0)
        features[f"*.{network.patches}", precision] = features[network.patches, precision]
    tokens = _in_batches(network.embed, images)
    together = {(kind, precision): tokens for kind in KINDS for precision in MEASURED}
    for number, block in enumerate(tqdm(blocks, desc="one change at a time", unit="block", disable=None)):
        observed = {kind: seen[network.name(number, kind)] for kind in KINDS}
        for (kind, precision), before in together.items():
            changed_block = _changed_block(block, kind, precision, observed)
            change = network.name(number, kind), precision
            features[change] = finish(_in_batches(changed_block, tokens), number + 1)
            together[kind, precision] = _in_batches(changed_block, before)
        tokens = _in_batches(layers[number], tokens)
    done = len(blocks)
    features |= {(f"*.{kind}", precision): finish(last, done) for (kind, precision), last in together.items()}
    features[UNCHANGED] = finish(tokens, done)
    return features


def rows(
    listed: Sequence[Unit],
    features: Mapping[Change, Tensor],
    labels: NDArray[np.int64],
    bank: tuple[NDArray[np.float32], NDArray[np.int64]],
    config: Knn,
) -> Iterator[Row]:
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
        k, temperature = config["k"], config["temperature"]
        votes = predict(bank_features, bank_labels, arrays[change], classes=classes, k=k, temperature=temperature)
        return votes[:, 0]

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


def _count(name: str, macs: dict[str, int]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear | nn.Conv2d)
        macs[name] = output.numel() // len(module.weight) * module.weight.numel()

    return hook


def _changed_block(block: Block, kind: str, precision: str, seen: Mapping[str, Observed]) -> nn.Module:
    """Return the block with one Linear in ``precision`` and everything else in float32."""
    precisions = dict.fromkeys(KINDS, FP32) | {kind: precision}
    built, _ = build_block(block, precisions, seen, FP32, portable=True)
    return scripted(built)


def _in_batches(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    return torch.cat([function(batch) for batch in torch.split(tokens, BATCH)])
