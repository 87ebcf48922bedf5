"""Put a vision transformer together anew, each Linear in the precision asked for, scales folded into its neighbours."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from dinoquant.errors import UserError
from dinoquant.recipes.base import Converted, scripted
from dinoquant.recipes.int8 import blocks
from dinoquant.recipes.int8.calibration import Observed
from dinoquant.recipes.int8.gptq import gptq
from dinoquant.recipes.patch_embedding import is_patch_embedding

STATIC, PER_TOKEN, BF16, FP32 = PRECISIONS = ("int8", "int8-per-token", "bf16", "fp32")
DTYPES = {BF16: torch.bfloat16, FP32: torch.float32}
SOFTMAX_BF16 = "products in bf16, in float32 where the processor emulates bf16; exponentials in float32"
PATCHES = "patch_embed.proj"
KINDS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # the Linears of a block, by their names in it
# SmoothQuant's exponent (arXiv:2211.10438): 1 moves all of an input channel's range into the weights, 0 none.
EXPONENTS = (0.4, 0.5, 0.6, 0.7, 0.8)
# Room above the calibration images' range where nothing bounds it; a LayerNorm's output is bounded by its own width.
MARGIN_CONTEXT = 1.2
CLIPS = torch.linspace(0.3, 1.0, 15).tolist()  # of the third largest channel's maximum
SPLIT_ABOVE = (1.5, 2.5)  # a channel is split where its maximum exceeds the clip this many times
EXTRA = 64  # channels at most; a multiple of what the product's inner loop takes
# What `assemble` knows of a block, outer parts first: only in a block of the right type is there an attn to look at.
PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "": lambda block: type(block) is TimmBlock,
    "attn": lambda attention: type(attention) is Attention and getattr(attention, "gate", None) is None,
    "attn.q_norm": lambda norm: isinstance(norm, nn.Identity),
    "attn.norm": lambda norm: isinstance(norm, nn.Identity),
    "norm1": lambda norm: isinstance(norm, nn.LayerNorm),
    "norm2": lambda norm: isinstance(norm, nn.LayerNorm),
    "mlp": lambda mlp: type(mlp) is Mlp,
    "mlp.norm": lambda norm: isinstance(norm, nn.Identity),
    "mlp.act": lambda activation: isinstance(activation, nn.GELU) and activation.approximate == "none",
}


@dataclass(frozen=True)
class Steps:
    """How a Linear's inputs become u8: ``x / (smooth * step) + zero_point``."""

    smooth: Tensor  # [in]
    step: float
    zero_point: int

    def round(self, inputs: Tensor) -> Tensor:
        """Return smoothed inputs rounded to the steps and clipped."""
        integers = torch.round(inputs / (self.smooth * self.step)) + self.zero_point
        return (integers.clamp_(0, 255) - self.zero_point) * self.step


@dataclass(frozen=True)
class Split:
    """How the outputs of a GELU become u8: clipped, what exceeds the clip going into copies of the channel."""

    clip: float
    copies: Tensor  # [in], int64, 0 for most

    @property
    def step(self) -> float:
        """Return the width of a step."""
        return (self.clip + blocks.GELU_MINIMUM) / 255

    @property
    def zero_point(self) -> int:
        """Return the u8 value of 0."""
        return round(blocks.GELU_MINIMUM / self.step)

    def round(self, inputs: Tensor) -> Tensor:
        """Return ``[..., in]`` rounded, clipped, and with the copies' channels behind: ``[..., in + copies]``."""
        return self._round(torch.cat([inputs, functional.gelu(inputs[..., self.source] - self.shift)], -1))

    def _round(self, values: Tensor) -> Tensor:
        integers = torch.round(values / self.step) + self.zero_point
        return (integers.clamp_(0, 255) - self.zero_point) * self.step

    @property
    def source(self) -> Tensor:
        """Return the channel that each copy is of."""
        return torch.repeat_interleave(self.copies)

    @property
    def shift(self) -> Tensor:
        """Return how much lower than its source each copy begins."""
        first = torch.cumsum(self.copies, 0) - self.copies
        number = torch.arange(int(self.copies.sum())) - first[self.source]
        return (number + 1) * self.clip


