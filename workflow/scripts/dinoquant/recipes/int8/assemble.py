"""Put a vision transformer together anew, each Linear in the precision asked for, scales folded into its neighbours."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from dinoquant.files import deflated
from dinoquant.recipes.anatomy.description import FC1, FC2, KINDS, PROJ, QKV, SOFTMAX, Block
from dinoquant.recipes.anatomy.families import anatomy_of
from dinoquant.recipes.base import Converted, scripted
from dinoquant.recipes.int8 import layers, transformer
from dinoquant.recipes.int8.calibration import Observed
from dinoquant.recipes.int8.coarse import coarsely, coarsest, set_coarsest, short
from dinoquant.recipes.int8.gptq import gptq
from dinoquant.recipes.int8.scales import EXTRA, Split, Steps, colour_steps, split_range, static_steps

STATIC, PER_TOKEN, BF16, FP32 = PRECISIONS = ("int8", "int8-per-token", "bf16", "fp32")
DTYPES = {BF16: torch.bfloat16, FP32: torch.float32}
SOFTMAX_BF16 = "products in bf16, in float32 where the processor emulates bf16; exponentials in float32"
# Room above the calibration images' range where nothing bounds it; a LayerNorm's output is bounded by its own width.
MARGIN_CONTEXT = 1.2


class Output(NamedTuple):
    """What a `layers.StaticLinear` gives: GELU or not, and in which type; uint8 in steps of its own."""

    result: str = "float32"
    gelu: bool = False
    step: float = 1.0
    zero_point: int = 0


FLOAT = Output()


def assemble(
    model: nn.Module,
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
    network = anatomy_of(model)
    convolution, blocks = network.patch_embedding(), network.blocks()
    became: dict[str, Converted] = {}
    patches: nn.Module | None = None
    if (precision := precisions[network.patches]) != FP32:
        embedding = build_patches(convolution, precision, seen.get(network.patches), portable)
        patches = scripted(embedding)
        became[network.patches] = _converted(convolution, embedding.linear, precision, portable)
    rebuilt = []
    for number, block in enumerate(tqdm(blocks, desc="quantizing", unit="block", disable=None)):
        names = {kind: network.name(number, kind) for kind in KINDS}
        of = {kind: precisions[name] for kind, name in names.items()}
        observed = {kind: seen.get(name) for kind, name in names.items()}
        built, notes = build_block(block, of, observed, attention, portable)
        rebuilt.append(built)
        for kind, linear in zip(KINDS, (built.qkv, built.proj, built.fc1, built.fc2), strict=True):
            if of[kind] != FP32:
                before = block.linears[kind]
                became[names[kind]] = _converted(before, linear, of[kind], portable, notes.get(kind, ""))
        if attention == BF16:
            became[network.name(number, SOFTMAX)] = Converted(SOFTMAX_BF16, "bf16", 0)
    if network.tokens_read < network.tokens:
        rebuilt[-1] = transformer.LastBlock(rebuilt[-1], network.tokens_read)
    return network.rebuilt(patches, scripted(transformer.Blocks(rebuilt))), became


def build_patches(convolution: nn.Conv2d, precision: str, seen: Observed | None, portable: bool) -> transformer.Patches:
    """Return the patch embedding in a precision other than fp32; ``seen`` is needed for `STATIC`."""
    linear = _linear(convolution.weight.flatten(1), _bias(convolution), coarsest(convolution))
    kernel = int(convolution.kernel_size[0])
    if precision != STATIC:
        return transformer.Patches(kernel, _plain(linear, precision, seen, portable), None, None)
    assert seen is not None
    colours = convolution.in_channels
    low, step = colour_steps(seen, colours)
    # Steps from the lowest value up have zero point 0; what that value adds to every product goes into the bias.
    lowest = low.repeat_interleave(linear.in_features // colours)
    raised = _linear(linear.weight, _bias(linear) + linear.weight @ lowest, coarsest(linear))
    steps = Steps(step.repeat_interleave(linear.in_features // colours), 1.0, 0)
    shifted = replace(seen, inputs=seen.inputs - lowest)
    gain, offset = 1 / step, 0.5 - low / step
    return transformer.Patches(
        kernel, _static(raised, steps, shifted, portable), gain[:, None, None], offset[:, None, None]
    )


def build_block(
    block: Block, precisions: Mapping[str, str], seen: Mapping[str, Observed | None], attention: str, portable: bool
) -> tuple[transformer.Block, dict[str, str]]:
    """Return the block with each of its Linears in its precision, and by kind what is particular to it.

    :param precisions: by kind.
    :param seen: by kind; needed for `STATIC`.
    """
    norm1, norm2 = map(copy.deepcopy, block.norms)
    proj, context_gain, context_offset = _after(
        block.linears[PROJ], precisions[PROJ], seen[PROJ], block.scales[0], portable
    )
    qkv = _attention_scaled(block, context_gain)
    # Queries and keys are turned in float32.
    qkv_output = Output("bfloat16" if attention == BF16 and block.rotation is None else "float32")
    new_qkv = _behind_norm(norm1, qkv, precisions[QKV], seen[QKV], block.linears[QKV], portable, qkv_output)
    mlp = _swiglu if block.gated else _gelu
    wide_fc1, fc1_output, new_fc2, hidden, notes = mlp(block, precisions, seen, portable)
    new_fc1 = _behind_norm(norm2, wide_fc1, precisions[FC1], seen[FC1], block.linears[FC1], portable, fc1_output)
    linears = (new_qkv, proj, new_fc1, new_fc2)
    turns = block.rotation.turns if block.rotation else None
    built = transformer.Block(block.heads, (norm1, norm2), linears, DTYPES[attention], context_offset, hidden, turns)
    return built, notes


class Mlp(NamedTuple):
    """An MLP whose second Linear is built, which decides what the first has to give."""

    fc1: nn.Linear
    output: Output
    fc2: nn.Module
    hidden: tuple[str, float, float]  # the activation that `transformer.Block` applies, and what makes steps of it
    notes: dict[str, str]


def _gelu(block: Block, precisions: Mapping[str, str], seen: Mapping[str, Observed | None], portable: bool) -> Mlp:
    fc1, fc2 = block.linears[FC1], block.linears[FC2]
    scaled = _rows_scaled(fc2, block.scales[1])
    unfused = "" if precisions[FC1] == STATIC else "gelu"
    if precisions[FC2] != STATIC:
        plain = _plain(scaled, precisions[FC2], seen[FC2], portable, after_gelu=True)
        return Mlp(fc1, Output(gelu=True), plain, (unfused, 1.0, 0.0), {})
    observed = seen[FC2]
    assert observed is not None
    split = split_range(fc2, observed)
    notes = {}
    if extra := len(split.source):
        fc1, scaled = _widened(fc1, scaled, split, -extra % EXTRA)
        notes[FC2] = f", {int((split.copies > 0).sum())} outlier channels split into {extra} more"
    steps = (1 / split.step, split.zero_point + 0.5) if unfused else (1.0, 0.0)
    output = Output("uint8", True, split.step, split.zero_point)
    return Mlp(fc1, output, _static_split(scaled, split, observed, portable), (unfused, *steps), notes)


def _swiglu(block: Block, precisions: Mapping[str, str], seen: Mapping[str, Observed | None], portable: bool) -> Mlp:
    """Return the MLP; values are multiplied last, so that they can be in the second Linear's steps."""
    fc1 = block.linears[FC1]
    fc2, gain, offset = _after(block.linears[FC2], precisions[FC2], seen[FC2], block.scales[1], portable)
    return Mlp(_rows_scaled(fc1, torch.cat([torch.ones_like(gain), gain])), FLOAT, fc2, ("swiglu", 1.0, offset), {})


