"""The products of int8-smooth from a file of half its size: weights in steps as wide as the features bear, deflated."""

import copy

from torch import Tensor, nn

from dinoquant.files import deflated
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import Converted, Options, Quantized, SensitivityRows, parts, recipe
from dinoquant.recipes.int8.assemble import STATIC, assemble
from dinoquant.recipes.int8.calibration import observe, require_images
from dinoquant.recipes.int8.coarse import equally_harmful, set_coarsest, short


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Quantize every Linear and the patch embedding to about as many bits a weight as the variant's ``bits``.

    Loaded, the file is int8-smooth's: int8 weights with a scale for each output.

    :param calibration: float32 ``[N, 3, S, S]``, normalised.

    Raises UserError without calibration images, or for a transformer built otherwise than DINO's.
    """
    names = targets(model)
    seen = observe(model, require_images("few-bits", calibration))
    prepared = copy.deepcopy(model)
    weights = {name: prepared.get_parameter(f"{name}.weight").flatten(1) for name in names}
    for name, steps in equally_harmful(weights, seen, options["bits"], options["portable"]).items():
        set_coarsest(prepared.get_submodule(name), steps)
    shortened = {}
    for part in parts(prepared):
        if part.kind != "Parameter":
            continue
        parameter = prepared.get_parameter(part.name)
        if parameter.ndim > 1:  # position embedding and prefix tokens
            parameter.copy_(short(parameter))
            size = len(deflated(parameter.numpy().tobytes()))
            shortened[part.name] = Converted("float32, in bfloat16's digits", "fp32", size)
    changed, became = assemble(prepared, dict.fromkeys(names, STATIC), seen, options["attention"], options["portable"])
    asked = {"Linear", "Conv2d"}
    return Quantized(changed, asked, became | shortened, packs_on_loading=True, deflated=True)
