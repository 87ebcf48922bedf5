"""The patch embedding and the blocks of a transformer as TorchScript, around the Linears of `layers`."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.int8.layers import FloatLinear, StaticLinear, TokenLinear, steps_to_uint8


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

    turns: Tensor | None

    LARGEST_POWER: Final[float] = 110.0  # of 2: 2^17 tokens of it still add up to less than float32's largest, 2^128

    def __init__(
        self,
        heads: int,
        norms: tuple[nn.LayerNorm, nn.LayerNorm],
        linears: tuple[nn.Module, nn.Module, nn.Module, nn.Module],
        attention: torch.dtype,
        context_offset: float,
        hidden: tuple[str, float, float],
        turns: Tensor | None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = norms
        self.qkv, self.proj, self.fc1, self.fc2 = linears
        self.reduced = attention == torch.bfloat16
        self.context_offset = context_offset  # zero point and half a step, where proj is a StaticLinear
        self.activation, self.hidden_gain, self.hidden_offset = hidden  # "gelu", "swiglu", or "": fc1 does it
        self.register_buffer("turns", turns)  # [N, 1 or heads, head width / 2, 2]

    def forward(self, tokens: Tensor, every: bool = False) -> Tensor:
        """Attend, then transform each token; ``every`` matters to `LastBlock` alone."""
        return self.transform(self.attend(self.qkv(self.norm1(tokens))), tokens)

    def transform(self, context: Tensor, tokens: Tensor) -> Tensor:
        """Add to the tokens what attention found for them, and what the MLP makes of the sum."""
        tokens = self.proj(context).add_(tokens)
        hidden = self.fc1(self.norm2(tokens))
        if self.activation == "gelu":
            hidden = functional.gelu(hidden)
        elif self.activation == "swiglu":
            gates, values = hidden.chunk(2, -1)
            hidden = functional.silu(gates).mul_(values)
        if self.hidden_offset != 0.0:
            hidden = hidden.mul_(self.hidden_gain).add_(self.hidden_offset)
        transformed: Tensor = self.fc2(hidden)
        return transformed.add_(tokens)

    def attend(self, qkv: Tensor) -> Tensor:
        """Weigh the values: ``[B, N, 3 D]`` -> ``[B, N, D]``."""
        split = self.by_head(qkv, 3, 2)
        return self.weigh(split[0], split[1], split[2])

    def by_head(self, rows: Tensor, parts: int, turned: int) -> Tensor:
        """Return ``[B, N, parts * D]`` as ``[parts, B, heads, N, head width]`` in attention's precision.

        The first parts, ``turned`` of them, get their tokens' rotary position embedding, in float32 and in place.
        """
        dtype = torch.float32
        if self.reduced and self.qkv.native_bfloat16:
            dtype = torch.bfloat16
        split = rows.view(rows.size(0), rows.size(1), parts, self.heads, -1)
        turns = self.turns
        if turns is not None:
            # Neighbours as a complex number: one pass over memory, in the processor's vectors.
            pairs = torch.view_as_complex(torch.unflatten(split[:, :, :turned], -1, [-1, 2]))
            pairs.mul_(torch.view_as_complex(turns[: rows.size(1)]).unsqueeze(1))
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
    """The last block of a model whose head reads only the first tokens; ``[B, N, D]`` -> ``[B, read, D]``.

    The other tokens are keys and values there; what became of them is never read, unless ``every`` one is asked for.
    """

    def __init__(self, block: Block, read: int) -> None:
        super().__init__(
            block.heads,
            (block.norm1, block.norm2),
            (block.qkv, block.proj, block.fc1, block.fc2),
            torch.bfloat16 if block.reduced else torch.float32,
            block.context_offset,
            (block.activation, block.hidden_gain, block.hidden_offset),
            block.turns,
        )
        self.read = read
        width, qkv = self.norm1.normalized_shape[0], block.qkv
        assert isinstance(qkv, StaticLinear | TokenLinear | FloatLinear)
        self.query, self.qkv = qkv.rows(0, width), qkv.rows(width, 3 * width)

    def forward(self, tokens: Tensor, every: bool = False) -> Tensor:
        """Attend with the tokens that are read, then transform them."""
        read = tokens.size(1) if every else self.read
        normed = self.norm1(tokens)
        query = self.by_head(self.query(normed[:, :read]), 1, 1)
        split = self.by_head(self.qkv(normed), 2, 1)
        return self.transform(self.weigh(query[0], split[0], split[1]), tokens[:, :read])


class Blocks(nn.Module):
    """All blocks, a few images at a time; float32 ``[B, N, D]`` -> the same, or of the tokens that are read.

    What a few images need stays in the processor's caches between two operators; that of a whole batch does not.
    """

    TOKENS: Final[int] = 800  # at a time; 4 images of 224 pixels

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, every: bool = False) -> Tensor:
        """Go through all blocks with some images, then with the next; ``every``: keep all tokens to the end."""
        images = max(1, self.TOKENS // tokens.size(1))
        if tokens.is_cuda or tokens.size(0) <= images:
            return self.through(tokens, every)
        return torch.cat([self.through(part, every) for part in torch.split(tokens, images)])

    def through(self, tokens: Tensor, every: bool) -> Tensor:
        """Go through all blocks."""
        for block in self.blocks:
            tokens = block(tokens, every)
        return tokens
