"""Find the sets of weights in a training file, and choose one as the authors of such files do."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.network.checkpoint.names import foreign, normalised
from dinoquant.network.checkpoint.unpickling import Placeholder

DEEPEST = 8  # containers in containers
# Averaged weights are what is evaluated: timm's load_checkpoint (use_ema), DINO's eval_knn.py (teacher), I-JEPA.
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged|teacher)(_|$)|^target_encoder$")
# The others of a pair of which the first is evaluated: MoCo's and BYOL's second encoder, DINO's student.
SECOND = re.compile(r"(^|_)(student|momentum|k|target|predictor)(_|$)")
TIMM_ORDER = ("state_dict_ema", "model_ema", "state_dict", "model")
WHOLE = "all of the file"
# The keys that lead to a container of tensors, and the tensors.
Tree = tuple[tuple[str, ...], dict[str, Tensor]]


@dataclass(frozen=True)
class WeightSet:
    """Weights of one network: where they stand in the file, and the tensors by their names in the network."""

    path: tuple[str, ...]
    """The keys that lead to its container."""
    label: str
    tensors: dict[str, Tensor]
    fitting: int
    """How many of them the network has, of the same shape."""
    strays: list[str]
    """Names of the tensors in the same container that belong to no set."""


@dataclass(frozen=True)
class Choice:
    """The set of weights that is taken, the labels of the others, the keys of what else the file holds, and a note."""

    taken: WeightSet
    others: list[str]
    beside: list[str]
    notes: list[str]


def choose(content: object, model: nn.Module, asked: str | None) -> Choice:
    """Return the set of weights to take for a network.

    :param content: what the file holds.
    :param asked: the label of a set (``model.weights``) or a part of it; None prefers averaged weights.

    Raises UserError if there are no weights of such a network, none of that label, or several of equal rank.
    """
    trees = list(_trees(content, (), frozenset()))
    expected = model.state_dict()
    sets = [one for path, tensors in trees for one in _sets(path, normalised(tensors, model), expected)]
    if not sets:
        raise _no_weights(content, trees)
    most = max(one.fitting for one in sets)
    taken = _preferred([one for one in sets if 2 * one.fitting >= most]) if asked is None else _asked(sets, asked)
    holding = {path[0] for path, tensors in trees if path and any(path == one.path for one in sets)}
    whole_module = isinstance(content, Placeholder) and trees[0][0] == ()
    beside = [] if whole_module else _beside(content, holding)
    notes = []
    if asked is None and _rank(taken.label)[0] and (unread := _unread_averages(trees, sets, len(expected))):
        notes.append(
            f"Raw weights were taken ({taken.label}). The checkpoint holds what is called averaged weights, too "
            f"({unread}), but in a form that is not known here: to have these, save them as a state dict."
        )
    return Choice(taken, [one.label for one in sets if one is not taken], beside, notes)


def _unread_averages(trees: list[Tree], sets: list[WeightSet], size: int) -> str | None:
    """Return where many tensors are called averaged that are in no set: nameless lists, or names without dots."""
    strays = {one.path: one.strays for one in sets}
    for path, tensors in trees:
        names = strays.get(path, list(tensors))
        called = [name for name in names if any(map(AVERAGED.search, [*path, *name.split(".")[:-1]]))]
        if 2 * len(called) >= size:
            return ".".join(path) or called[0]
    return None


def _beside(content: object, holding: set[str]) -> list[str]:
    """Return the keys of a file that hold neither weights of such a network nor a tensor."""
    keys = [str(key) for key, value in _children(content).items() if _tensor(value) is None]
    return [key for key in keys if key not in holding]


def _preferred(sets: list[WeightSet]) -> WeightSet:
    ranks = [(_rank(one.label), one) for one in sets]
    first = min(rank for rank, _ in ranks)
    candidates = [one for rank, one in ranks if rank == first]
    if any(not _equal(candidates[0].tensors, other.tensors) for other in candidates[1:]):
        raise UserError(
            "model.checkpoint holds several sets of weights, and none is known to be the one to use: "
            f"{', '.join(one.label for one in candidates)}. Set model.weights to one of them."
        )
    return candidates[0]


def _asked(sets: list[WeightSet], asked: str) -> WeightSet:
    exact = [one for one in sets if one.label == asked]
    partly = [one for one in sets if f".{asked}." in f".{one.label}."]
    if len(exact or partly) != 1:
        several = "which are more than one" if partly else "which is none of them"
        raise UserError(
            f"model.weights: found {asked!r}, {several}. The sets of weights in model.checkpoint: "
            f"{', '.join(one.label for one in sets)}."
        )
    return (exact or partly)[0]


def _rank(label: str) -> tuple[int, int]:
    parts = label.split(".")
    kind = 0 if any(map(AVERAGED.search, parts)) else 2 if any(map(SECOND.search, parts)) else 1
    return kind, TIMM_ORDER.index(parts[0]) if parts[0] in TIMM_ORDER else len(TIMM_ORDER)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    if any(value.layout != torch.strided or value.is_meta for value in (*one.values(), *other.values())):
        return False  # which cannot be compared, nor taken
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _sets(path: tuple[str, ...], tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[WeightSet]:
    """Yield the sets of weights among tensors: those that share what stands in front of the network's own names."""
    prefixes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for n in range(len(parts)):
            prefixes[".".join(parts[:n]) + "." * (n > 0)] += ".".join(parts[n:]) in expected
    # A norm of a head, say, has a name that the network has, too: not a network.
    least = max(*prefixes.values(), len(expected) // 4, 2) / 2 if prefixes else 0
    found = sorted((prefix for prefix, count in prefixes.items() if count >= least), key=len, reverse=True)
    members: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in found}
    strays = []
    for name, value in tensors.items():
        prefix = next((prefix for prefix in found if name.startswith(prefix)), None)
        if prefix is None:
            strays.append(name)
        else:
            members[prefix][name.removeprefix(prefix)] = value
    for prefix, state in members.items():
        fitting = sum(name in expected and expected[name].shape == value.shape for name, value in state.items())
        label = ".".join([*path, *prefix.split(".")]).strip(".")
        yield WeightSet(path, label or WHOLE, state, fitting, strays)


