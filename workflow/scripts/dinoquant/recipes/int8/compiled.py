"""A transformer of the int8 recipes as PyTorch's compiler takes it: the integers and scales of its TorchScript file.

TorchScript packs a weight on loading and takes a batch in parts; the compiler packs constants itself, needs one graph
for any batch, and fuses what lies between two products where loops run over all tokens of a batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.anatomy.description import FC1, FC2, PROJ, QKV
from dinoquant.recipes.anatomy.families import anatomy_of
from dinoquant.recipes.int8 import layers, transformer

REPLACED = ("patch_embed.", "blocks.", "rope.")  # rotary positions are a part of each block
# A block's Linears -> the kind that the float model has them as; in the last block the queries are by themselves.
KIND_OF = {"qkv": QKV, "query": QKV, "proj": PROJ, "fc1": FC1, "fc2": FC2}
Script = Any  # a submodule of a TorchScript file, with the attributes of the class that it was made of


def rebuilt(network: nn.Module, script: torch.jit.ScriptModule) -> nn.Module:
    """Return a copy of ``network`` with the patch embedding and the blocks that a recipe's TorchScript file has.

    All else that the network consists of is loaded from the file, too.

    Raises ValueError for a file without blocks of these recipes, or that lacks some of the rest.
    """
    found: dict[str, Script] = {str(module.original_name): module for module in script.modules()}
    if "Blocks" not in found:
        raise ValueError("no blocks of int8-smooth, int8-mixed or int8-per-token in this TorchScript file")
    outside = {name.removeprefix("model."): value for name, value in script.state_dict().items()}
    missing, _ = network.load_state_dict(outside, strict=False)
    if lost := [name for name in missing if not name.startswith(REPLACED)]:
        raise ValueError(f"the TorchScript file lacks {', '.join(lost)}")
    blocks = Blocks([Block(block) for block in found["Blocks"].blocks.children()])
    patches = Patches(found["Patches"]) if "Patches" in found else None
    return anatomy_of(network).rebuilt(patches, blocks).eval()


def products(network: Any) -> Iterator[tuple[str, "Linear"]]:
    """Yield each Linear with int8 weights of what `rebuilt` returned, behind its name in the float model."""
    anatomy = network.anatomy
    parts = [(anatomy.patches, getattr(anatomy.model.get_submodule(anatomy.patches), "linear", None))]
    for number, block in enumerate(network.blocks.blocks):
        parts += [(anatomy.name(number, kind), getattr(block, part)) for part, kind in KIND_OF.items()]
    yield from ((name, module) for name, module in parts if isinstance(module, Linear))


class Linear(nn.Module):
    """A `StaticLinear` or `TokenLinear`; ``[rows, in]`` -> ``[rows, out]``.

    ``exact``: multiplied as integers on this processor, otherwise in float32.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    zeros: Tensor

    def __init__(self, script: Script) -> None:
        super().__init__()
        for name in ("weight", "scale", "bias", "zeros"):
            self.register_buffer(name, getattr(script, name).detach().clone())
        self.exact, self.native_bfloat16 = script.exact, script.native_bfloat16

    def multiply(
        self, inputs: Tensor, zero_point: int, bias: Tensor | None, dtype: torch.dtype, gelu: bool, output: Any
    ) -> Tensor:
        """Return the product of u8 ``inputs`` in a dtype, by oneDNN."""
        packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            inputs,
            1.0,
            zero_point,
            packed,
            self.scale,
            self.zeros,
            bias,
            *output,
            dtype,
            "gelu" if gelu else "none",
            [],
            "none",
        )
        return result


