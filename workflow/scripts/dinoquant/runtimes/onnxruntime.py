"""ONNX Runtime: its own quantization tools, and its sessions on the CPU. Runs in the peers' environment."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinoquant.errors import UserError
from dinoquant.runtimes.worker import Array, Run

_threads = 1


def prepare(threads: int) -> None:
    """Import the library, and let what is loaded from now on have so many threads."""
    global _threads
    import onnxruntime  # noqa: F401  # only here does it count as the baseline of the footprint

    _threads = threads


def convert(source: Path, target: Path, card: dict[str, Any], images: Array | None) -> None:
    """Quantize the ONNX file ``source`` with ONNX Runtime's own tools
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html); fp32 is the file as it is.
    """
    if card["recipe"] == "fp32":
        shutil.copyfile(source, target)
        return
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)  # it would take SymPy, and the shapes are known
    if card["recipe"] == "int8-dynamic":
        per_channel = card["options"]["weights"] == "per-channel"
        quantization.quantize_dynamic(
            prepared, target, weight_type=quantization.QuantType.QInt8, per_channel=per_channel
        )
    elif images is None or not len(images):
        raise UserError("int8-static needs calibration images: set dataset.calibration_images to 1 or more.")
    else:
        quantization.quantize_static(
            prepared,
            target,
            _reader(images),
            # By default LayerNorm, softmax and the residual sums are quantized too: trained features are gone then.
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            # Nodes that the CPU provider fuses into int8 kernels: what ONNX Runtime recommends on x86.
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            activation_type=quantization.QuantType.QUInt8,  # with int8 weights, what VNNI multiplies
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
    prepared.unlink()


def _reader(images: Array) -> Any:
    """Return the images one by one, as the calibration takes them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # not typed in onnxruntime
        rest = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(({"images": image[None]} for image in self.rest), None)

    return Reader()


def load(model: Path, card: dict[str, Any], batch_size: int) -> Run:
    """Open a session for exactly this batch size, which lets it plan its memory."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = _threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.add_free_dimension_override_by_name("batch", batch_size)
    # Its threads spin between operators, and would go on for a while after a call: while something else is timed.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])

    def run(images: Array) -> Array:
        features: Array = session.run(None, {"images": images})[0]
        return features

    return run
