"""Build the float network that everything else is derived from and compared with."""

import difflib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from dinoquant.errors import UserError
from dinoquant.network.merge import merge
from dinoquant.recipes import FEATURES, TOKENS
from dinoquant.recipes.output import PLAIN, GivesTokens, token_count, with_output

log = logging.getLogger("dinoquant")


@dataclass(frozen=True)
class Loaded:
    """What was taken from a checkpoint, and what was not."""

    weights: str
    """Where the weights stand in the file: its keys and the prefix of the names, joined by dots."""
    other_weights: list[str] = field(default_factory=list)
    """The other sets of weights of such a network that the file holds."""
    beside: list[str] = field(default_factory=list)
    """The keys of the file that hold no weights of such a network."""
    dropped: list[str] = field(default_factory=list)
    """Tensors beside the weights, or among them, that features do not need."""
    notes: list[str] = field(default_factory=list)
    """What was done to the weights, in sentences."""


class Described(TypedDict):
    """What a network is built from."""

    architecture: str
    image_size: int
    pooling: str
    """How features are made from tokens: "token", "avg", or another of timm's names; "architecture" as timm does."""
    output: str
    """What it gives: "features" ``[B, D]``, or "tokens" ``[B, N, D]``, all that are behind its last norm."""


class Info(Described):
    """What later steps must know of the float32 model: the content of ``info.json``."""

    mean: list[float]
    std: list[float]
    feature_dim: int
    patch_size: int | None
    tokens: int | None
    """Of an image behind the last norm: prefix tokens, then the patches, row by row; None for other networks."""
    prefix_tokens: int
    class_token: bool
    """Whether there is one that attends to the patches as in a plain vision transformer."""
    parameters: int
    normalization: str
    """"imagenet" (DINO's protocol) or "architecture" (timm's statistics for these weights)."""
    note: str | None
    """What a reader of the results has to know of the weights and the pixels, in sentences."""
    substitute: str | None
    """What stands in for trained weights."""
    weights: str | None
    """Which set of weights was taken from the checkpoint; None for seeded weights."""
    other_weights: list[str]
    """The other sets of weights that the checkpoint holds."""
    beside_weights: list[str]
    """The keys of what else it holds."""
    dropped: list[str]
    """Its tensors that features do not need."""


def build(architecture: str, image_size: int | None = None, pooling: str | None = None) -> nn.Module:
    """Return timm's network ``architecture`` without classifier, in eval mode, with arbitrary weights.

    :param image_size: side in pixels; None keeps the architecture's.
    :param pooling: how features are made from tokens: "token" (the class token), "avg" (the mean of the patches),
        "architecture" (as timm does) or another of timm's names; None is the class token for DINO's models, as their
        authors do, and "architecture" for others.

    Raises UserError for an unknown name, a pooling that the network does not have, or an impossible size.
    """
    _require_known(architecture)
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0)
    except RuntimeError as error:  # a name of an earlier version that stands for one that is gone
        raise _unknown(architecture) from error
    if getattr(model, "dynamic_img_size", False):
        # For images of any size, positions would be computed anew for each image; for one size they are constants.
        model = timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=False)
    _set_pooling(model, architecture, pooling)
    resize(model, image_size)
    return model.eval().requires_grad_(False)