class StaticLinear(Linear):
    """int8 weights on inputs in fixed quantization steps, as `layers.StaticLinear`."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.zero_point, self.gelu = script.zero_point, script.gelu
        self.output = (script.result_step, script.result_zero_point)
        reduced = torch.bfloat16 if self.native_bfloat16 else torch.float32
        self.dtype = {"float32": torch.float32, "bfloat16": reduced, "uint8": torch.uint8}[script.result]

    def forward(self, steps: Tensor) -> Tensor:
        """Round and clip, multiply, add the bias."""
        quantized = steps_to_uint8(steps)
        if self.exact:
            return self.multiply(quantized, self.zero_point, self.bias, self.dtype, self.gelu, self.output)
        centred = quantized.to(torch.float32) - self.zero_point
        product = functional.linear(centred, self.weight.to(torch.float32)) * self.scale + self.bias
        if self.gelu:
            product = functional.gelu(product)
        if self.dtype == torch.uint8:
            return steps_to_uint8(product / self.output[0] + (self.output[1] + 0.5))
        return product


class TokenLinear(Linear):
    """int8 weights on inputs with one scale per token, as `layers.TokenLinear`."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.after_gelu = script.after_gelu

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale each token to 8 bits, multiply, scale back and add the bias."""
        known = layers.TokenLinear
        if self.after_gelu:
            zero_point = known.AFTER_GELU
            step = (inputs.amax(-1, keepdim=True) / (255 - zero_point)).clamp_min(known.GELU_MINIMUM / zero_point)
        else:
            zero_point = known.CENTRE
            step = (inputs.abs().amax(-1, keepdim=True) / 127).clamp_min(known.SMALLEST_STEP)
        quantized = (inputs / step + (zero_point + 0.5)).to(torch.uint8)
        if self.exact:
            scaled = self.multiply(quantized, zero_point, None, torch.float32, False, (1.0, 0))
        else:
            centred = quantized.to(torch.float32) - zero_point
            scaled = functional.linear(centred, self.weight.to(torch.float32)) * self.scale
        return self.bias + scaled * step


class FloatLinear(nn.Module):
    """A Linear in bfloat16 or float32, as `layers.FloatLinear`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.native_bfloat16 = script.native_bfloat16
        reduced = script.weight.dtype == torch.bfloat16 and self.native_bfloat16
        for name in ("weight", "bias"):
            kept = getattr(script, name).detach().clone()
            self.register_buffer(name, kept if reduced else kept.to(torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply in the weights' precision."""
        return functional.linear(inputs.to(self.weight.dtype), self.weight, self.bias).to(torch.float32)


class LayerNorm(nn.Module):
    """A LayerNorm, in one loop over the rows with what is around it.

    The compiler keeps the means of PyTorch's own in memory, made by a loop over rows side by side, into which no other
    loop over rows fits.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.eps = float(script.eps)
        for name in ("weight", "bias"):
            self.register_buffer(name, getattr(script, name).detach().clone())

    def forward(self, rows: Tensor) -> Tensor:
        """Centre and scale each row."""
        share = 1.0 / rows.size(-1)
        centred = rows - rows.sum(-1, keepdim=True) * share
        variance = (centred * centred).sum(-1, keepdim=True) * share
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class Patches(nn.Module):
    """A patch embedding, as `transformer.Patches`, of all images at once."""

    gain: Tensor | None
    offset: Tensor | None

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.kernel, self.linear = script.kernel, linear(script.linear)
        self.register_buffer("gain", script.gain)
        self.register_buffer("offset", script.offset)

    def forward(self, images: Tensor) -> Tensor:
        """Cut the patches, multiply, and put the features where the convolution puts them."""
        pixels, size = images, self.kernel
        if self.gain is not None and self.offset is not None:
            pixels = steps_to_uint8(self.offset + images * self.gain)
        patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5)
        features: Tensor = self.linear(patches.flatten(3).flatten(0, 2))
        return features.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A block, as `transformer.Block`, or the last one, which gives the tokens that are read; ``[B, N, D]``."""

    turns: Tensor | None

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.heads, self.context_offset = script.heads, script.context_offset
        self.activation, self.gain, self.offset = script.activation, script.hidden_gain, script.hidden_offset
        self.norm1, self.norm2 = LayerNorm(script.norm1), LayerNorm(script.norm2)
        self.qkv, self.proj, self.fc1, self.fc2 = map(linear, (script.qkv, script.proj, script.fc1, script.fc2))
        self.query, self.read = None, None
        if script.original_name == "LastBlock":
            self.query, self.read = linear(script.query), script.read
        self.dtype = torch.bfloat16 if script.reduced and script.qkv.native_bfloat16 else torch.float32
        self.register_buffer("turns", script.turns)

    def forward(self, tokens: Tensor, every: bool) -> Tensor:
        """Attend, then transform each token that is read, or ``every`` one."""
        images, count, width = tokens.shape
        normed = self.norm1(tokens.flatten(0, 1))
        if self.query is None:
            query, key, value = self.by_head(self.qkv(normed).view(images, count, 3, self.heads, -1), 2)
        else:
            read = count if every else self.read
            tokens = tokens[:, :read]
            first = normed.view(images, count, width)[:, :read].flatten(0, 1)
            (query,) = self.by_head(self.query(first).view(images, read, 1, self.heads, -1), 1)
            key, value = self.by_head(self.qkv(normed).view(images, count, 2, self.heads, -1), 1)
        rows = self.proj(self.weigh(query, key, value)) + tokens.flatten(0, 1)
        transformed: Tensor = self.fc2(self.hidden(self.fc1(self.norm2(rows)))) + rows
        return transformed.view(images, -1, width)

    def hidden(self, hidden: Tensor) -> Tensor:
        """Return what the MLP's second Linear takes of what its first gives."""
        if self.activation == "gelu":
            hidden = functional.gelu(hidden)
        elif self.activation == "swiglu":
            gates, values = hidden.chunk(2, -1)
            hidden = functional.silu(gates) * values
        return hidden * self.gain + self.offset if self.offset != 0.0 else hidden

    def by_head(self, parts: Tensor, turned: int) -> tuple[Tensor, ...]:
        """Return each part of ``[B, N, parts, heads, head width]`` as ``[B * heads, N, head width]``.

        The first parts, ``turned`` of them, get their tokens' rotary position embedding, in float32.
        """
        if self.turns is not None:
            cosine, sine = self.turns[: parts.size(1), None].unbind(-1)
            even, odd = torch.unflatten(parts[:, :, :turned], -1, (-1, 2)).unbind(-1)
            pairs = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)
            parts = torch.cat([pairs, parts[:, :, turned:]], 2)
        by_head = parts.permute(2, 0, 3, 1, 4).to(self.dtype)
        return tuple(part.contiguous().flatten(0, 1) for part in by_head)

    def weigh(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Weigh the values ``[B * heads, N, head width]`` for M queries; return what proj takes, ``[B * M, D]``."""
        limit = transformer.Block.LARGEST_POWER
        powers = torch.bmm(query, key.transpose(1, 2)).to(torch.float32).clamp(-limit, limit).exp2().to(query.dtype)
        # After the product, for which they are stored: the sum before it would be of powers computed twice.
        context = torch.bmm(powers, value).to(torch.float32)
        context = context / powers.sum(-1, keepdim=True, dtype=torch.float32)
        if self.context_offset != 0.0:
            context = steps_to_uint8(context + self.context_offset)
        by_image = context.view(-1, self.heads, *context.shape[1:])
        return by_image.transpose(1, 2).flatten(2).flatten(0, 1)


class Blocks(nn.Module):
    """All blocks, as `transformer.Blocks`, with all images at once."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, every: bool) -> Tensor:
        """``[B, N, D]`` -> the same of the tokens that are read, or of ``every`` one."""
        for block in self.blocks:
            tokens = block(tokens, every)
        return tokens


def linear(script: Script) -> nn.Module:
    """Return a Linear of the recipes."""
    made: nn.Module = {kind.__name__: kind for kind in (StaticLinear, TokenLinear, FloatLinear)}[script.original_name](
        script
    )
    return made


def steps_to_uint8(steps: Tensor) -> Tensor:
    """Clip to 0..255 and cut off the fraction; the compiler has vector code for that, unlike for int16."""
    return steps if steps.dtype == torch.uint8 else steps.clamp(0.0, 255.0).to(torch.uint8)
