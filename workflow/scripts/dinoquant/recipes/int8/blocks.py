"""A transformer block in int8, bfloat16 and float32 as TorchScript, from operators that stock PyTorch has.

Each Linear packs its weights for oneDNN when the file is loaded, because a packed weight cannot be stored, and takes
then what is exact and fast there (see `processor`). Where the processor would give wrong sums, the same integers are
multiplied in float32 instead; where it emulates bfloat16, float32 takes its place.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.int8.processor import PAIR_LIMIT, bfloat16_is_native, int8_is_exact, pairs_fit

GELU_MINIMUM = 0.17  # GELU is nowhere below -0.16998


def keep_freed_memory() -> int:
    """Make the allocator hold on to freed memory, by allocating and freeing one block; return its size.

    glibc returns freed memory to the system once more than twice the largest block freed so far lies unused, and the
    next call faults it in again, page by page, which can take as long as all the arithmetic. Having freed one block of
    just under 32 MiB, its largest such threshold, it keeps what it has. Other allocators do not mind.

    Unless the size is used, TorchScript leaves the whole call out.
    """
    return torch.empty([32 * 1024 * 1024 - 65536], dtype=torch.uint8).numel()


def quantize_weight(weight: Tensor, portable: bool = False) -> tuple[Tensor, Tensor]:
    """Round ``[out, in]`` to int8, symmetric, one scale per output channel; return integers and scales ``[out]``.

    :param portable: choose scales that keep every pair of neighbours within `PAIR_LIMIT`.
    """
    scale = weight.abs().amax(1) / 127
    if portable:
        even = weight.size(1) // 2 * 2
        means = weight[:, 0:even:2] / 2 + weight[:, 1:even:2] / 2  # a sum might exceed float32
        # A half less than the limit: that much two roundings may add in all. (The pad is for a single column.)
        scale = torch.maximum(scale, functional.pad(means.abs(), (0, 1)).amax(1) / (PAIR_LIMIT / 2 - 0.25))
    # The floor is the one of PyTorch's observers: a channel of zeros must not divide by zero.
    scale = scale.clamp_min(torch.finfo(torch.float32).eps)
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def steps_to_uint8(steps: Tensor) -> Tensor:
    """Clip to 0..255, in place, and cut off the fraction.

    By way of int16, since PyTorch has no vector code from float to u8.
    """
    return steps.clamp_(0.0, 255.0).to(torch.int16).to(torch.uint8)


def multiply(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return a Linear of ``inputs`` by oneDNN: PyTorch's own takes MKL, which is slow on AMD's processors."""
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return outputs