def seeded(architecture: str, image_size: int | None, seed: int, pooling: str | None = None) -> nn.Module:
    """Return `build`'s network, merged, with timm's random initialisation; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return merge(build(architecture, image_size, pooling))


def like(described: Described) -> nn.Module:
    """Return the network of a description, merged as `export_fp32` writes it, with arbitrary weights."""
    network = merge(build(described["architecture"], described["image_size"], described["pooling"]))
    return with_output(network, described["output"])


def restore(described: Described, state_dict: str | Path) -> nn.Module:
    """Return the network whose weights `export_fp32` wrote to ``state_dict``."""
    model = like(described)
    model.load_state_dict(torch.load(state_dict, map_location="cpu", weights_only=True))
    return model


def resize(model: nn.Module, image_size: int | None) -> None:
    """Make ``model`` take images of ``image_size`` pixels a side, interpolating its position embedding; None: as it is.

    Raises UserError if the patches would not tile the image, or the model takes one size only.
    """
    if image_size is None or image_size == side(model):
        return
    if (patch := patch_size(model)) and image_size % patch:
        below = image_size // patch * patch
        nearest = " or ".join(str(size) for size in (below, below + patch) if size)
        raise UserError(
            f"model.image_size is {image_size}, which patches of {patch} pixels do not tile. Nearest sizes: {nearest}."
        )
    either: Any = model
    if hasattr(model, "set_input_size"):
        either.set_input_size(img_size=(image_size, image_size))
        return
    if either.pretrained_cfg.get("fixed_input_size"):
        raise UserError(
            f"model.image_size is {image_size}, but timm's {type(model).__name__} takes images of {side(model)} pixels "
            "only. Leave it out."
        )
    either.pretrained_cfg["input_size"] = (3, image_size, image_size)


def side(model: nn.Module) -> int:
    """Return the side in pixels of the square images that ``model`` takes."""
    either: Any = model
    size = getattr(getattr(either, "patch_embed", None), "img_size", None)
    return int((size or either.pretrained_cfg["input_size"])[-1])


def patch_size(model: nn.Module) -> int | None:
    """Return the side in pixels of the patches, None for a network without."""
    size: Any = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    return None if size is None else int(size[0] if isinstance(size, tuple) else size)


def dimensions(model: nn.Module) -> tuple[int, int, int] | None:
    """Return width, number of blocks and patch size of a plain vision transformer, None for another network."""
    if not isinstance(model, PLAIN):
        return None
    return int(model.embed_dim), len(model.blocks), int(model.patch_embed.patch_size[0])


def pixel_statistics(
    model: nn.Module, architecture: str, normalization: str
) -> tuple[list[float], list[float], str | None]:
    """Return mean and standard deviation of the pixels for a normalization, and a note where timm lists others."""
    imagenet = (list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
    configured: Any = model.pretrained_cfg
    native = (list(configured["mean"]), list(configured["std"]))
    mean, std = imagenet if normalization == "imagenet" else native
    if (mean, std) == native:
        return mean, std, None
    note = (
        f"Images are normalised with ImageNet's mean and standard deviation, but timm lists mean {native[0]} and "
        f"std {native[1]} for {architecture}. If its weights were trained with those, set model.normalization to "
        '"architecture": features and accuracies change.'
    )
    log.warning("%s", note)
    return mean, std, note


def info(
    model: nn.Module,
    architecture: str,
    normalization: str,
    *,
    substitute: str | None,
    loaded: Loaded | None = None,
) -> Info:
    """Return what later steps must know of the model, ready for JSON.

    :param substitute: what stands in for trained weights, or None.
    :param loaded: what was taken from the checkpoint, or None.
    """
    mean, std, note = pixel_statistics(model, architecture, normalization)
    notes = [*([note] if note else []), *(loaded.notes if loaded else [])]
    any_model: Any = model
    return Info(
        architecture=architecture,
        image_size=side(model),
        pooling=_pooling(model) or "architecture",
        mean=mean,
        std=std,
        feature_dim=int(any_model.head_hidden_size),
        output=TOKENS if isinstance(model, GivesTokens) else FEATURES,
        patch_size=patch_size(model),
        tokens=token_count(model),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        class_token=isinstance(model, PLAIN) and model.cls_token is not None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        normalization=normalization,
        note=" ".join(notes) or None,
        substitute=substitute,
        weights=loaded.weights if loaded else None,
        other_weights=loaded.other_weights if loaded else [],
        beside_weights=loaded.beside if loaded else [],
        dropped=loaded.dropped if loaded else [],
    )


def _set_pooling(model: nn.Module, architecture: str, pooling: str | None) -> None:
    current = _pooling(model)
    has_token = isinstance(model, PLAIN) and model.cls_token is not None
    if pooling is None:
        pooling = "token" if "dino" in architecture and current and has_token else "architecture"
    if pooling in ("architecture", current):
        return
    if current is None or (pooling == "token" and not has_token) or pooling not in ("token", "avg"):
        reason = "has no class token" if isinstance(model, PLAIN) and not has_token else "makes its features in one way"
        raise UserError(
            f"model.pooling is {pooling!r}, but {architecture} {reason}. Set model.pooling to architecture."
        )
    # Not when it is created: with another pooling timm moves the last norm behind it, and checkpoints fit no more.
    pooled: Any = model
    pooled.reset_classifier(0, pooling)


def _pooling(model: nn.Module) -> str | None:
    """Return how a plain vision transformer makes its features from tokens; None where it is not to be chosen."""
    if isinstance(model, PLAIN) and not isinstance(model, VisionTransformerDistilled):
        return str(model.global_pool)
    return None


def _require_known(architecture: str) -> None:
    tagged = timm.list_pretrained()
    if timm.is_model(architecture) and (architecture in tagged or "." not in architecture):
        return
    raise _unknown(architecture)


def _unknown(architecture: str) -> UserError:
    names = {*timm.list_models(), *timm.list_pretrained()} - {architecture}
    near = difflib.get_close_matches(architecture, sorted(names), n=5)
    return UserError(
        f"model.architecture {architecture!r} is not a name that timm {timm.__version__} knows. "
        + (f"Did you mean: {', '.join(near)}?" if near else "See timm.list_models() for the names.")
    )
