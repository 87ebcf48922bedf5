"""Static quantization: int8 weights and activations, with activation ranges fixed on calibration images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QuantWrapper,
    convert,
    prepare,
)
from tqdm import tqdm

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
from dinoquant.recipes.int8.calibration import require_images
from dinoquant.recipes.linears import copy_with_targets
from dinoquant.recipes.packed import describe

OBSERVERS: Mapping[str, Any] = {"minmax": MinMaxObserver, "histogram": HistogramObserver}
WEIGHT_OBSERVERS: Mapping[str, Any] = {
    "per-tensor": MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
    "per-channel": PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric),
}
CALIBRATION_BATCH = 16
X86_ENGINES = ("x86", "fbgemm")


@recipe
def quantize(
    model: nn.Module, options: Options, calibration: Tensor | None = None, sensitivity: SensitivityRows = ()
) -> Quantized:
    """Quantize input, weights and output of each chosen Linear by itself; everything between them stays float32.

    :param calibration: float32 ``[N, 3, S, S]``, normalised.

    Raises UserError without calibration images, for an engine that is not there or has no real kernel, and for module
    types of which nothing was converted.
    """
    images = require_images("int8-static", calibration)
    asked = options["modules"]
    changed, targets = copy_with_targets(model, asked)
    with engine(options["engine"]) as chosen, deprecations_known():
        _require_kernel(chosen)
        qconfig: Any = _qconfig(options["weights"], options["observer"], chosen)
        for name in targets:
            linear = changed.get_submodule(name)
            linear.qconfig = qconfig
            changed.set_submodule(name, QuantWrapper(linear))
        prepare(changed, inplace=True)  # type: ignore[no-untyped-call]  # not typed in torch
        _calibrate(changed, images)
        convert(changed, inplace=True)  # type: ignore[no-untyped-call]  # not typed in torch
        became = converted(model, changed, lambda module: describe(module, chosen))
    require_converted(model, asked, became)
    return Quantized(changed, asked, became, engine=chosen)


def _qconfig(weights: str, observer: str, engine_name: str) -> QConfig:
    # x86 processors without VNNI add two products of 8 bit each in 16 bit, which saturates; 7 bit activations fit.
    # A file may be loaded on another machine than this one, so that this one's processor must not decide.
    highest = 127 if engine_name in X86_ENGINES else 255
    activation = OBSERVERS[observer].with_args(dtype=torch.quint8, quant_min=0, quant_max=highest)
    return QConfig(activation, WEIGHT_OBSERVERS[weights])  # type: ignore[no-untyped-call]  # not typed in torch


def _require_kernel(engine_name: str) -> None:
    if engine_name == "onednn" and "x86" in torch.backends.quantized.supported_engines:
        raise UserError(
            "engine onednn has only its reference kernel for int8-static on x86 processors (`ref_int8` under "
            "ONEDNN_VERBOSE=1, as soon as an input has a zero point): it takes a thousand times as long as the others. "
            "Set the variant's engine to auto, x86 or fbgemm."
        )


@torch.no_grad()
def _calibrate(model: nn.Module, calibration: Tensor) -> None:
    batches = torch.split(calibration, CALIBRATION_BATCH)
    for batch in tqdm(batches, desc="calibrating", unit="batch", disable=None):
        model(batch)