class Int8Linear(nn.Module):
    """What both int8 Linears share: int8 weights ``[out, in]``, a scale for each output, and the packed form."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    packed: Tensor
    zeros: Tensor
    exact: bool
    native_bfloat16: bool

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = weight, scale, bias
        self.packed, self.zeros, self.exact, self.native_bfloat16 = weight, weight, False, False
        self.pack()

    def pack(self) -> None:
        """Pack the weights for this processor; what the file keeps is the integers."""
        self.exact = keep_freed_memory() > 0 and not self.weight.is_cuda and int8_is_exact(pairs_fit(self.weight))
        self.native_bfloat16 = self.weight.is_cuda or bfloat16_is_native()
        self.zeros = torch.zeros([self.weight.size(0)], dtype=torch.int64)
        if self.exact:
            self.packed = torch.ops.onednn.qlinear_prepack(self.weight.clone(), None)  # packs in place
        elif self.weight.is_cuda:
            self.packed = self.weight.t()
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(torch.float32), None)

    def stored_bytes(self) -> int:
        """Return the bytes of what the file keeps."""
        return int(self.weight.nbytes + self.scale.nbytes + self.bias.nbytes)


class StaticLinear(Int8Linear):
    """int8 weights on inputs in fixed quantization steps; ``[..., in]`` -> ``[..., out]``.

    The layer before writes ``x / step + zero_point + 0.5``, so that cutting the fraction off rounds; or u8 already.
    With `gelu`, GELU follows. The result is "float32", "bfloat16", or "uint8" in steps of its own.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        zero_point: int,
        result: str = "float32",
        gelu: bool = False,
        result_step: float = 1.0,
        result_zero_point: int = 0,
    ) -> None:
        super().__init__(weight, scale, bias)  # scale: of the weights, times the inputs' step
        self.zero_point = zero_point
        self.result = result
        self.gelu = gelu
        self.result_step = result_step
        self.result_zero_point = result_zero_point

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, Tensor, int, str, bool, float, int, bool]:
        """Return what the file keeps."""
        return (
            self.weight,
            self.scale,
            self.bias,
            self.zero_point,
            self.result,
            self.gelu,
            self.result_step,
            self.result_zero_point,
            self.training,
        )

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, Tensor, int, str, bool, float, int, bool]) -> None:
        """Pack what the file kept."""
        self.weight = state[0]
        self.scale = state[1]
        self.bias = state[2]
        self.zero_point = state[3]
        self.result = state[4]
        self.gelu = state[5]
        self.result_step = state[6]
        self.result_zero_point = state[7]
        self.training = state[8]
        self.pack()

    def rows(self, start: int, stop: int) -> "StaticLinear":
        """Return the Linear of some of the outputs."""
        weight, scale, bias = (kept[start:stop].clone() for kept in (self.weight, self.scale, self.bias))
        return StaticLinear(
            weight,
            scale,
            bias,
            self.zero_point,
            self.result,
            self.gelu,
            self.result_step,
            self.result_zero_point,
        )

    def forward(self, steps: Tensor) -> Tensor:
        """Round and clip, multiply, add the bias."""
        quantized = steps
        if steps.dtype != torch.uint8:
            quantized = steps_to_uint8(steps)
        if self.exact:
            dtype = torch.float32
            if self.result == "bfloat16" and self.native_bfloat16:
                dtype = torch.bfloat16
            elif self.result == "uint8":
                dtype = torch.uint8
            result: Tensor = torch.ops.onednn.qlinear_pointwise(
                quantized,
                1.0,
                self.zero_point,
                self.packed,
                self.scale,
                self.zeros,
                self.bias,
                self.result_step,
                self.result_zero_point,
                dtype,
                "gelu" if self.gelu else "none",
                [],
                "none",
            )
            return result
        centred = quantized.to(torch.float32) - self.zero_point
        product = multiply(centred, self.packed, None) * self.scale + self.bias
        if self.gelu:
            product = functional.gelu(product)
        if self.result == "uint8":
            return steps_to_uint8(product / self.result_step + (self.result_zero_point + 0.5))
        return product


