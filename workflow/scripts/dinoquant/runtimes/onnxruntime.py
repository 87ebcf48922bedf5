"""ONNX Runtime: its own quantization tools, and its sessions on the CPU. Runs in the peers' environment."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from dinoquant.errors import UserError
from dinoquant.network.card import Card
from dinoquant.runtimes.backend import Array, Converter, Run


class OnnxRuntime:
    """ONNX files, with so many threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def convert(self, source: Path, target: Path, card: Card, images: Array | None) -> None:
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
                CalibrationImages(images),
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

    def exact(self, model: Path, card: Card, images: Array) -> Array:
        """Have the weights made unsigned, which ONNX Runtime multiplies in 32 bits on every processor."""
        return self._session(model, len(images), {"session.x64quantprecision": "1"})(images)

    def load(self, model: Path, card: Card, batch_size: int) -> Run:
        """Open a session for exactly this batch size, which lets it plan its memory."""
        return self._session(model, batch_size, {})

    def _session(self, model: Path, batch_size: int, entries: Mapping[str, str]) -> Run:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.inter_op_num_threads = 1
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.add_free_dimension_override_by_name("batch", batch_size)
        # Its threads spin between operators, and would go on for a while after a call: while something else is timed.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        for key, value in entries.items():
            settings.add_session_config_entry(key, value)
        session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])

        def run(images: Array) -> Array:
            features: Array = session.run(None, {"images": images})[0]
            return features

        return run


class CalibrationImages:
    """The images one by one: what ONNX Runtime asks of a `CalibrationDataReader`, whose base class adds only checks."""

    def __init__(self, images: Array) -> None:
        self._rest: Iterator[Array] = iter(images)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch by the name of its input; None after the last."""
        return next(({"images": image[None]} for image in self._rest), None)


def prepare(threads: int, device: str) -> Converter:
    """Import the library."""
    import onnxruntime  # noqa: F401  # only here does it count as the baseline of the footprint

    return OnnxRuntime(threads)
