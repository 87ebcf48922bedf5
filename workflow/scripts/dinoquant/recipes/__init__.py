"""The table of quantization recipes: which module implements each, and where each can run.

Imports neither torch nor a recipe, so that the Snakefile can read it on a head node without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """What the workflow must know of a recipe before running it."""

    module: str  # dinoquant.recipes.<module> has `quantize(model, options, calibration) -> Quantized`
    calibrated: bool = False  # needs calibration images
    sensitivity: bool = False  # needs sensitivity.csv: `quantize(model, options, calibration, sensitivity)`
    unsupported: Mapping[str, str] = field(default_factory=dict)  # device -> reason


_NO_CUDA_KERNEL = "has no CUDA kernel in PyTorch: the int8 and fp16-dynamic `quantized::` operators are CPU-only"
_ONEDNN = "is packed for oneDNN, which PyTorch has for CPUs only"

RECIPES: Mapping[str, Recipe] = {
    "fp32": Recipe("cast"),
    "bf16": Recipe("cast"),
    "fp16": Recipe("cast", unsupported={"cpu": "a GPU precision: few CPUs compute in fp16, the others emulate it"}),
    "fp16-dynamic": Recipe("dynamic", unsupported={"cuda": f"quantized::linear_dynamic_fp16 {_NO_CUDA_KERNEL}"}),
    "int8-dynamic": Recipe("dynamic", unsupported={"cuda": f"quantized::linear_dynamic {_NO_CUDA_KERNEL}"}),
    "int8-static": Recipe("static", calibrated=True, unsupported={"cuda": f"quantized::linear {_NO_CUDA_KERNEL}"}),
    "int8-weight-only": Recipe("weight_only"),
    "fp32-onednn": Recipe("onednn", unsupported={"cuda": _ONEDNN}),
    "int8-per-token": Recipe("per_token"),
    "int8-smooth": Recipe("smooth", calibrated=True, unsupported={"cuda": _ONEDNN}),
    "int8-mixed": Recipe("mixed", calibrated=True, unsupported={"cuda": _ONEDNN}),
    "int8-auto": Recipe("auto", calibrated=True, sensitivity=True, unsupported={"cuda": _ONEDNN}),
}