class TokenLinear(Int8Linear):
    """int8 weights on inputs with one scale per token; float32 ``[..., in]`` -> float32 ``[..., out]``.

    Symmetric; or for what comes out of a GELU, with nearly all of the 256 values above 0.
    """

    CENTRE: Final[int] = 128  # the u8 value that stands for 0
    AFTER_GELU: Final[int] = 16  # likewise, of what comes out of a GELU
    GELU_MINIMUM: Final[float] = GELU_MINIMUM
    SMALLEST_STEP: Final[float] = 1e-12  # a token of zeros must not divide by zero

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor, after_gelu: bool) -> None:
        super().__init__(weight, scale, bias)
        self.after_gelu = after_gelu

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, Tensor, bool, bool]:
        """Return what the file keeps."""
        return self.weight, self.scale, self.bias, self.after_gelu, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, Tensor, bool, bool]) -> None:
        """Pack what the file kept."""
        self.weight = state[0]
        self.scale = state[1]
        self.bias = state[2]
        self.after_gelu = state[3]
        self.training = state[4]
        self.pack()

    def rows(self, start: int, stop: int) -> "TokenLinear":
        """Return the Linear of some of the outputs."""
        weight, scale, bias = (kept[start:stop].clone() for kept in (self.weight, self.scale, self.bias))
        return TokenLinear(weight, scale, bias, self.after_gelu)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale each token to 8 bits, multiply, scale back and add the bias."""
        largest = inputs.amax(-1, keepdim=True)
        if self.after_gelu:
            zero_point = self.AFTER_GELU
            step = (largest / (255 - zero_point)).clamp_min_(self.GELU_MINIMUM / zero_point)
        else:
            zero_point = self.CENTRE
            step = (torch.maximum(largest, -inputs.amin(-1, keepdim=True)) / 127).clamp_min_(self.SMALLEST_STEP)
        if inputs.is_cuda:  # int8 tensor cores take signed integers, and tokens in one row
            integers = torch.round(inputs / step)
            if self.after_gelu:
                integers -= self.CENTRE - zero_point
            tokens = integers.to(torch.int8).flatten(0, -2)
            product = torch._int_mm(tokens, self.packed)
            if self.after_gelu:
                product += (self.CENTRE - zero_point) * self.weight.sum(1, dtype=torch.int32)
            scaled = torch.unflatten(product * self.scale, 0, inputs.size()[:-1])
        elif self.exact:
            scaled = torch.ops.onednn.qlinear_pointwise(
                (inputs / step).add_(zero_point + 0.5).to(torch.int16).to(torch.uint8),
                1.0,
                zero_point,
                self.packed,
                self.scale,
                self.zeros,
                None,
                1.0,
                0,
                torch.float32,
                "none",
                [],
                "",
            )
        else:
            integers = (inputs / step).add_(zero_point + 0.5).floor_() - zero_point
            scaled = multiply(integers, self.packed, None) * self.scale
        return torch.addcmul(self.bias, scaled, step)


class FloatLinear(nn.Module):
    """A Linear in bfloat16 or float32; float32 ``[..., in]`` -> float32 ``[..., out]``.

    Where the processor emulates bfloat16, its weights are multiplied in float32.
    """

    weight: Tensor
    bias: Tensor
    packed: Tensor
    native_bfloat16: bool

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self.packed, self.native_bfloat16 = self.weight, False
        self.pack()

    def pack(self) -> None:
        """Pack the weights for this processor; the file keeps them plain."""
        self.native_bfloat16 = self.weight.is_cuda or bfloat16_is_native()
        if self.weight.is_cuda or (self.native_bfloat16 and self.weight.dtype == torch.bfloat16):
            self.packed = self.weight
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(torch.float32), None)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, bool]:
        """Return what the file keeps."""
        return self.weight, self.bias, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, bool]) -> None:
        """Pack what the file kept."""
        self.weight = state[0]
        self.bias = state[1]
        self.training = state[2]
        self.pack()

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply in the weights' precision."""
        if self.packed.is_mkldnn:
            return multiply(inputs, self.packed, self.bias.to(torch.float32))
        return functional.linear(inputs.to(self.weight.dtype), self.weight, self.bias).to(torch.float32)

    def rows(self, start: int, stop: int) -> "FloatLinear":
        """Return the Linear of some of the outputs."""
        return FloatLinear(self.weight[start:stop].clone(), self.bias[start:stop].clone(), self.weight.dtype)

    def stored_bytes(self) -> int:
        """Return the bytes of what the file keeps."""
        return int(self.weight.nbytes + self.bias.nbytes)


class Patches(nn.Module):
    """A patch embedding; float32 ``[B, C, H, W]`` -> float32 ``[B, D, H // kernel, W // kernel]``.

    ``gain`` and ``offset`` ``[C, 1, 1]`` turn the colours into a StaticLinear's steps; None leaves them alone.
    """

    IMAGES: Final[int] = 4  # at a time: what these need stays in the processor's caches

    gain: Tensor | None
    offset: Tensor | None

    def __init__(self, kernel: int, linear: nn.Module, gain: Tensor | None, offset: Tensor | None) -> None:
        super().__init__()
        self.kernel = kernel
        self.linear = linear
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)

    def forward(self, images: Tensor) -> Tensor:
        """Cut the patches, multiply, and put the features where the convolution puts them; a few images at a time."""
        if images.is_cuda or images.size(0) <= self.IMAGES:
            return self.embed(images)
        return torch.cat([self.embed(part) for part in torch.split(images, self.IMAGES)])

    def embed(self, images: Tensor) -> Tensor:
        """Embed all at once."""
        pixels, gain, offset = images, self.gain, self.offset
        if gain is not None and offset is not None:
            pixels = steps_to_uint8(torch.addcmul(offset, images, gain))
        patches = pixels.unfold(2, self.kernel, self.kernel).unfold(3, self.kernel, self.kernel)
        features: Tensor = self.linear(patches.permute(0, 2, 3, 1, 4, 5).flatten(3))
        return features.permute(0, 3, 1, 2)


