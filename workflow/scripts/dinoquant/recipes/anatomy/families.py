"""The families of transformers whose parts the recipes know; another family is another adapter beside `vit`."""

from collections.abc import Sequence

from torch import nn

from dinoquant.errors import UserError
from dinoquant.recipes.anatomy.description import Anatomy
from dinoquant.recipes.anatomy.vit import VitAnatomy

FAMILIES: Sequence[type[Anatomy]] = (VitAnatomy,)


def anatomy_of(model: nn.Module) -> Anatomy:
    """Return the description of ``model``; raise UserError if it belongs to no family that has an adapter."""
    for family in FAMILIES:
        if family.fits(model):
            return family(model)
    known = ", ".join(family.__name__.removesuffix("Anatomy") for family in FAMILIES)
    raise UserError(f"The model is a {type(model).__name__}, whose parts are not described here; there is: {known}.")


def targets(model: nn.Module) -> list[str]:
    """Return the names of the patch embedding and of the Linears in the blocks: what the int8 recipes quantize."""
    return anatomy_of(model).targets