def assemble(
    model: Any,
    precisions: Mapping[str, str],
    seen: Mapping[str, Observed],
    attention: str = BF16,
    portable: bool = True,
) -> tuple[nn.Module, dict[str, Converted]]:
    """Return the model with every Linear in its precision, and what became of each part.

    :param precisions: one of `PRECISIONS` for each Linear and the patch embedding, by their names in ``model``.
    :param seen: what reached those that are `STATIC`; for others, used to round the weights better where given.
    :param attention: precision of the products of attention; its exponentials are float32.
    :param portable: round the weights of int8 so that processors without VNNI multiply them exactly, too.

    Raises UserError for a transformer built otherwise than DINO's.
    """
    require_plain(model)
    changed = copy.deepcopy(model)
    became: dict[str, Converted] = {}
    if precisions[PATCHES] != FP32:
        convolution = model.get_submodule(PATCHES)
        assert isinstance(convolution, nn.Conv2d)
        patches = build_patches(convolution, precisions[PATCHES], seen.get(PATCHES), portable)
        changed.set_submodule(PATCHES, scripted(patches))
        became[PATCHES] = _converted(patches.linear, precisions[PATCHES], portable)
    rebuilt = []
    for number, block in enumerate(tqdm(model.blocks, desc="quantizing", unit="block", disable=None)):
        prefix = f"blocks.{number}."
        of = {name: precisions[prefix + name] for name in KINDS}
        built, notes = build_block(block, of, {name: seen.get(prefix + name) for name in of}, attention, portable)
        rebuilt.append(built)
        for name, linear in zip(of, (built.qkv, built.proj, built.fc1, built.fc2), strict=True):
            if of[name] != FP32:
                became[prefix + name] = _converted(linear, of[name], portable, notes.get(name, ""))
        if attention == BF16:
            became[f"{prefix}attn.softmax"] = Converted(SOFTMAX_BF16, 0)
    if model.global_pool == "token":
        rebuilt[-1] = blocks.LastBlock(rebuilt[-1])
    changed.blocks = scripted(blocks.Blocks(rebuilt))
    return changed, became


def targets(model: nn.Module) -> list[str]:
    """Return the names of the patch embedding and of all Linears in ``model``."""
    return [PATCHES, *(name for name, module in model.named_modules() if isinstance(module, nn.Linear))]


def require_plain(model: Any) -> None:
    """Raise UserError, naming the part, if `assemble` could not rebuild ``model``."""
    convolution = model.get_submodule(PATCHES)
    if not is_patch_embedding(convolution) or len(set(convolution.kernel_size)) > 1:
        raise UserError(
            f"{PATCHES} is not a convolution over separate square patches, which this recipe needs: {convolution}"
        )
    for number, block in enumerate(model.blocks):
        for name, fits in PLAIN.items():
            part = block.get_submodule(name) if name else block
            if not fits(part):
                raise UserError(
                    f"blocks.{number}{'.' if name else ''}{name} is a {type(part).__name__} that this recipe cannot "
                    "rebuild: it knows pre-norm blocks of LayerNorm, softmax attention and GELU, as DINO has them. "
                    "Use int8-dynamic or int8-weight-only for this model."
                )


def static_steps(linear: nn.Linear, seen: Observed, margin: float = 1.0, portable: bool = False) -> Steps:
    """Return the smoothing of SmoothQuant and the range that move the features least on the calibration images."""
    low, high = seen.minimum * margin, seen.maximum * margin
    largest = torch.maximum(high, -low).clamp_min(1e-5)
    columns = linear.weight.abs().amax(0).clamp_min(1e-5)
    expected = functional.linear(seen.inputs, linear.weight)
    candidates = []
    for exponent in EXPONENTS:
        smooth = largest**exponent / columns ** (1 - exponent)
        smooth /= smooth.log().mean().exp()
        steps = _between((low / smooth).min(), (high / smooth).max(), smooth)
        integers, scale = blocks.quantize_weight(linear.weight * smooth, portable)
        found = functional.linear(steps.round(seen.inputs), integers * scale[:, None])
        candidates.append((seen.error(found - expected), exponent, steps))
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def colour_steps(seen: Observed, colours: int) -> tuple[Tensor, Tensor]:
    """Return the lowest value of each colour ``[colours]`` and the width of its 255 steps.

    A photograph's colours had 256 values before they were normalised, and the steps hit them all: nothing is rounded.
    """
    low = seen.minimum.view(colours, -1).amin(1)
    high = seen.maximum.view(colours, -1).amax(1)
    return low, ((high - low) / 255).clamp_min(1e-12)


def split_range(linear: nn.Linear, seen: Observed) -> Split:
    """Return the clip and the channels to split that move the features least on the calibration images.

    Trained transformers have a few channels behind the GELU that reach tens of times as far as all others ("massive
    activations", arXiv:2402.17762). Their copies have the same weights and a lower bias: the GELU of each begins where
    the one before is clipped, and together they reach as far, in the same fine steps.
    """
    expected = functional.linear(seen.inputs, linear.weight)
    maximum = seen.maximum.clamp_min(blocks.GELU_MINIMUM)
    top = maximum.sort(descending=True).values
    candidates = []
    for clip in [float(top[0]), *(share * float(top[min(2, len(top) - 1)]) for share in CLIPS)]:
        for threshold in SPLIT_ABOVE:
            copies = torch.where(maximum > threshold * clip, torch.ceil(maximum / clip) - 1, 0).long()
            split = Split(clip, copies)
            if int(copies.sum()) <= EXTRA:
                weight = torch.cat([linear.weight, linear.weight[:, split.source]], 1)
                error = seen.error(functional.linear(split.round(seen.inputs), weight) - expected)
                candidates.append((error, int(copies.sum()), clip, split))
    return min(candidates, key=lambda candidate: candidate[:3])[3]