class Block(nn.Module):
    """A pre-norm transformer block; float32 ``[B, N, D]`` -> the same.

    What follows a LayerNorm or the attention expects its input scaled: see `dinoquant.recipes.int8.assemble`. The
    queries hold the factor ``log2(e) / sqrt(head width)``, so that attention takes powers of 2, the fastest
    exponential.
    """

    LARGEST_POWER: Final[float] = 110.0  # of 2: 2^17 tokens of it still add up to less than float32's largest, 2^128

    def __init__(
        self,
        heads: int,
        norms: tuple[nn.LayerNorm, nn.LayerNorm],
        linears: tuple[nn.Module, nn.Module, nn.Module, nn.Module],
        attention: torch.dtype,
        context_offset: float,
        hidden: tuple[bool, float, float],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = norms
        self.qkv, self.proj, self.fc1, self.fc2 = linears
        self.reduced = attention == torch.bfloat16
        self.context_offset = context_offset  # zero point and half a step, where proj is a StaticLinear
        self.gelu, self.hidden_gain, self.hidden_offset = hidden  # gelu: fc1 does not apply it itself

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend, then transform each token."""
        return self.transform(self.attend(self.qkv(self.norm1(tokens))), tokens)

    def transform(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Add to the tokens what attention found for them, and what the MLP makes of the sum."""
        tokens = self.proj(context).add_(tokens)
        hidden = self.fc1(self.norm2(tokens))
        if self.gelu:
            hidden = functional.gelu(hidden)
        if self.hidden_offset != 0.0:
            hidden = hidden.mul_(self.hidden_gain).add_(self.hidden_offset)
        transformed: Tensor = self.fc2(hidden)
        return transformed.add_(tokens)

    def attend(self, qkv: Tensor) -> Tensor:
        """Weigh the values: ``[B, N, 3 D]`` -> ``[B, N, D]``."""
        split = self.by_head(qkv, 3)
        return self.weigh(split[0], split[1], split[2])

    def by_head(self, rows: Tensor, parts: int) -> Tensor:
        """Return ``[B, N, parts * D]`` as ``[parts, B, heads, N, head width]`` in attention's precision."""
        dtype = torch.float32
        if self.reduced and self.qkv.native_bfloat16:
            dtype = torch.bfloat16
        split = rows.view(rows.size(0), rows.size(1), parts, self.heads, -1)
        return split.permute(2, 0, 3, 1, 4).to(dtype).contiguous()

    def weigh(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Weigh the values ``[B, heads, N, head width]`` for M queries; return what proj takes, ``[B, M, D]``."""
        if query.is_cuda:
            context = functional.scaled_dot_product_attention(query, key, value, scale=0.6931471805599453)
        else:
            # Without subtracting the largest of each row, which takes as long as a product: powers this large still
            # add up to less than float32's largest number, and none is 0.
            powers = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).to(torch.float32)
            powers = powers.clamp_(-self.LARGEST_POWER, self.LARGEST_POWER).exp2_()
            context = torch.bmm(powers.to(query.dtype), value.flatten(0, 1)).to(torch.float32)
            context = context.div_(powers.sum(-1, keepdim=True)).view(query.size())
        context = context.to(torch.float32)
        if self.context_offset != 0.0:
            context = steps_to_uint8(context.add_(self.context_offset))
        return context.transpose(1, 2).flatten(2)


class LastBlock(Block):
    """The last block of a model that reads its feature from the first token; ``[B, N, D]`` -> ``[B, 1, D]``.

    The other tokens are keys and values there; what became of them is never read.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(
            block.heads,
            (block.norm1, block.norm2),
            (block.qkv, block.proj, block.fc1, block.fc2),
            torch.bfloat16 if block.reduced else torch.float32,
            block.context_offset,
            (block.gelu, block.hidden_gain, block.hidden_offset),
        )
        width, qkv = self.norm1.normalized_shape[0], block.qkv
        assert isinstance(qkv, StaticLinear | TokenLinear | FloatLinear)
        self.query, self.qkv = qkv.rows(0, width), qkv.rows(width, 3 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend with the first token, then transform it."""
        normed = self.norm1(tokens)
        query = self.by_head(self.query(normed[:, :1]), 1)
        split = self.by_head(self.qkv(normed), 2)
        return self.transform(self.weigh(query[0], split[0], split[1]), tokens[:, :1])


class Blocks(nn.Module):
    """All blocks, a few images at a time; float32 ``[B, N, D]`` -> the same.

    What a few images need stays in the processor's caches between two operators; that of a whole batch does not.
    """

    TOKENS: Final[int] = 800  # at a time; 4 images of 224 pixels

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Go through all blocks with some images, then with the next."""
        images = max(1, self.TOKENS // tokens.size(1))
        if tokens.is_cuda or tokens.size(0) <= images:
            return self.through(tokens)
        return torch.cat([self.through(part) for part in torch.split(tokens, images)])

    def through(self, tokens: Tensor) -> Tensor:
        """Go through all blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
