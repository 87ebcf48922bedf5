"""Dynamic quantization: packed int8 or fp16 weights, activations quantized on the fly, one scale for each tensor."""

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    QConfig,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)

from dinoquant.errors import UserError
from dinoquant.recipes.base import (
    Options,
    Quantized,
    SensitivityRows,
    converted,
    deprecations_known,
    engine,
    recipe,
    require_converted,
)
from dinoquant.recipes.linears import copy_with_targets
from dinoquant.recipes.packed import describe

QCONFIGS = {"per-tensor": default_dynamic_qconfig, "per-channel": per_channel_dynamic_qconfig}


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Apply `torch.ao.quantization.quantize_dynamic`; ``calibration`` is not used.

    Raises UserError for an engine that is not there and for module types of which nothing was converted.
    """
    if options["recipe"] == "fp16-dynamic":
        return _quantize(model, ["Linear"], float16_dynamic_qconfig, _fp16_engine())
    return _quantize(model, options["modules"], QCONFIGS[options["weights"]], options["engine"])


def _quantize(model: nn.Module, asked: list[str], qconfig: QConfig, engine_name: str) -> Quantized:
    changed, targets = copy_with_targets(model, asked)
    with engine(engine_name) as chosen, deprecations_known():
        by_name = dict.fromkeys(targets, qconfig)
        quantize_dynamic(changed, by_name, inplace=True)  # type: ignore[no-untyped-call]  # not typed in torch
        became = converted(model, changed, lambda module: describe(module, chosen))
    require_converted(model, asked, became)
    return Quantized(changed, asked, became, engine=chosen)


def _fp16_engine() -> str:
    """Return the engine that has `quantized::linear_dynamic_fp16`; oneDNN and QNNPACK refuse to pack for it."""
    for name in ("x86", "fbgemm"):
        if name in torch.backends.quantized.supported_engines:
            return name
    raise UserError(
        "fp16-dynamic needs PyTorch's FBGEMM engine (x86 processors with AVX2), which this build does not have. "
        "Remove the variant, or use bf16 or int8-weight-only here."
    )
