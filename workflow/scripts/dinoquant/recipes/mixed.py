"""Mixed precision: int8 where it does no harm, and for the modules named in the config what they need instead."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import Options, Quantized, SensitivityRows, recipe
from dinoquant.recipes.int8.assemble import FP32, assemble
from dinoquant.recipes.int8.calibration import observe, require_images


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Give each Linear the precision that the config names for it.

    :param calibration: float32 ``[N, 3, S, S]``, normalised.

    Raises UserError without calibration images, for a pattern that fits no module, or for a transformer built otherwise
    than DINO's.
    """
    precisions = choose(targets(model), options["default"], options["precisions"])
    seen = observe(model, require_images("int8-mixed", calibration))
    changed, became = assemble(model, precisions, seen, options["attention"], options["portable"])
    asked = {"Linear", "Conv2d"} if set(precisions.values()) != {FP32} else set()
    return Quantized(changed, asked=asked, became=became, packs_on_loading=True)


def choose(names: Sequence[str], default: str, patterns: Mapping[str, str]) -> dict[str, str]:
    """Return the precision of each module: that of the last pattern that fits its name, or the default.

    Raises UserError for a pattern that fits none.
    """
    chosen = dict.fromkeys(names, default)
    for pattern, precision in patterns.items():
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(
                f"precisions: {pattern} fits no module. There are, for example: {', '.join(names[:5])}. "
                "* stands for any characters: blocks.*.mlp.fc2"
            )
        chosen |= dict.fromkeys(fitting, precision)
    return chosen
