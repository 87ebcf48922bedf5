"""The families of transformers whose parts the recipes know; another family is another adapter beside `vit`."""

from collections.abc import Sequence

from torch import nn

from dinoquant.errors import UserError
from dinoquant.recipes.anatomy.description import Anatomy
from dinoquant.recipes.anatomy.eva import EvaAnatomy
from dinoquant.recipes.anatomy.vit import VitAnatomy

FAMILIES: Sequence[type[Anatomy]] = (VitAnatomy, EvaAnatomy)


def described(model: nn.Module) -> Anatomy | None:
    """Return the description of ``model``; None if it belongs to no family that has an adapter."""
    return next((family(model) for family in FAMILIES if family.fits(model)), None)


def anatomy_of(model: nn.Module) -> Anatomy:
    """Return the description of ``model``; raise UserError if it belongs to no family that has an adapter."""
    if (anatomy := described(model)) is None:
        raise UserError(
            f"The model is a {type(model).__name__}, and this recipe takes plain vision transformers only: timm's "
            "VisionTransformer and Eva. Use int8-dynamic or int8-weight-only, which take the Linears of any model, or "
            "bf16 for one that has none."
        )
    return anatomy


def targets(model: nn.Module) -> list[str]:
    """Return the names of the patch embedding and of the Linears in the blocks: what the int8 recipes quantize."""
    return anatomy_of(model).targets
