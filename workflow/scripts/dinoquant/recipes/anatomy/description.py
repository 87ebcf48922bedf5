"""The vocabulary in which the recipes are written: a transformer's parts, and how a forward pass goes through them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.recipes.patch_embedding import is_patch_embedding

QKV, PROJ, FC1, FC2 = KINDS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # the Linears of a block, in its order
SOFTMAX = "attn.softmax"  # the audit's name of attention's products


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding: pairs of channels of queries and keys are turned by an angle of their token."""

    turns: Tensor  # [tokens, 1 or heads, head width / 2, 2]: the angles' cosines and sines
    halves: bool  # a pair is one channel of each half of a head, else two neighbours


@dataclass(frozen=True)
class Block:
    """A pre-norm block: LayerNorm, attention, LayerNorm, Linear, GELU, Linear; each half is scaled, then added.

    With SwiGLU the first Linear of the MLP gives gates and values, and SiLU of the gates, times values, is the GELU.
    """

    heads: int
    head_width: int
    norms: tuple[nn.LayerNorm, nn.LayerNorm]  # before attention, before the MLP
    linears: Mapping[str, nn.Linear]  # by kind; the outputs of QKV are all queries, then all keys, then all values
    scales: tuple[Tensor | None, Tensor | None]  # [D], of what attention and the MLP add to the tokens
    gated: bool = False  # SwiGLU; the outputs of FC1 are all gates, then all values
    rotation: Rotation | None = None


class Anatomy(ABC):
    """Where the parts of one model are, and how its forward pass goes through them.

    The pass is ``head(block(... block(embed(images))))``. Position embedding and prefix tokens are a matter of `embed`,
    the final norm and the pooling one of `head`.
    """

    patches: str  # the patch embedding's name in the model
    depth: int  # blocks
    tokens: int  # that a block takes for an image: prefix tokens and patches
    tokens_read: int  # the first of them, which the features are made from; all where they are averaged
    kinds: Sequence[str] = KINDS

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @staticmethod
    @abstractmethod
    def fits(model: nn.Module) -> bool:
        """Tell whether ``model`` belongs to this family."""

    @abstractmethod
    def name(self, block: int, kind: str) -> str:
        """Return the name in the model of a block's Linear of a kind, or of its softmax."""

    @abstractmethod
    def block(self, number: int) -> Block:
        """Return the parts of a block; raise UserError, naming the part, if it is built otherwise than `Block`."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return what the first block takes, ``[B, tokens, D]``, of float32 ``[B, 3, S, S]``."""

    @abstractmethod
    def layers(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the model's own blocks; ``[B, tokens, D]`` -> the same."""

    @abstractmethod
    def head(self, tokens: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of what the last block gives."""

    @abstractmethod
    def rebuilt(self, patches: nn.Module | None = None, blocks: nn.Module | None = None) -> nn.Module:
        """Return a copy of the model with another patch embedding, or one module in the place of all blocks."""

    @property
    def targets(self) -> list[str]:
        """Return the names of the patch embedding and of the Linears in the blocks, in their order."""
        return [self.patches, *(self.name(block, kind) for block in range(self.depth) for kind in self.kinds)]

    def blocks(self) -> list[Block]:
        """Return the parts of every block; raise UserError, naming the part, if one is built otherwise."""
        return [self.block(number) for number in range(self.depth)]

    def patch_embedding(self) -> nn.Conv2d:
        """Return the patch embedding; raise UserError if it is more than a Linear over square patches."""
        convolution = self.model.get_submodule(self.patches)
        if not is_patch_embedding(convolution) or len(set(convolution.kernel_size)) > 1:
            raise UserError(
                f"{self.patches} is not a convolution over separate square patches, which this recipe needs: "
                f"{convolution}"
            )
        return convolution
