"""Put weights into a network: strictly, at the size of image that they were trained at."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.network import architecture
from dinoquant.network.checkpoint.names import foreign, timm_names
from dinoquant.network.checkpoint.sets import some

# What features are computed from, in any vision transformer that timm or DINO have: none of it may be left out.
FEATURES = re.compile(
    r"(patch_embed|blocks|norm|norm_pre|fc_norm|attn_pool|neck|rope|rope_embed|layers|stages|encoder)\.|"
    r"(cls_token|pos_embed|reg_token|register_tokens|storage_tokens|dist_token)"
)
# Parameters that belong to losses and to masked training.
OF_TRAINING = re.compile(
    r"(mask(ed)?_(token|embed)|decoder_pos_embed|logit_(scale|bias)|temperature|center|queue(_ptr)?)$"
)
JAX_PATCHES = re.compile(r"(.*)embedding/kernel$")
JAX_BLOCKS = re.compile(r"encoderblock_(\d+)/")
# Words of timm's names by the width of the network, to look among fewer of them.
SIZES = {64: "test", 192: "tiny", 384: "small", 512: "medium", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}
SUGGESTED = 4


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load ``state`` into ``model`` as float32 and return the names of the tensors that features do not need.

    Where the position embedding is of another size of image, the model takes that size.

    Raises UserError naming every tensor that is missing, unexpected, of another shape, or not finite.
    """
    dropped = sorted(name for name in state if _is_left_out(name, state[name], model))
    kept = {name: value for name, value in state.items() if name not in dropped}
    needed = timm_names(kept, model)
    expected = model.state_dict()
    if problems := _misfits(expected, needed):
        raise UserError(f"model.checkpoint does not fit model.architecture: {some(problems)}. {_advice(kept, model)}")
    if strange := _without_values(needed):
        raise UserError(
            f"model.checkpoint holds tensors that are no plain real numbers: {some(strange)}. Expected are the float "
            "weights: of a quantized or sparse model, those that it was made from."
        )
    if "pos_embed" in needed:
        _take_size(model, needed["pos_embed"].shape[1])
    converted = {name: value.to(torch.float32) for name, value in needed.items()}
    broken = [name for name, value in converted.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"model.checkpoint holds NaN or infinite values in {some(broken)}. "
            "Use a checkpoint from before the training diverged, or a whole copy if this one was damaged on its way."
        )
    model.load_state_dict(converted)
    return dropped


def is_jax(content: Mapping[object, object]) -> bool:
    """Return whether these are the names of a vision transformer of Google's JAX code."""
    names = [name for name in content if isinstance(name, str)]
    return any(map(JAX_PATCHES.match, names)) and any(map(JAX_BLOCKS.search, names))


