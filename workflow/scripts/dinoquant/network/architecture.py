"""Build the float vision transformer that everything else is derived from and compared with."""

import difflib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer

from dinoquant.errors import UserError

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


class Info(TypedDict):
    """What later steps must know of the float32 model: the content of ``info.json``."""

    architecture: str
    image_size: int
    mean: list[float]
    std: list[float]
    feature_dim: int
    patch_size: int
    prefix_tokens: int
    class_token: bool
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


def build(architecture: str, image_size: int | None = None) -> VisionTransformer:
    """Return timm's network ``architecture`` without classifier, in eval mode, with arbitrary weights.

    :param image_size: side in pixels; None keeps the architecture's.

    Raises UserError for an unknown name, a network that is no vision transformer, or an impossible size.
    """
    _require_known(architecture)
    model = timm.create_model(architecture, pretrained=False, num_classes=0)
    if not isinstance(model, VisionTransformer):
        raise UserError(
            f"model.architecture {architecture!r} is a {type(model).__name__}, not a plain vision transformer. "
            "Choose one that timm builds as VisionTransformer: the vit_* and deit_* names without hybrids."
        )
    resize(model, image_size)
    return model.eval().requires_grad_(False)


def resize(model: VisionTransformer, image_size: int | None) -> None:
    """Make ``model`` take images of ``image_size`` pixels a side, interpolating its position embedding; None: as it is.

    Raises UserError if the patches would not tile the image.
    """
    if image_size is None or image_size == side(model):
        return
    patch = int(model.patch_embed.patch_size[0])
    if image_size % patch:
        below = image_size // patch * patch
        nearest = " or ".join(str(size) for size in (below, below + patch) if size)
        raise UserError(
            f"model.image_size is {image_size}, which patches of {patch} pixels do not tile. Nearest sizes: {nearest}."
        )
    model.set_input_size(img_size=(image_size, image_size))


def side(model: VisionTransformer) -> int:
    """Return the side in pixels of the square images that ``model`` takes."""
    return int(model.patch_embed.img_size[0])


def seeded(architecture: str, image_size: int | None, seed: int) -> VisionTransformer:
    """Return ``build`` with timm's random initialisation from ``seed``; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(architecture, image_size)


def pixel_statistics(
    model: VisionTransformer, architecture: str, normalization: str
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


def restore(architecture: str, image_size: int, state_dict: str | Path) -> VisionTransformer:
    """Return the network whose weights `export_fp32` wrote to ``state_dict``."""
    model = build(architecture, image_size)
    model.load_state_dict(torch.load(state_dict, map_location="cpu", weights_only=True))
    return model


def info(
    model: VisionTransformer,
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
    return Info(
        architecture=architecture,
        image_size=side(model),
        mean=mean,
        std=std,
        feature_dim=model.num_features,
        patch_size=int(model.patch_embed.patch_size[0]),
        prefix_tokens=model.num_prefix_tokens,
        class_token=model.has_class_token,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        normalization=normalization,
        note=" ".join(notes) or None,
        substitute=substitute,
        weights=loaded.weights if loaded else None,
        other_weights=loaded.other_weights if loaded else [],
        beside_weights=loaded.beside if loaded else [],
        dropped=loaded.dropped if loaded else [],
    )


def _require_known(architecture: str) -> None:
    tagged = timm.list_pretrained()
    if timm.is_model(architecture) and (architecture in tagged or "." not in architecture):
        return
    near = difflib.get_close_matches(architecture, [*timm.list_models(), *tagged], n=5)
    raise UserError(
        f"model.architecture {architecture!r} is not a name that timm {timm.__version__} knows. "
        + (f"Did you mean: {', '.join(near)}?" if near else "See timm.list_models() for the names.")
    )
