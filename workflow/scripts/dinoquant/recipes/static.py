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
from dinoquant.recipes.base import Quantized, converted, deprecations_known, engine, require_converted
from dinoquant.recipes.linears import copy_with_targets
from dinoquant.recipes.packed import describe

OBSERVERS: Mapping[str, Any] = {"minmax": MinMaxObserver, "histogram": HistogramObserver}
WEIGHT_OBSERVERS: Mapping[str, Any] = {
    "per-tensor": MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
    "per-channel": PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric),
}
CALIBRATION_BATCH = 16


def quantize(model: nn.Module, options: Mapping[str, Any], calibration: Tensor | None) -> Quantized:
    """Quantize input, weights and output of each chosen Linear by itself; everything between them stays float32.

    :param calibration: float32 ``[N, 3, S, S]``, normalised.

    Raises UserError without calibration images, for an engine that is not there, and for module types of which nothing
    was converted.
    """
    if calibration is None or not len(calibration):
        raise UserError(
            "int8-static needs calibration images, and there are none: set dataset.calibration_images to 1 or more."
        )
    asked = options["modules"]
    changed, targets = copy_with_targets(model, asked)
    with engine(options["engine"]) as chosen, deprecations_known():
        qconfig: Any = _qconfig(options["weights"], options["observer"], chosen)
        for name in targets:
            linear = changed.get_submodule(name)
            linear.qconfig = qconfig
            changed.set_submodule(name, QuantWrapper(linear))
        prepare(changed, inplace=True)  # type: ignore[no-untyped-call]  # not typed in torch
        _calibrate(changed, calibration)
        convert(changed, inplace=True)  # type: ignore[no-untyped-call]  # not typed in torch
        became = converted(model, changed, lambda module: describe(module, chosen))
    require_converted(model, asked, became)
    return Quantized(changed, asked, became, engine=chosen)


def _qconfig(weights: str, observer: str, engine_name: str) -> QConfig:
    # x86 processors without VNNI add two products of 8 bit each in 16 bit, which saturates; 7 bit activations fit.
    # A file may be loaded on another machine than this one, so that this one's processor must not decide.
    reduce_range = engine_name != "qnnpack"
    activation = OBSERVERS[observer].with_args(dtype=torch.quint8, reduce_range=reduce_range)
    return QConfig(activation, WEIGHT_OBSERVERS[weights])  # type: ignore[no-untyped-call]  # not typed in torch


@torch.no_grad()
def _calibrate(model: nn.Module, calibration: Tensor) -> None:
    batches = torch.split(calibration, CALIBRATION_BATCH)
    for batch in tqdm(batches, desc="calibrating", unit="batch", disable=None):
        model(batch)
