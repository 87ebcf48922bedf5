"""OpenVINO, and NNCF's quantization for it. Runs in the peers' environment."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dinoquant.errors import UserError
from dinoquant.network.card import Card
from dinoquant.runtimes.backend import Array, Converter, Run

if TYPE_CHECKING:
    import openvino

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVino:
    """Files in OpenVINO's format, with so many threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def convert(self, source: Path, target: Path, card: Card, images: Array | None) -> None:
        """Convert the ONNX file ``source``; int8-nncf quantizes it: SmoothQuant and a correction of the biases
        (https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html).
        """
        import openvino

        model = openvino.convert_model(source)
        if card["recipe"] == "int8-nncf":
            import nncf

            if images is None or not len(images):
                raise UserError("int8-nncf needs calibration images: set dataset.calibration_images to 1 or more.")
            model.reshape([1, *images.shape[1:]])
            dataset = nncf.Dataset([image[None] for image in images])
            model = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
            model.reshape([-1, *images.shape[1:]])
        openvino.save_model(model, target, compress_to_fp16=False)  # by default fp32 would not be fp32

    def exact(self, model: Path, card: Card, images: Array) -> Array:
        """Compile with the integers of the weights as float32, which leaves only products of floats."""
        import openvino
        from openvino import opset15

        network = openvino.Core().read_model(model)
        for node in network.get_ops():
            if node.get_type_name() != "Convert":
                continue
            weight = node.input_value(0).get_node()
            if weight.get_type_name() == "Constant" and weight.get_element_type().size == 1:
                openvino.utils.replace_node(node, opset15.constant(weight.get_data().astype(np.float32)))
        return self._compiled(network, card, len(images))(images)

    def load(self, model: Path, card: Card, batch_size: int) -> Run:
        """Compile for exactly this batch size, which is when it is fastest.

        Raises UserError where the processor does not have the precision: OpenVINO would silently take another.
        """
        import openvino

        return self._compiled(openvino.Core().read_model(model), card, batch_size)

    def _compiled(self, network: "openvino.Model", card: Card, batch_size: int) -> Run:
        import openvino

        asked = str(card["options"]["rest"] if card["recipe"] == "int8-nncf" else card["recipe"])
        properties: dict[str, str | int] = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": PRECISIONS[asked],  # asked for always: by default the processor decides
        }
        if batch_size == 1:
            properties["PERFORMANCE_HINT"] = "LATENCY"
        size = card["image_size"]
        network.reshape([batch_size, 3, size, size])
        compiled = openvino.Core().compile_model(network, "CPU", properties)
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != PRECISIONS[asked]:
            raise UserError(
                f"OpenVINO computes in {precision} on this processor, not in {asked}, which the variant "
                f"{card['variant']} asks for. Leave it out: set it to null in variants."
            )
        request = compiled.create_infer_request()

        def run(images: Array) -> Array:
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.infer()
            features: Array = request.get_output_tensor().data
            return features

        return run


def prepare(threads: int, device: str) -> Converter:
    """Import the library."""
    os.environ["NNCF_CI"] = "1"  # no telemetry
    import openvino  # noqa: F401  # only here does it count as the baseline of the footprint

    return OpenVino(threads)
