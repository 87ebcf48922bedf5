"""Find what the last block's [CLS] token attends to, in any model file, from the operators that it runs."""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class NoAttentionError(Exception):
    """The model shows no attention of a [CLS] token; its text says why."""


class TokenInfo(TypedDict):
    """How a model divides an image into tokens."""

    architecture: str
    image_size: int
    patch_size: int
    prefix_tokens: int
    """[CLS] and registers, before the patches."""
    class_token: bool


@torch.inference_mode()
def cls_attention(model: Callable[[Tensor], Tensor], images: Iterable[Tensor], info: TokenInfo) -> NDArray[np.float32]:
    """Return how much the [CLS] token attends to each patch in the last block: float32 ``[N, heads, G, G]``.

    Shares of 1, less what goes to the [CLS] token and registers themselves: the maps by which DINO is known (Caron et
    al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, figure 1; its `visualize_attention.py`).

    Args:
        model: float32 ``[1, 3, S, S]``, normalised, to features. TorchScript from a file, or a module.
        images: one at a time, so that no batch-mate has a part in a scale or is worked off in another piece.

    Raises:
        NoAttentionError: the architecture has no [CLS] token, or the file computes attention in an unknown way.
    """
    if not info["class_token"]:
        raise NoAttentionError(f"{info['architecture']} has no [CLS] token")
    side = info["image_size"] // info["patch_size"]
    maps = []
    for image in images:
        with _AttentionRecorder(side * side + info["prefix_tokens"], info["prefix_tokens"]) as recorder:
            model(image)
        maps.append(recorder.shares()[:, info["prefix_tokens"] :].unflatten(-1, (side, side)))
    return torch.stack(maps).cpu().numpy()


class _AttentionRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # not typed in torch
    """Keep the attention of the last block of a model that is run on one image.

    PyTorch shows such a mode every operator, also those that TorchScript's interpreter calls. Attention is either one
    operator on queries and keys, or ends in a matrix ``[heads, tokens, tokens]`` that the values are multiplied with;
    ``[heads, M, tokens]`` in a last block that computes only the M prefix tokens that the head reads. Whatever positive
    factor a recipe leaves out of that matrix's rows cancels in their shares.
    """

    def __init__(self, tokens: int, prefix_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not typed in torch
        self.tokens = tokens
        self.queries = (*range(1, prefix_tokens + 1), tokens)
        self.weights: Tensor | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Have PyTorch leave its compiler out of this: to keep it away from the operators, it would import it first."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and keep the attention if that is what it computes."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if "scaled_dot_product" in func.name():
            self.weights = _first_row(args[0], args[1], kwargs.get("scale"))
        elif isinstance(result, Tensor) and result.ndim >= 3 and self._is_attention(result.shape[-2:]):
            self.weights = result
        return result

    def _is_attention(self, shape: torch.Size) -> bool:
        return shape[1] == self.tokens and shape[0] in self.queries

    def shares(self) -> Tensor:
        """Return how the first token divides its attention: float32 ``[heads, tokens]``."""
        if self.weights is None:
            raise NoAttentionError("it computes attention by an operator that is not known here")
        weights = self.weights[..., 0, :].flatten(0, -2).float()
        if bool((weights < 0).any()):
            raise NoAttentionError("what it multiplies the values with cannot be told from its other numbers")
        return weights / weights.sum(-1, keepdim=True)


def _first_row(queries: Tensor, keys: Tensor, scale: float | None) -> Tensor:
    """Return the attention of the first of the queries ``[..., tokens, width]``: ``[..., 1, tokens]``."""
    factor = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    return torch.softmax(queries[..., :1, :].float() @ keys.float().transpose(-1, -2) * factor, dim=-1)