def _after(
    linear: nn.Linear, precision: str, seen: Observed | None, scale: Tensor | None, portable: bool
) -> tuple[nn.Module, Tensor, float]:
    """Return a Linear behind a product with values, what these are to be multiplied with, and what is then added."""
    scaled = _rows_scaled(linear, scale)
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
    output: Output,
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
    return _static(linear, steps, seen, portable, output)


def _static(
    linear: nn.Linear, steps: Steps, seen: Observed, portable: bool, output: Output = FLOAT
) -> layers.StaticLinear:
    smoothed = _linear(linear.weight * steps.smooth, _bias(linear), coarsest(linear))
    return _static_rounded(smoothed, steps.round(seen.inputs), seen, steps, portable, output)


def _static_split(linear: nn.Linear, split: Split, seen: Observed, portable: bool) -> layers.StaticLinear:
    inputs = split.round(seen.inputs)
    inputs = functional.pad(inputs, (0, linear.in_features - inputs.shape[1]))
    return _static_rounded(linear, inputs, seen, split, portable, FLOAT)


def _static_rounded(
    linear: nn.Linear, inputs: Tensor, seen: Observed, steps: Steps | Split, portable: bool, output: Output
) -> layers.StaticLinear:
    """Return the Linear, its weights rounded for the ``inputs``, which are in ``steps`` already."""
    step, zero_point = steps.step, steps.zero_point
    if (most := coarsest(linear)) is None:
        integers, scale = _rounded(linear.weight, inputs, portable)
        return layers.StaticLinear(integers, scale * step, _bias(linear), zero_point, *output)
    integers, scale, shift = coarsely(linear.weight, most, inputs, seen.rows, portable)
    return layers.StaticLinear(integers, short(scale * step), short(_bias(linear) - shift), zero_point, *output)


