"""Per-token dynamic W8A8: int8 weights, and for each token its own activation scale. Needs no calibration images."""

from torch import Tensor, nn

from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import Options, Quantized, SensitivityRows, recipe
from dinoquant.recipes.int8.assemble import PER_TOKEN, assemble


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Quantize every Linear and the patch embedding; ``calibration`` is not used.

    Raises UserError for a transformer built otherwise than DINO's.
    """
    changed, became = assemble(
        model, dict.fromkeys(targets(model), PER_TOKEN), {}, options["attention"], options["portable"]
    )
    return Quantized(changed, asked={"Linear", "Conv2d"}, became=became, packs_on_loading=True)