def _trees(content: object, path: tuple[str, ...], entered: frozenset[int]) -> Iterator[Tree]:
    """Yield every container of tensors with the keys that lead to it; one that holds itself is entered once."""
    if id(content) in entered or len(path) > DEEPEST:
        return
    if isinstance(content, Placeholder) and (module := _module(content, frozenset())):
        yield path, module
        return
    children = _children(content)
    tensors = {str(key): tensor for key, value in children.items() if (tensor := _tensor(value)) is not None}
    if tensors:
        yield path, tensors
    for key, value in children.items():
        yield from _trees(value, (*path, str(key)), entered | {id(content)})


def _children(content: object) -> dict[object, object]:
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, (list, tuple)):
        return dict(enumerate(content))
    if isinstance(content, Placeholder):
        return {**content.entries, **(content.state if isinstance(content.state, dict) else {})}
    return {}


def _module(module: Placeholder, entered: frozenset[int]) -> dict[str, Tensor]:
    """Return the tensors of a pickled `torch.nn.Module` by name, from what would have become its attributes."""
    state = module.state
    if not isinstance(state, dict) or "_modules" not in state or id(module) in entered:
        return {}
    own = {**_children(state.get("_parameters")), **_children(state.get("_buffers"))}
    tensors = {str(name): value for name, value in own.items() if isinstance(value, Tensor)}
    for name, child in _children(state["_modules"]).items():
        if isinstance(child, Placeholder):
            tensors |= {f"{name}.{inner}": value for inner, value in _module(child, entered | {id(module)}).items()}
    return tensors


def _tensor(value: object) -> Tensor | None:
    """Return a tensor, or an array that was pickled, which is a placeholder with the array's bytes."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, Placeholder):
        return None
    order: Literal["C", "F"]
    # As protocols up to 4 have an array, or as the fifth does.
    match (type(value).__name__, value.state, value.arguments):
        case ("_reconstruct", (_, tuple() as shape, kind, fortran, bytes() as content), _):
            order = "F" if fortran else "C"
        case ("_frombuffer", _, (bytes() | bytearray() as content, kind, tuple() as shape, ("F" | "C") as order)):
            pass
        case _:
            return None
    match kind:
        case Placeholder(arguments=("f2" | "f4" | "f8" as name, *_), state=(_, "<" | ">" as byte_order, *_)):
            if len(content) == math.prod(shape) * int(name[1]):
                array = np.frombuffer(content, byte_order + name).reshape(shape, order=order)
                return torch.from_numpy(array.astype(f"={name}"))
    return None


def _no_weights(content: object, trees: list[Tree]) -> UserError:
    names = [name for _, tensors in trees for name in tensors]
    if not names:
        keys = [str(key) for key in _children(content)]
        kind = f"a {type(content).__name__}"
        if isinstance(content, Placeholder):
            kind = f"an object called {type(content).__module__}.{type(content).__name__}"
        found = f"{kind} with {some(keys)}" if keys else f"{kind} without content"
        return UserError(
            f"model.checkpoint holds no tensors. Found {found}; expected a mapping from names to tensors, alone or "
            "inside of a training checkpoint. Save it in Python: torch.save(model.state_dict(), FILE)"
        )
    advice = (
        foreign(names) or "Expected are the names of timm, DINO or DINOv2, or of Hugging Face's or torchvision's ViT."
    )
    return UserError(
        f"model.checkpoint holds no weights of a vision transformer by names that are known. Found {len(names)} "
        f"tensors: {some(names, 5)}. {advice}"
    )


def some(names: Sequence[str], most: int = 10) -> str:
    """Return the first names of a list, and how many there are in all."""
    rest = f" and {len(names) - most} more ({len(names)} in all)" if len(names) > most else ""
    return "; ".join(names[:most]) + rest
