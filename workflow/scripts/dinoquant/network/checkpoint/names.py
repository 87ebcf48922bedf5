"""Bring other libraries' names of the parts of a vision transformer to those of timm and DINOv2."""

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.network import architecture

# What wrappers of PyTorch put into names, anywhere: DistributedDataParallel, compile, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# DINOv2 trains its blocks in chunks; the second number counts through all of them.
CHUNKED = re.compile(r"(^|\.)blocks\.\d+\.(\d+\.)")
# Averaged copies beside the weights, one by one.
EMA_COPIES = re.compile(r"(^|\.)ema_(?=(?:patch_embed|blocks|norm)\.|cls_token$|pos_embed$)")

Renames = tuple[tuple[str, str], ...]
# Hugging Face transformers: ViT, DeiT, ViTMAE, ViTMSN, Dinov2, Dinov2WithRegisters. The first that fits wins.
TRANSFORMERS: Renames = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.distillation_token$", "dist_token"),
    (r"embeddings\.register_tokens$", "register_tokens"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.(weight|bias)$", r"norm.\1"),
)
# Its DINOv3ViT, to Meta's names, in which the MLP's parts depend on whether it is SwiGLU.
DINOV3: Renames = tuple(
    (rf"(?:(?:encoder|model)\.)?{pattern}", replacement)
    for pattern, replacement in (
        (r"embeddings\.(cls|mask)_token$", r"\1_token"),
        (r"embeddings\.register_tokens$", "storage_tokens"),
        (r"embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"layer\.(\d+)\.attention\.q_proj\.", r"blocks.\1.attn.query."),
        (r"layer\.(\d+)\.attention\.k_proj\.", r"blocks.\1.attn.key."),
        (r"layer\.(\d+)\.attention\.v_proj\.", r"blocks.\1.attn.value."),
        (r"layer\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
        (r"layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (r"layer\.(\d+)\.mlp\.up_proj\.", r"blocks.\1.mlp.fc1."),
        (r"layer\.(\d+)\.mlp\.down_proj\.", r"blocks.\1.mlp.fc2."),
        (r"layer\.(\d+)\.", r"blocks.\1."),
        (r"norm\.(weight|bias)$", r"norm.\1"),
    )
)
DINOV3_SWIGLU: Renames = (
    (r"(?:(?:encoder|model)\.)?layer\.(\d+)\.mlp\.gate_proj\.", r"blocks.\1.mlp.w1."),
    (r"(?:(?:encoder|model)\.)?layer\.(\d+)\.mlp\.up_proj\.", r"blocks.\1.mlp.w2."),
    (r"(?:(?:encoder|model)\.)?layer\.(\d+)\.mlp\.down_proj\.", r"blocks.\1.mlp.w3."),
    *DINOV3,
)
TORCHVISION: Renames = (
    (r"class_token$", "cls_token"),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.ln\.", "norm."),
)
# A name that only this scheme has, by which it is known.
SCHEMES: tuple[tuple[str, Renames], ...] = (
    (r"(^|\.)embeddings\.patch_embeddings\.projection\.weight$", TRANSFORMERS),
    (r"(^|\.)layer\.0\.mlp\.gate_proj\.weight$", DINOV3_SWIGLU),
    (r"(^|\.)layer\.0\.attention\.q_proj\.weight$", DINOV3),
    (r"(^|\.)encoder\.layers\.encoder_layer_0\.ln_1\.weight$", TORCHVISION),
)
# Prefixes of what timm's own converter knows: CLIP, BEiT-3, AIMv2, RADIO.
TIMM_KNOWS = ("visual.", "beit3.", "preprocessor.", "radio_model.")
META = re.compile(r"^register_tokens$|^blocks\.\d+\.mlp\.w12\.")
QKV = re.compile(r"(.*\.attn\.)(query|key|value)\.(weight|bias)$")

# Schemes that are not converted: a name that only they have, what they are, and what to do.
FOREIGN: tuple[tuple[str, str, str], ...] = (
    (
        r"\.lora_[AB]\.|\.lora_(down|up)\.",
        "adapters (LoRA) beside the weights that they change",
        "Merge them before saving: model.merge_and_unload() in peft",
    ),
    (
        r"(^|\.)vision_model\.(encoder|embeddings)\.",
        "a CLIP or SigLIP model in Hugging Face's names",
        "Expected are timm's names: timm publishes the same weights as vit_*_clip_* and vit_*_siglip_*",
    ),
    (
        r"(^|\.)visual\.(transformer\.resblocks|conv1)\.|(^|\.)transformer\.resblocks\.",
        "a CLIP model of open_clip",
        "Set model.architecture to timm's name of its image tower, vit_*_clip_*",
    ),
    (
        r"(^|\.)layers\.\d+\.blocks\.\d+\.|relative_position_index$",
        "a Swin transformer or another one with windows",
        "Set model.architecture to timm's name of it, and use its names of weights",
    ),
    (
        r"relative_position_bias(_table)?$",
        "a BEiT, Swin or another transformer with relative positions",
        "Set model.architecture to timm's name of it, and use its names of weights",
    ),
    (
        r"(^|\.)(decoder_blocks|decoder\.decoder_layers)\.\d+\.",
        "the decoder of a masked autoencoder (MAE)",
        "Expected is its encoder: MAE publishes it apart, as mae_pretrain_vit_*.pth",
    ),
    (
        r"(^|\.)(layer[1-4]|stages?)\.\d+\.(conv1|conv_dw|dwconv|blocks|layers|bottleneck)",
        "a convolutional network such as ResNet or ConvNeXt",
        "Set model.architecture to timm's name of it, and use its names of weights",
    ),
    (
        r"(^|\.)(text_model|bert|word_embeddings|embed_tokens|lm_head|transformer\.h\.\d+)(\.|$)",
        "a language model",
        "Expected is a vision transformer",
    ),
    (
        r"(^|\.)encoder\.layer\.\d+\.|(^|\.)encoder\.layers\.\d+\.|(^|\.)layers\.\d+\.",
        "a transformer in the names of another library",
        "Expected are the names of timm or DINO, or those of Hugging Face's and torchvision's ViT",
    ),
)


def normalised(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under the names of DINOv2's code and timm's, whatever prefix they have.

    Wrappers are taken out of names, chunks numbered through, the known schemes of other libraries renamed, and their
    q, k and v joined. A step after which two tensors would have one name is not taken.
    """
    state = _renamed(tensors, {name: WRAPPERS.sub("", name) for name in tensors})
    state = _renamed(state, {name: CHUNKED.sub(r"\1blocks.\2", name) for name in state})
    state = _renamed(state, {name: EMA_COPIES.sub(r"\1ema.", name) for name in state})
    for mark, renames in SCHEMES:
        if any(re.search(mark, name) for name in state):
            state = _joined(_renamed(state, {name: _translated(name, renames) for name in state}))
    if any(name.startswith(TIMM_KNOWS) for name in state):
        part = {name: value for name, value in state.items() if name.startswith(TIMM_KNOWS)}
        state = {name: value for name, value in state.items() if name not in part} | timm_names(part, model)
    return state


def timm_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors as timm's own converter of checkpoints names and shapes them for this kind of network.

    It would interpolate patch and position embeddings without a word, too: it is told that they fit. And it would drop
    the biases of Meta's DINOv3 where the network has none: those that are not 0 stay, and do not fit.
    """
    if architecture.dimensions(model) is None:
        return dict(state)
    lost: dict[str, Tensor] = {}
    if "storage_tokens" in state and not {"blocks.0.attn.q_bias", "blocks.0.attn.qkv.bias"} & model.state_dict().keys():
        biases = {name: value for name, value in state.items() if name.endswith("attn.qkv.bias")}
        state = {name: value for name, value in state.items() if name not in biases}
        for name, value in biases.items():
            query, _, values = value.reshape(-1).tensor_split(3)  # keys have none: what the file has there is masked
            if query.any() or values.any():
                part = name.removesuffix("qkv.bias")
                lost |= {f"{part}q_bias": query, f"{part}v_bias": values}
    weight = next(value for value in [*state.values(), *model.parameters()] if value.ndim == 4)
    shapes = SimpleNamespace(
        patch_embed=SimpleNamespace(proj=SimpleNamespace(weight=weight)),
        pos_embed=None,
        head=None,
        get_parameter=model.get_parameter,
    )
    converter = sys.modules[type(model).__module__].checkpoint_filter_fn
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(converter).parameters else {}
    # The token of masked training is how timm knows Meta's DINOv2, whose registers and SwiGLU have other names.
    marked = {"mask_token": torch.empty(0)} if any(map(META.search, state)) else {}
    try:
        converted: dict[str, Tensor] = converter({**state, **marked}, shapes, **options)
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.checkpoint does not fit model.architecture: timm's converter of its names says {error}."
        ) from error
    return converted | lost


def foreign(names: Sequence[str]) -> str | None:
    """Return what these names of tensors belong to and what to do, or None if they are of no scheme known here."""
    for mark, kind, remedy in FOREIGN:
        if any(re.search(mark, name) for name in names):
            return f"Its names are those of {kind}. {remedy}."
    return None


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    one_to_one = len(set(names.values())) == len(state)
    return {names[name] if one_to_one else name: value for name, value in state.items()}


def _translated(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        new, changes = re.subn(rf"(^|\.){pattern}", lambda at: at[1] + at.expand(_shifted(replacement)), name)  # noqa: B023
        if changes:
            return new
    return name


def _shifted(replacement: str) -> str:
    """Return a replacement for a pattern that has one more group in front."""
    return re.sub(r"\\(\d)", lambda group: rf"\{int(group[1]) + 1}", replacement)


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with query, key and value of each block in one tensor; keys without a bias get one of 0."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    rest = {}
    for name, value in state.items():
        if match := QKV.match(name):
            parts[f"{match[1]}qkv.{match[3]}"][match[2]] = value
        else:
            rest[name] = value
    for name, part in parts.items():
        if name.endswith("bias") and part.keys() == {"query", "value"}:
            part["key"] = torch.zeros_like(part["query"])
        if len(part) == 3 and len({value.shape[1:] for value in part.values() if value.ndim}) == 1:
            rest[name] = torch.cat([part[key] for key in ("query", "key", "value")])
        else:
            rest |= {name.replace("qkv.", f"{key}."): value for key, value in part.items()}
    return rest
