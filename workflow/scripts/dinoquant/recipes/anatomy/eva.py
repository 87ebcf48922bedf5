"""The anatomy of timm's `Eva`, merged by `dinoquant.network.merge`: DINOv3, EVA-02 and other rotary transformers."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
from timm.layers.attention import AttentionRope
from timm.models import Eva
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn

from dinoquant.recipes.anatomy.description import Rotation
from dinoquant.recipes.anatomy.vit import COMMON, Check, VitAnatomy


class EvaAnatomy(VitAnatomy):
    """Where the parts of an `Eva` are."""

    model: Any
    plain: Mapping[str, Check] = {
        "": lambda block: type(block) is EvaBlock,
        "attn": lambda attention: (
            type(attention) in (EvaAttention, AttentionRope)
            and isinstance(attention.qkv, nn.Linear)
            and attention.gate is None
        ),
        **COMMON,
    }

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Tell whether ``model`` is an `Eva`."""
        return isinstance(model, Eva)

    def read_by_head(self) -> int:
        """Return how many of the first tokens the head makes features from."""
        return 1 if self.model.global_pool == "token" and self.model.attn_pool is None else self.tokens

    def scales(self, block: Any) -> tuple[Tensor | None, Tensor | None]:
        """Return what a block multiplies its attention and its MLP with."""
        return block.gamma_1, block.gamma_2

    def rotation(self, number: int) -> Rotation | None:
        """Return a block's rotary position embedding."""
        if (positions := self._positions[number]) is None:
            return None
        attention = self.model.blocks[number].attn
        sines, cosines = positions.chunk(2, -1)  # [patches, head width], or the same for each head
        stored = torch.stack([cosines, sines], -1)
        width = attention.head_dim // 2
        pairs = stored[..., :width, :] if attention.rotate_half else stored[..., ::2, :]
        pairs = pairs.movedim(-4, -3) if pairs.ndim == 4 else pairs[:, None]
        still = torch.tensor([1.0, 0.0]).expand(self.model.num_prefix_tokens, *pairs.shape[1:])
        return Rotation(torch.cat([still, pairs]), attention.rotate_half)

    def embed(self, images: Tensor) -> Tensor:
        """Return what the first block takes."""
        tokens, _ = self.model._pos_embed(self.model.patch_embed(images))
        normed: Tensor = self.model.norm_pre(tokens)
        return normed

    def layers(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the model's own blocks."""
        return [
            partial(block, rope=positions) for block, positions in zip(self.model.blocks, self._positions, strict=True)
        ]

    def rebuilt(self, patches: nn.Module | None = None, blocks: nn.Module | None = None) -> nn.Module:
        """Return a copy of the model with another patch embedding, or one module in the place of all blocks."""
        changed: Any = super().rebuilt(patches, blocks)
        if blocks is not None:
            changed.model.rope = None  # the blocks have their own
        return cast(nn.Module, changed)

    @cached_property
    @torch.no_grad()
    def _positions(self) -> Sequence[Tensor | None]:
        """Return the sines and cosines of each block, as timm hands them down."""
        side = self.model.patch_embed.img_size[0]
        image = torch.zeros(1, 3, side, side)
        _, positions = self.model._pos_embed(self.model.patch_embed(image))
        return list(positions) if self.model.rope_mixed else [positions] * self.depth