def fit_jax(model: nn.Module, arrays: Mapping[str, Tensor], path: Path) -> list[str]:
    """Load the arrays of a ``.npz`` of JAX through timm's own reader, as `fit` does.

    Raises UserError if any parameter is left without a value or does not fit.
    """
    kernel = next(value for name, value in arrays.items() if JAX_PATCHES.match(name))
    positions = next((value for name, value in arrays.items() if name.endswith("pos_embedding")), None)
    blocks = {match[1] for name in arrays if (match := JAX_BLOCKS.search(name))}
    found = (int(kernel.shape[-1]), len(blocks), int(kernel.shape[0]))
    reader = getattr(model, "load_pretrained", None)
    if found != (expected := architecture.dimensions(model)) or reader is None:
        other = _described(*expected) if expected else f"a {type(model).__name__}"
        raise UserError(
            f"model.checkpoint does not fit model.architecture: it is {_described(*found)}, and the architecture "
            f"{other}. Set model.architecture to the name that it has at timm."
        )
    if positions is not None and positions.ndim == 3:
        _take_size(model, positions.shape[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        try:
            reader(str(path))
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"model.checkpoint does not fit model.architecture: timm's reader of JAX's weights says {error}."
            ) from error
    empty = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if empty:
        raise UserError(
            f"model.checkpoint does not fit model.architecture: it has no finite values for {some(empty)}. "
            "Set model.architecture to the name that it has at timm."
        )
    return sorted(name for name in arrays if re.search(r"(^|/)(head|pre_logits)/", name))


def _is_left_out(name: str, value: Tensor, model: nn.Module) -> bool:
    """Return whether a tensor is a head's, of whatever name, or of use in training only."""
    if OF_TRAINING.match(name):
        return True
    own = {parameter.partition(".")[0] for parameter in model.state_dict()}
    module, dot, _ = name.partition(".")
    return not FEATURES.match(name) and module not in own and (bool(dot) or value.ndim == 0)


def _take_size(model: nn.Module, positions: int) -> None:
    """Make the model take images of as many patches as a position embedding has, the other tokens apart."""
    patch, own = architecture.patch_size(model), int(model.state_dict()["pos_embed"].shape[1])
    if positions == own:
        return
    if patch is None or architecture.dimensions(model) is None:
        raise UserError(
            f"model.checkpoint has a position embedding of {positions} tokens, and model.architecture one of {own}, "
            "which cannot be changed here. Set model.architecture to the name for the checkpoint's size of image."
        )
    patches = positions - own + (architecture.side(model) // patch) ** 2
    side = math.isqrt(max(patches, 0))
    if not side or side * side != patches:
        raise UserError(
            f"model.checkpoint has a position embedding of {patches} patches, which is no square grid, and the images "
            "here are square. Interpolate it first: timm.layers.resample_abs_pos_embed(pos_embed, "
            "new_size=[SIDE, SIDE], old_size=[HEIGHT, WIDTH])."
        )
    architecture.resize(model, side * patch)


def _misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        *(f"{name} {_shape(expected[name])} is missing" for name in expected if name not in state),
        *(f"{name} {_shape(state[name])} is unexpected" for name in state if name not in expected),
        *(
            f"{name} has shape {_shape(state[name])}, expected {_shape(expected[name])}"
            for name in expected
            if name in state and not _same_shape(name, expected[name], state[name])
        ),
    ]


def _without_values(state: Mapping[str, Tensor]) -> list[str]:
    return [
        *(f"{name} ({value.dtype})" for name, value in state.items() if not value.is_floating_point()),
        *(
            f"{name} ({value.layout}, {value.device})"
            for name, value in state.items()
            if value.layout != torch.strided or value.is_meta
        ),
    ]


def _same_shape(name: str, expected: Tensor, value: Tensor) -> bool:
    """Compare shapes; the number of positions is the image size's, which is another question."""
    if name == "pos_embed":
        return value.ndim == expected.ndim and value.shape[::2] == expected.shape[::2]
    return value.shape == expected.shape


def _advice(state: Mapping[str, Tensor], model: nn.Module) -> str:
    """Say which architectures these tensors belong to, if there are any; else what they look like."""
    if kind := foreign(list(state)):
        return kind
    patches = state.get("patch_embed.proj.weight")
    blocks = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    if patches is None or patches.ndim != 4 or not blocks:
        return "Expected is the state dict of the whole network."
    found = (patches.shape[0], len(blocks), patches.shape[-1])
    names = _likely(state, *found)
    if names:
        return f"It is {_described(*found)}. Set model.architecture to {' or '.join(names)}."
    if found == architecture.dimensions(model):
        return "All else fits: the checkpoint is not whole, or the network that it is of was changed."
    return f"It is {_described(*found)}, which no architecture of timm is that has its tensors."


def _described(width: int, blocks: int, patch: int) -> str:
    return f"a vision transformer of width {width} with {blocks} blocks and patches of {patch} pixels"


def _likely(state: Mapping[str, Tensor], width: int, blocks: int, patch: int) -> list[str]:
    """Return names of timm's whose networks have exactly these tensors, of whatever number of positions."""
    size = SIZES.get(width, "")
    names = [name for name in timm.list_models(["vit_*", "deit*", "test_vit*"]) if size in name]
    names = [name for name in names if f"patch{patch}_" in name or "patch" not in name]
    fitting = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=0)
        if architecture.dimensions(model) != (width, blocks, patch):
            continue
        own, named = model.state_dict(), timm_names(state, model)
        if not _misfits_on_meta(own, named):
            same_grid = "pos_embed" not in own or own["pos_embed"].shape == named["pos_embed"].shape
            fitting.append((not same_grid, len(name), name))
    return [name for *_, name in sorted(fitting)[:SUGGESTED]]


def _misfits_on_meta(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return expected.keys() != state.keys() or not all(_same_shape(name, expected[name], state[name]) for name in state)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
