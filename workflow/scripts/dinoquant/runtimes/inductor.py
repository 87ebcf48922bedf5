"""PyTorch's compiler, ahead of time (AOTInductor), and torchao's quantization for it. Needs a C++ compiler."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.network import architecture
from dinoquant.network.card import Card
from dinoquant.recipes import cast
from dinoquant.runtimes.backend import CHECKED_IMAGES, Array, Converter, Run, of_image
from dinoquant.runtimes.torchscript import set_up

MAX_BATCH = 4096  # as in the config's schema
OPTIONS = {
    # Weights become constants that are packed for oneDNN once; without it int8 products are not int8.
    "freezing": True,
    # By default the number of threads is fixed by that of the compiling process.
    "cpp.dynamic_threads": True,
}


class Inductor:
    """Packages that are compiled for this processor and this PyTorch."""

    @torch.no_grad()
    def convert(self, source: Path, target: Path, card: Card, images: Array | None) -> Array | None:
        """Compile the model with the float32 weights ``source``
        (https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_aot_inductor.html).
        """
        network = architecture.restore(card, source)
        return compile_package(network, target, card["recipe"], card["image_size"], images)

    def exact(self, model: Path, card: Card, images: Array) -> Array:
        """Return what the card keeps: a package holds machine code."""
        return np.array(card["exact"][: len(images)], dtype=np.float32)

    def load(self, model: Path, card: Card, batch_size: int) -> Run:
        """Load a package, for any batch size."""
        compiled = torch._inductor.aoti_load_package(str(model))

        @torch.inference_mode()
        def run(images: Array) -> Array:
            features: Array = compiled(torch.from_numpy(images)).numpy()
            return features

        return run


def prepare(threads: int, device: str) -> Converter:
    """Set up PyTorch as it is for TorchScript."""
    set_up(threads)
    return Inductor()


@torch.no_grad()
def compile_package(
    network: nn.Module, target: Path, recipe: str, image_size: int, images: Array | None
) -> Array | None:
    """Write ``network`` as a package, quantized if the recipe says so; return the exact features then."""
    example = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about its own insides
        if recipe == "int8-pt2e":
            network = quantize(network, example, images)
            program = export_graph(network, example)
        else:
            program = export_graph(cast.quantize(network, {"recipe": recipe}, None).module, example)
        torch._inductor.aoti_compile_and_package(program, package_path=str(target), inductor_configs=OPTIONS)
    if recipe != "int8-pt2e" or images is None:
        return None
    exact: Array = network(torch.from_numpy(images[:CHECKED_IMAGES])).numpy()  # in float32, operator by operator
    return of_image(exact)


def export_graph(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return the graph for any batch size; exported with one of 2, as 1 would become a constant."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},))


def quantize(network: nn.Module, example: Tensor, images: Array | None) -> nn.Module:
    """Quantize as torchao's tutorial for x86 does: static int8, activations per tensor, weights per channel
    (https://docs.pytorch.org/ao/stable/tutorials_source/pt2e_quant_x86_inductor.html).
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    if images is None or not len(images):
        raise UserError("int8-pt2e needs calibration images: set dataset.calibration_images to 1 or more.")
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(export_graph(network, example).module(), quantizer)
    for image in torch.from_numpy(images):
        observed(image[None])
    quantized: nn.Module = convert_pt2e(observed)
    return quantized
