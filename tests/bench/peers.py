"""Make a model file of another runtime from the ONNX file beside it, or print the versions. Runs in `.venv-peers`."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

FP32 = "fp32.onnx"
CALIBRATION = "calibration.npy"
# What is compared: the runtime, the file it runs, and OpenVINO's precision of what is not quantized.
PEERS = {
    "openvino-fp32": ("openvino", "openvino-fp32.xml", "f32"),
    "openvino-bf16": ("openvino", "openvino-fp32.xml", "bf16"),
    "openvino-nncf-int8": ("openvino", "openvino-nncf-int8.xml", "f32"),
    "openvino-nncf-int8-bf16": ("openvino", "openvino-nncf-int8.xml", "bf16"),
    "onnxruntime-fp32": ("onnxruntime", FP32, "f32"),
    "onnxruntime-int8-dynamic": ("onnxruntime", "onnxruntime-int8-dynamic.onnx", "f32"),
    "onnxruntime-int8-dynamic-per-channel": ("onnxruntime", "onnxruntime-int8-dynamic-per-channel.onnx", "f32"),
    "onnxruntime-int8-static": ("onnxruntime", "onnxruntime-int8-static.onnx", "f32"),
}


def openvino(path: Path) -> None:
    """Convert to OpenVINO, or quantize with NNCF: SmoothQuant, and a correction of the biases."""
    os.environ.setdefault("NNCF_CI", "1")  # no telemetry
    import openvino as ov

    model = ov.convert_model(path.with_name(FP32))
    if "int8" in path.stem:
        import nncf

        images = np.load(path.with_name(CALIBRATION))
        model.reshape([1, *images.shape[1:]])
        dataset = nncf.Dataset([image[None] for image in images])
        model = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    ov.save_model(model, path, compress_to_fp16=False)


def onnxruntime(path: Path) -> None:
    """Quantize with ONNX Runtime's own tools."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):
        images = iter(np.load(path.with_name(CALIBRATION)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"images": image[None]} for image in self.images), None)

    options = {"weight_type": quantization.QuantType.QInt8, "per_channel": not path.stem.endswith("dynamic")}
    prepared = path.with_suffix(".prepared")
    quant_pre_process(path.with_name(FP32), prepared, skip_symbolic_shape=True)
    if "dynamic" in path.stem:
        quantization.quantize_dynamic(prepared, path, **options)
    else:
        quantization.quantize_static(
            prepared,
            path,
            Calibration(),
            # By default LayerNorm, softmax and the residual sums are quantized too: trained features are gone then.
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            activation_type=quantization.QuantType.QUInt8,
            **options,
        )
    prepared.unlink()


if __name__ == "__main__":
    if sys.argv[1:]:
        file = Path(sys.argv[1])
        {"openvino": openvino, "onnxruntime": onnxruntime}[file.name.partition("-")[0]](file)
    else:
        print(", ".join(f"{library} {version(library)}" for library in ("openvino", "nncf", "onnxruntime")))
