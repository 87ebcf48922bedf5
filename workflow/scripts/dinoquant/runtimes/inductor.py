"""PyTorch's compiler, ahead of time (AOTInductor), for our recipes and torchao's. Needs a C++ compiler."""

import copy
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.machine import compiled_for
from dinoquant.network import architecture
from dinoquant.network.card import AGAIN, TORCHSCRIPT_SUFFIX, Card
from dinoquant.network.export import load
from dinoquant.recipes.cast import DTYPES, Cast
from dinoquant.recipes.int8 import compiled, transformer
from dinoquant.runtimes import recipe_of
from dinoquant.runtimes.backend import CHECKED_IMAGES, Array, Converter, Run, of_image
from dinoquant.runtimes.torchscript import set_up

MAX_BATCH = 4096  # as in the config's schema
OPTIONS = {
    # Weights become constants that are packed for oneDNN once; without it int8 products are not int8.
    "freezing": True,
    # By default the number of threads is fixed by that of the compiling process.
    "cpp.dynamic_threads": True,
    # More than images: loops over images, heads and tokens become one, which threads share for one image, too.
    "cpp.threads": 16,
}
METADATA = "dinoquant"  # under which a package has its card, as far as it was known before the compiling


class Inductor:
    """Packages that are compiled for this processor and this PyTorch."""

    @torch.no_grad()
    def convert(self, source: Path, target: Path, card: Card, images: Array | None) -> Mapping[str, object]:
        """Compile the model with the float32 weights ``source``, or what is in the TorchScript file ``source``
        (https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_aot_inductor.html).
        """
        kept: dict[str, object] = {"instructions": compiled_for()}
        if not recipe_of(card["options"]).module:
            network = architecture.restore(card, source)
            exact = compile_package(network, target, card, images)
            return kept if exact is None else {**kept, "exact": exact.tolist()}
        script = load(source)
        network = compiled.rebuilt(architecture.like(card), script)
        compile_package(network, target, card, None)
        return {**kept, "kernels": kernels(network, target)}

    def exact(self, model: Path, card: Card, images: Array) -> Array:
        """Return what the card keeps, as a package holds machine code; or what the TorchScript file beside it gives."""
        if "exact" in card:
            return np.array(card["exact"][: len(images)], dtype=np.float32)
        with torch.inference_mode():
            features: Array = load(model.with_suffix(TORCHSCRIPT_SUFFIX))(torch.from_numpy(images)).numpy()
        return features

    def load(self, model: Path, card: Card, batch_size: int) -> Run:
        """Load a package, for any batch size; raise UserError if it is not whole, another's, or not for here."""
        require_own(model, card)
        require_compiled_for_here(model, card)
        try:
            package = torch._inductor.aoti_load_package(str(model))
        except RuntimeError as error:
            raise UserError(f"{model} does not load ({str(error).splitlines()[0]}). {AGAIN}") from error
        # As in TorchScript: what a few images need stays in the processor's caches.
        together = transformer.Patches.IMAGES if recipe_of(card["options"]).module else MAX_BATCH

        @torch.inference_mode()
        def run(images: Array) -> Array:
            # A package asks for no strides: it would take pixels in another order without a word.
            parts = [package(part) for part in torch.split(torch.from_numpy(images).contiguous(), together)]
            features: Array = (torch.cat(parts) if len(parts) > 1 else parts[0]).numpy()
            return features

        return run


def prepare(threads: int, device: str) -> Converter:
    """Set up PyTorch as it is for TorchScript."""
    set_up(threads)
    return Inductor()


def require_own(package: Path, card: Card) -> None:
    """Raise UserError if ``package`` is not whole, or was made with another card than the one beside it."""
    try:
        with zipfile.ZipFile(package) as archive:
            names = [name for name in archive.namelist() if name.endswith("_metadata.json")]
            own: Card = json.loads(json.loads(archive.read(names[0]))[METADATA])
    except (zipfile.BadZipFile, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{package} is no package of this workflow, or damaged. {AGAIN}") from error
    if not own.items() <= card.items():
        raise UserError(f"{package} is {own['variant']}, and the card beside it another model's. {AGAIN}")


def require_compiled_for_here(package: Path, card: Card) -> None:
    """Raise UserError if a package was compiled by another PyTorch than this, or for what this processor lacks."""
    made, here = card["versions"]["torch"], version("torch")
    lacking = set(card.get("instructions") or ()) - set(compiled_for() or ())
    if made != here:
        what = f"was compiled by PyTorch {made}, and this is {here}, which its code may not fit"
    elif lacking:
        what = f"is machine code for a processor with {', '.join(sorted(lacking))}, which this one lacks"
    else:
        return
    raise UserError(
        f"{package} {what}. Compile it here: delete it and run again, or use the TorchScript file of the same recipe."
    )


@torch.no_grad()
def compile_package(network: nn.Module, target: Path, card: Card, images: Array | None) -> Array | None:
    """Write ``network`` as a package, quantized by torchao if the recipe says so; return the exact features then."""
    recipe, size = card["recipe"], card["image_size"]
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    options = {**OPTIONS, "aot_inductor.metadata": {METADATA: json.dumps(card)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about its own insides
        if recipe == "int8-pt2e":
            network = quantize(network, example, images)
            program = export_graph(network, example)
        else:
            if (dtype := DTYPES.get(recipe, torch.float32)) != torch.float32:
                network = Cast(copy.deepcopy(network).to(dtype), dtype)
            program = export_graph(network, example)
        torch._inductor.aoti_compile_and_package(program, package_path=str(target), inductor_configs=options)
    if recipe != "int8-pt2e" or images is None:
        return None
    exact: Array = network(torch.from_numpy(images[:CHECKED_IMAGES])).numpy()  # in float32, operator by operator
    return of_image(exact)


def kernels(network: nn.Module, package: Path) -> dict[str, str]:
    """Return what multiplies each Linear with int8 weights in a package, by its name in the float model.

    Raises RuntimeError if the code has another number of int8 products than the network: without a word, the compiler
    takes float32 where it does not recognise one (https://github.com/pytorch/ao/issues/4566).
    """
    products = list(compiled.products(network))
    expected = sum(linear.exact for _, linear in products)
    with zipfile.ZipFile(package) as archive:
        code = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".cpp")]
    calls = sum(len(re.findall(r"\(aoti_torch_cpu__qlinear_pointwise\w*\(", text)) for text in code)
    if calls != expected:
        raise RuntimeError(f"{expected} products are int8, but the compiled code has {calls}")
    return {name: "onednn::qlinear_pointwise, int8" if linear.exact else "float32" for name, linear in products}


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
