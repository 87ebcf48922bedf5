"""The anatomy of timm's `VisionTransformer`: DINO, DINOv2, DeiT and their kin."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import GluMlp, Mlp
from timm.models import Eva, VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.recipes.anatomy.description import KINDS, Anatomy, Block, Rotation
from dinoquant.recipes.output import GivesTokens

Check = Callable[[Any], bool]

# What `Block` says of a block, outer parts first: only in a block of the right type is there an attn to look at.
COMMON: Mapping[str, Check] = {
    "attn.q_norm": lambda norm: isinstance(norm, nn.Identity),
    "attn.k_norm": lambda norm: isinstance(norm, nn.Identity),
    "attn.norm": lambda norm: isinstance(norm, nn.Identity),
    "norm1": lambda norm: isinstance(norm, nn.LayerNorm),
    "norm2": lambda norm: isinstance(norm, nn.LayerNorm),
    "mlp": lambda mlp: is_swiglu(mlp) or (type(mlp) is Mlp and not isinstance(mlp.act, nn.SiLU)),
    "mlp.norm": lambda norm: isinstance(norm, nn.Identity),
    "mlp.act": lambda act: isinstance(act, nn.SiLU) or (isinstance(act, nn.GELU) and act.approximate == "none"),
}


class VitAnatomy(Anatomy):
    """Where the parts of a `VisionTransformer` are."""

    model: VisionTransformer | Eva
    patches = "patch_embed.proj"
    plain: Mapping[str, Check] = {
        "": lambda block: type(block) is TimmBlock,
        "attn": lambda attention: type(attention) is Attention and getattr(attention, "gate", None) is None,
        **COMMON,
    }

    def __init__(self, model: VisionTransformer | Eva) -> None:
        super().__init__(model)
        self.depth = len(model.blocks)
        self.tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        self.tokens_read = self.tokens if isinstance(model, GivesTokens) else self.read_by_head()

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Tell whether ``model`` is a `VisionTransformer`."""
        return isinstance(model, VisionTransformer)

    def read_by_head(self) -> int:
        """Return how many of the first tokens the head makes features from."""
        if isinstance(self.model, VisionTransformerDistilled):
            return 2  # the class token and the distillation token
        plain = type(self.model).forward_head is VisionTransformer.forward_head
        return 1 if plain and self.model.global_pool == "token" else self.tokens

    def name(self, block: int, kind: str) -> str:
        """Return the name of a block's Linear, or of its softmax: timm's names are the kinds'."""
        return f"blocks.{block}.{kind}"

    def block(self, number: int) -> Block:
        """Return the parts of a block; raise UserError, naming the part, if it is built otherwise than `Block`."""
        block: Any = self.model.blocks[number]
        for name, fits in self.plain.items():
            part = block.get_submodule(name)
            if not fits(part):
                raise UserError(
                    f"blocks.{number}{'.' if name else ''}{name} is a {type(part).__name__} that this recipe cannot "
                    "rebuild: it knows pre-norm blocks of LayerNorm, softmax attention and GELU or SwiGLU, as DINO's "
                    "models have them. Use int8-dynamic or int8-weight-only for this model."
                )
        return Block(
            heads=block.attn.num_heads,
            head_width=block.attn.head_dim,
            norms=(block.norm1, block.norm2),
            linears={kind: block.get_submodule(kind) for kind in KINDS},
            scales=self.scales(block),
            gated=is_swiglu(block.mlp),
            rotation=self.rotation(number),
        )

    def scales(self, block: Any) -> tuple[Tensor | None, Tensor | None]:
        """Return what a block multiplies its attention and its MLP with."""
        return _layer_scale(block.ls1), _layer_scale(block.ls2)

    def rotation(self, number: int) -> Rotation | None:
        """Return a block's rotary position embedding."""
        return None

    def embed(self, images: Tensor) -> Tensor:
        """Return what the first block takes."""
        model = self.model
        tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return tokens

    def layers(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the model's own blocks."""
        return list(self.model.blocks)

    def head(self, tokens: Tensor) -> Tensor:
        """Return the features of what the last block gives."""
        features: Tensor = self.model.forward_head(self.model.norm(tokens))
        return features

    def rebuilt(self, patches: nn.Module | None = None, blocks: nn.Module | None = None) -> nn.Module:
        """Return a copy of the model with another patch embedding, or one module in the place of all blocks."""
        changed: Any = copy.deepcopy(self.model)
        if patches is not None:
            changed.set_submodule(self.patches, patches)
        if blocks is None:
            return cast(nn.Module, changed)
        changed.blocks = nn.Sequential()
        return Rebuilt(type(self)(changed), blocks)


class Rebuilt(nn.Module):
    """A model around one module in the place of its blocks, whose passes have timm's names.

    ``blocks`` takes tokens, and whether all are wanted of it or only those that the head reads.
    """

    def __init__(self, anatomy: VitAnatomy, blocks: nn.Module) -> None:
        super().__init__()
        self.anatomy, self.model, self.blocks = anatomy, anatomy.model, blocks

    def forward(self, images: Tensor) -> Tensor:
        """float32 ``[B, 3, S, S]`` -> float32 ``[B, D]``, or ``[B, N, D]`` if the model gives tokens."""
        if isinstance(self.model, GivesTokens):
            return self.forward_features(images)
        return self.anatomy.head(self.blocks(self.anatomy.embed(images), False))

    def forward_features(self, images: Tensor) -> Tensor:
        """float32 ``[B, 3, S, S]`` -> float32 ``[B, N, D]``: all tokens behind the last norm."""
        tokens: Tensor = self.model.norm(self.blocks(self.anatomy.embed(images), True))
        return tokens

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of all tokens behind the last norm."""
        features: Tensor = self.model.forward_head(tokens)
        return features


def _layer_scale(module: nn.Module) -> Tensor | None:
    return module.gamma.detach() if isinstance(module, LayerScale) else None


def is_swiglu(mlp: nn.Module) -> bool:
    """Tell whether ``mlp`` multiplies values with SiLU of gates, which its first Linear gives before the values."""
    return type(mlp) is GluMlp and isinstance(mlp.act, nn.SiLU) and not mlp.gate_last
