"""Count the multiply-adds of a network, part by part."""

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from dinoquant.network.architecture import side
from dinoquant.recipes.anatomy.description import QKV, SOFTMAX
from dinoquant.recipes.anatomy.families import described
from dinoquant.recipes.base import has_softmax


def macs(model: nn.Module) -> dict[str, int]:
    """Return the multiply-adds for one image of every part that has some, by the part's name in the audit.

    Those are the Linears, the patch embedding, and the two products of each attention, which the audit knows as its
    softmax. PyTorch counts them on shapes alone: nothing is computed. Norms, exponentials and additions are left out.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta", requires_grad=False) for name, tensor in tensors.items()}
    image = torch.empty(1, 3, side(model), side(model), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, shapes, image)
    root = f"{type(model).__name__}."
    total = {
        name.removeprefix(root): sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    children: dict[str, int] = {}
    for name, operations in total.items():
        parent = name.rpartition(".")[0]
        children[parent] = children.get(parent, 0) + operations
    own = {name: operations - children.get(name, 0) for name, operations in total.items()}
    # PyTorch counts a multiply-add as two operations.
    return {_part(model, name): operations // 2 for name, operations in own.items() if operations}


def needed(model: nn.Module, counted: Mapping[str, int]) -> dict[str, int]:
    """Return which of the multiply-adds that `macs` counted the features depend on.

    A model that reads its features from the first tokens needs the others in its last block as keys and values alone:
    all else that becomes of them there is never read, and some variants do not compute it.
    """
    network = described(model)
    if network is None:
        return dict(counted)
    read = Fraction(network.tokens_read, network.tokens)
    share = {network.name(network.depth - 1, kind): read for kind in (*network.kinds, SOFTMAX)}
    share[network.name(network.depth - 1, QKV)] = (2 + read) / 3
    return {name: int(count * share.get(name, Fraction(1))) for name, count in counted.items()}


def _part(model: nn.Module, name: str) -> str:
    return f"{name}.softmax" if has_softmax(model.get_submodule(name)) else name