def _between(low: Tensor, high: Tensor, smooth: Tensor) -> Steps:
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    step = max(float(high - low) / 255, 1e-12)
    return Steps(smooth, step, round(-float(low) / step))


def build_patches(convolution: nn.Conv2d, precision: str, seen: Observed | None, portable: bool) -> blocks.Patches:
    """Return the patch embedding in a precision other than fp32; ``seen`` is needed for `STATIC`."""
    linear = _linear(convolution.weight.flatten(1), _bias(convolution))
    kernel = int(convolution.kernel_size[0])
    if precision != STATIC:
        return blocks.Patches(kernel, _plain(linear, precision, seen, portable), None, None)
    assert seen is not None
    colours = convolution.in_channels
    low, step = colour_steps(seen, colours)
    # Steps from the lowest value up have zero point 0; what that value adds to every product goes into the bias.
    lowest = low.repeat_interleave(linear.in_features // colours)
    raised = _linear(linear.weight, _bias(linear) + linear.weight @ lowest)
    steps = Steps(step.repeat_interleave(linear.in_features // colours), 1.0, 0)
    shifted = replace(seen, inputs=seen.inputs - lowest)
    gain, offset = 1 / step, 0.5 - low / step
    return blocks.Patches(kernel, _static(raised, steps, shifted, portable), gain[:, None, None], offset[:, None, None])


def build_block(
    block: Any, precisions: Mapping[str, str], seen: Mapping[str, Observed | None], attention: str, portable: bool
) -> tuple[blocks.Block, dict[str, str]]:
    """Return the block with each of `KINDS` in its precision, and by kind what is particular to it.

    :param precisions: by kind.
    :param seen: by kind; needed for `STATIC`.
    """
    norm1, norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
    heads = block.attn.num_heads
    proj, context_gain, context_offset = _after(
        block.attn.proj, precisions["attn.proj"], seen["attn.proj"], block.ls1, portable
    )
    qkv = _attention_scaled(block.attn.qkv, block.attn.head_dim, context_gain)
    qkv_options = {"result": "bfloat16" if attention == BF16 else "float32"}
    new_qkv = _behind_norm(norm1, qkv, precisions["attn.qkv"], seen["attn.qkv"], block.attn.qkv, portable, qkv_options)
    scaled_fc2 = _rows_scaled(block.mlp.fc2, _layer_scale(block.ls2))
    split: Split | None = None
    notes = {}
    fc1 = block.mlp.fc1
    fc1_options: dict[str, Any] = {"gelu": True}
    new_fc2: nn.Module
    if precisions["mlp.fc2"] == STATIC:
        observed = seen["mlp.fc2"]
        assert observed is not None
        split = split_range(block.mlp.fc2, observed)
        if extra := len(split.source):
            padding = -extra % EXTRA
            fc1, scaled_fc2 = _widened(fc1, scaled_fc2, split, padding)
            notes["mlp.fc2"] = f", {int((split.copies > 0).sum())} outlier channels split into {extra} more"
        fc1_options |= {"result": "uint8", "result_step": split.step, "result_zero_point": split.zero_point}
        new_fc2 = _static_split(scaled_fc2, split, observed, portable)
    else:
        new_fc2 = _plain(scaled_fc2, precisions["mlp.fc2"], seen["mlp.fc2"], portable, after_gelu=True)
    new_fc1 = _behind_norm(norm2, fc1, precisions["mlp.fc1"], seen["mlp.fc1"], block.mlp.fc1, portable, fc1_options)
    unfused = precisions["mlp.fc1"] != STATIC
    gain = 1 / split.step if split and unfused else 1.0
    offset = split.zero_point + 0.5 if split and unfused else 0.0
    linears = (new_qkv, proj, new_fc1, new_fc2)
    built = blocks.Block(
        heads, (norm1, norm2), linears, DTYPES[attention], context_offset, (unfused, gain, float(offset))
    )
    return built, notes


def _after(
    linear: nn.Linear, precision: str, seen: Observed | None, scale: nn.Module, portable: bool
) -> tuple[nn.Module, Tensor, float]:
    """Return the projection behind attention, what the values are to be multiplied with, and what is then added."""
    scaled = _rows_scaled(linear, _layer_scale(scale))
    if precision != STATIC:
        return _plain(scaled, precision, seen, portable), torch.ones(linear.in_features), 0.0
    assert seen is not None
    steps = static_steps(linear, seen, MARGIN_CONTEXT, portable=portable)
    return _static(scaled, steps, seen, portable), 1 / (steps.smooth * steps.step), steps.zero_point + 0.5


def _behind_norm(
    norm: nn.LayerNorm,
    linear: nn.Linear,
    precision: str,
    seen: Observed | None,
    searched: nn.Linear,
    portable: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    """Return the Linear behind a LayerNorm, which in place becomes one that writes the steps.

    :param searched: the Linear before its outputs were scaled, for which ``seen`` holds.
    """
    if precision != STATIC:
        return _plain(linear, precision, seen, portable)
    assert seen is not None
    steps = static_steps(searched, seen, portable=portable)
    gain = 1 / (steps.smooth * steps.step)
    norm.weight = nn.Parameter(norm.weight * gain, requires_grad=False)
    norm.bias = nn.Parameter(norm.bias * gain + steps.zero_point + 0.5, requires_grad=False)
    return _static(linear, steps, seen, portable, **options)


def _static(linear: nn.Linear, steps: Steps, seen: Observed, portable: bool, **options: Any) -> blocks.StaticLinear:
    integers, scale = _rounded(linear.weight * steps.smooth, steps.round(seen.inputs), portable)
    return blocks.StaticLinear(integers, scale * steps.step, _bias(linear), steps.zero_point, **options)


def _static_split(linear: nn.Linear, split: Split, seen: Observed, portable: bool) -> blocks.StaticLinear:
    inputs = split.round(seen.inputs)
    inputs = functional.pad(inputs, (0, linear.in_features - inputs.shape[1]))
    integers, scale = _rounded(linear.weight, inputs, portable)
    return blocks.StaticLinear(integers, scale * split.step, _bias(linear), split.zero_point)


def _plain(
    linear: nn.Linear, precision: str, seen: Observed | None, portable: bool, after_gelu: bool = False
) -> nn.Module:
    """Return a Linear that needs nothing of its neighbours."""
    if precision in DTYPES:
        return blocks.FloatLinear(linear.weight, _bias(linear), DTYPES[precision])
    integers, scale = _rounded(linear.weight, seen.inputs if seen else None, portable)
    return blocks.TokenLinear(integers, scale, _bias(linear), after_gelu)


def _rounded(weight: Tensor, inputs: Tensor | None, portable: bool) -> tuple[Tensor, Tensor]:
    """Return int8 weights and their scales: for the ``inputs``, or each to the nearest where these are not known."""
    integers, scale = blocks.quantize_weight(weight, portable)
    return (integers if inputs is None else gptq(weight, scale, inputs, portable)), scale


def _widened(fc1: nn.Linear, fc2: nn.Linear, split: Split, padding: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the pair with the split channels' copies, and ``padding`` channels that are always 0."""
    rows = functional.pad(fc1.weight[split.source], (0, 0, 0, padding))
    lower = functional.pad(_bias(fc1)[split.source] - split.shift, (0, padding))
    columns = functional.pad(fc2.weight[:, split.source], (0, padding))
    wide1 = _linear(torch.cat([fc1.weight, rows]), torch.cat([_bias(fc1), lower]))
    return wide1, _linear(torch.cat([fc2.weight, columns], 1), _bias(fc2))


def _attention_scaled(qkv: nn.Linear, head_width: int, context_gain: Tensor) -> nn.Linear:
    """Return `qkv` with what attention expects of the queries, and the values in the projection's steps."""
    width = qkv.out_features // 3
    queries = torch.full((width,), math.log2(math.e) / math.sqrt(head_width))
    return _rows_scaled(qkv, torch.cat([queries, torch.ones(width), context_gain]))


def _rows_scaled(linear: nn.Linear, factor: Tensor | None) -> nn.Linear:
    if factor is None:
        return linear
    return _linear(linear.weight * factor[:, None], _bias(linear) * factor)


def _layer_scale(module: nn.Module) -> Tensor | None:
    return module.gamma.detach() if isinstance(module, LayerScale) else None


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return layer.bias if layer.bias is not None else torch.zeros(layer.weight.shape[0])


def _converted(linear: Any, precision: str, portable: bool, note: str = "") -> Converted:
    if precision in DTYPES:
        return Converted(precision + note, linear.stored_bytes())
    scales = {STATIC: "int8 static", PER_TOKEN: "int8 per-token"}[precision]
    where = "in pairs that every x86 multiplies exactly" if portable else "multiplied as float32 without VNNI"
    return Converted(f"{scales}, per-channel weights, {where}{note}", linear.stored_bytes())
