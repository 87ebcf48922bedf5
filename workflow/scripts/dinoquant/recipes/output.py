"""What a network's forward pass gives: features, or all tokens that they are made from."""

from typing import Any

from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.recipes import TOKENS

PLAIN = (VisionTransformer, Eva)  # vision transformers of equal blocks, with all tokens in each


class GivesTokens(nn.Module):
    """A network of timm's whose forward pass ends before its head, which makes features of what it gives."""

    forward_features: Any

    def forward(self, images: Tensor) -> Tensor:
        """float32 ``[B, 3, S, S]`` -> float32 ``[B, N, D]``, behind the last norm."""
        tokens: Tensor = self.forward_features(images)
        return tokens


def with_output(model: nn.Module, output: str) -> nn.Module:
    """Return ``model``, changed in place to give "features" or "tokens"; all else that it can do stays.

    Raises UserError where no tokens are behind the last norm.
    """
    if output == TOKENS:
        if token_count(model) is None:
            raise UserError(
                f"model.output is tokens, but a {type(model).__name__} has no tokens of equal patches behind its last "
                "norm, as timm's VisionTransformer and Eva do. Set model.output to features."
            )
        kind: Any = type(model)
        model.__class__ = type(kind.__name__, (GivesTokens, kind), {})
    return model


def give_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the features ``[B, D]`` of images, also of a model that gives tokens."""
    features: Tensor = model(images)
    if isinstance(model, GivesTokens):
        head: Any = model.forward_head
        features = head(features)
    return features


def token_count(model: nn.Module) -> int | None:
    """Return how many tokens a plain vision transformer makes of an image, None for another network."""
    if not isinstance(model, PLAIN):
        return None
    plain: Any = model
    return int(plain.patch_embed.num_patches + plain.num_prefix_tokens)