def _plain(
    linear: nn.Linear, precision: str, seen: Observed | None, portable: bool, after_gelu: bool = False
) -> nn.Module:
    """Return a Linear that needs nothing of its neighbours."""
    if precision in DTYPES:
        return layers.FloatLinear(linear.weight, _bias(linear), DTYPES[precision])
    integers, scale = _rounded(linear.weight, seen.inputs if seen else None, portable)
    return layers.TokenLinear(integers, scale, _bias(linear), after_gelu)


def _rounded(weight: Tensor, inputs: Tensor | None, portable: bool) -> tuple[Tensor, Tensor]:
    """Return int8 weights and their scales: for the ``inputs``, or each to the nearest where these are not known."""
    integers, scale = layers.quantize_weight(weight, portable)
    return (integers if inputs is None else gptq(weight, scale, inputs, portable)), scale


def _widened(fc1: nn.Linear, fc2: nn.Linear, split: Split, padding: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the pair with the split channels' copies, and ``padding`` channels that are always 0."""
    rows = functional.pad(fc1.weight[split.source], (0, 0, 0, padding))
    lower = functional.pad(_bias(fc1)[split.source] - split.shift, (0, padding))
    columns = functional.pad(fc2.weight[:, split.source], (0, padding))
    most = coarsest(fc1)
    if most is not None:
        most = torch.cat([most, functional.pad(most[split.source], (0, padding), value=1.0)])
    wide1 = _linear(torch.cat([fc1.weight, rows]), torch.cat([_bias(fc1), lower]), most)
    return wide1, _linear(torch.cat([fc2.weight, columns], 1), _bias(fc2), coarsest(fc2))


def _attention_scaled(block: Block, context_gain: Tensor) -> nn.Linear:
    """Return `qkv` with what attention expects of queries and keys, and the values in the projection's steps."""
    qkv, width = block.linears[QKV], len(context_gain)
    queries = torch.full((width,), math.log2(math.e) / math.sqrt(block.head_width))
    scaled = _rows_scaled(qkv, torch.cat([queries, torch.ones(width), context_gain]))
    if block.rotation is None or not block.rotation.halves:
        return scaled
    # Pairs become neighbours. Queries and keys are only multiplied with each other: their common order does not matter.
    order = torch.arange(3 * width)
    order[: 2 * width] = order[: 2 * width].view(-1, 2, block.head_width // 2).transpose(1, 2).flatten()
    most = coarsest(scaled)
    return _linear(scaled.weight[order], scaled.bias[order], None if most is None else most[order])


def _rows_scaled(linear: nn.Linear, factor: Tensor | None) -> nn.Linear:
    if factor is None:
        return linear
    most = coarsest(linear)
    most = None if most is None else most * factor.abs()
    return _linear(linear.weight * factor[:, None], _bias(linear) * factor, most)


def _linear(weight: Tensor, bias: Tensor, most: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    if most is not None:
        set_coarsest(linear, most)
    return linear


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return layer.bias if layer.bias is not None else torch.zeros(layer.weight.shape[0])


def _converted(before: nn.Module, linear: nn.Module, precision: str, portable: bool, note: str = "") -> Converted:
    assert isinstance(linear, layers.StaticLinear | layers.TokenLinear | layers.FloatLinear)
    if precision in DTYPES:
        return Converted(precision + note, precision, linear.stored_bytes())
    scales = {STATIC: "int8 static", PER_TOKEN: "int8 per-token"}[precision]
    where = "in pairs that every x86 multiplies exactly" if portable else "multiplied as float32 without VNNI"
    size = linear.stored_bytes()
    if coarsest(before) is not None:
        assert isinstance(linear, layers.StaticLinear)
        kept = (linear.weight, linear.scale, linear.bias)
        weights, *others = (len(deflated(tensor.numpy().tobytes())) for tensor in kept)
        note += f", deflated to {8 * weights / linear.weight.numel():.2f} bits a weight"
        size = weights + sum(others)
    return Converted(f"{scales}, per-channel weights, {where}{note}", "int8", size)
