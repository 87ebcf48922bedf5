"""Smoothed static W8A8: fixed activation scales, made bearable by SmoothQuant, split outlier channels and GPTQ."""

from torch import Tensor, nn

from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import Options, Quantized, SensitivityRows, recipe
from dinoquant.recipes.int8.assemble import STATIC, assemble
from dinoquant.recipes.int8.calibration import observe, require_images


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Quantize every Linear and the patch embedding.

    :param calibration: float32 ``[N, 3, S, S]``, normalised.

    Raises UserError without calibration images, or for a transformer built otherwise than DINO's.
    """
    precisions = dict.fromkeys(targets(model), STATIC)
    seen = observe(model, require_images("int8-smooth", calibration))
    changed, became = assemble(model, precisions, seen, options["attention"], options["portable"])
    return Quantized(changed, asked={"Linear", "Conv2d"}, became=became, packs_on_loading=True)
