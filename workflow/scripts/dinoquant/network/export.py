"""Write a model as a TorchScript file that stock PyTorch loads without this project, and read it back."""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.files import atomic, deflated
from dinoquant.network.card import MEMBER, Card, new_card, read_card, require_intact
from dinoquant.recipes import TOKENS, TORCHSCRIPT
from dinoquant.recipes.base import Quantized, engine

# Largest deviation allowed, relative to the largest feature. What is traced computes what the module does. Freezing
# folds constants: other roundings in float32 (1.2e-3 in an EfficientNetV2 of random weights), and through bfloat16's 8
# bit mantissa or a flipped rounding to int8 much more, carried through the layers (3.4e-2 in a VOLO).
TOLERANCE = 1e-4
TOLERANCE_FROZEN_FLOAT32 = 1e-2
TOLERANCE_FROZEN_REDUCED = 1e-1


def export(
    quantized: Quantized, path: str | Path, variant: str, options: Mapping[str, Any], info: Mapping[str, Any]
) -> None:
    """Trace ``quantized`` and write it to ``path``: float32 ``[B, 3, S, S]`` -> float32 ``[B, D]`` for any B.

    Of a vision transformer the file has a second method, on the same weights: `forward_features` gives all tokens
    behind the last norm, ``[B, N, D]``. Where ``info`` says that the model gives these, it is `forward_head`, which
    makes features of them. The names are timm's.

    The trace is taken at batch 1 and compared with the module at batch 2, before and after it is frozen; the file is
    loaded again and compared with the trace. What the file is, it says itself: `dinoquant.network.card.read_card`.

    :param options: the variant's, with its recipe.
    :param info: the float model's `info.json`.

    Raises UserError if the model yields no feature vectors, or computes otherwise for two images than for one;
    RuntimeError if what was written is not what was traced.
    """
    images = torch.randn(2, 3, info["image_size"], info["image_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given = quantized.module.eval()(images)
    if given.ndim != (3 if info["output"] == TOKENS else 2):
        raise UserError(
            f"model.architecture yields {list(given.shape[1:])} per image, not one feature vector: "
            "choose an architecture that pools its tokens."
        )
    inputs = {"forward": images}
    if info["output"] == TOKENS:
        inputs["forward_head"] = given
    elif info["tokens"] is not None:
        inputs["forward_features"] = images
    expected = _results(quantized.module, inputs)
    traced = _trace(quantized, {method: batch[:1] for method, batch in inputs.items()})
    found = _results(traced, inputs)
    try:
        _require_all_close(found, expected, TOLERANCE, "the trace and the model it was taken from")
    except RuntimeError as error:
        raise UserError(
            "model.architecture computes otherwise for two images than for one, which TorchScript cannot record: "
            f"{str(error).strip().splitlines()[-1]}. Choose another architecture."
        ) from error
    if not quantized.packs_on_loading:
        kept = [*quantized.variable, *(method for method in inputs if method != "forward")]
        with torchscript_warnings_known():
            traced = torch.jit.freeze(traced, preserved_attrs=kept)
        found = _results(traced, inputs)
        tolerance = TOLERANCE_FROZEN_REDUCED if quantized.became else TOLERANCE_FROZEN_FLOAT32
        _require_all_close(found, expected, tolerance, "the frozen trace and the model it was taken from")
    card = new_card(variant, TORCHSCRIPT, options, info, quantized.engine)
    card["torch"] = torch.__version__
    with atomic(path) as partial:
        written = _serialize(traced, card)
        partial.write_bytes(_compressed(written) if quantized.deflated else written)
        reloaded = load(partial)
    _require_all_close(_results(reloaded, inputs), found, TOLERANCE, "the file and the trace it was written from")


def load(path: str | Path, device: str = "cpu", card: Card | None = None) -> torch.jit.ScriptModule:
    """Return a model that `export` wrote, for inference; ``card`` is its card, if both are checked already.

    `torch.jit.load` alone packs quantized weights for PyTorch's default engine; this packs them for the variant's.
    Raises UserError if the file is damaged, which takes as long to find out as reading it.
    """
    if card is None:
        card = read_card(Path(path))
        require_intact(Path(path))
    packed_for = card["engine"]
    with engine(packed_for) if packed_for else nullcontext(), torchscript_warnings_known():
        model: torch.jit.ScriptModule = torch.jit.load(path, device)  # type: ignore[no-untyped-call]  # not typed in torch
    return model.eval()


@contextmanager
def torchscript_warnings_known() -> Iterator[None]:
    """Keep PyTorch 2.15 from calling TorchScript deprecated at every call, and the tracer from listing fixed numbers.

    TorchScript is what this project promises: `torch.jit.load` needs neither the project nor the code of the model. The
    numbers fixed by the tracer are the image size and the activation scales; that the batch size is free is checked.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\..*is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python")  # a TracerWarning
        yield


@torch.no_grad()
def _results(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what each method of ``model`` gives for its input."""
    return [getattr(model, method)(batch) for method, batch in inputs.items()]


@torch.no_grad()
def _trace(quantized: Quantized, inputs: Mapping[str, Tensor]) -> torch.jit.ScriptModule:
    """Return the methods that ``inputs`` are for, of one image."""
    with torchscript_warnings_known():
        traced: torch.jit.ScriptModule = torch.jit.trace_module(  # type: ignore[no-untyped-call]  # not typed in torch
            quantized.module, dict(inputs), check_trace=False
        )
    return traced


def _serialize(traced: torch.jit.ScriptModule, card: Card) -> bytes:
    """Return the file's bytes, which are equal for equal models; with the card, to which ``operators`` come.

    These are the ones outside `aten::` and `prim::`, which not every build of PyTorch has: see docs/arm.

    PyTorch's own are not: the name of the file becomes part of the archive, and so do, as debug information, the paths
    of all Python files that took part in the trace, a job's temporary script among them.
    """
    buffer, stripped = io.BytesIO(), io.BytesIO()
    with torchscript_warnings_known():
        torch.jit.save(traced, buffer)
    buffer.seek(0)
    reader, writer = torch._C.PyTorchFileReader(buffer), torch._C.PyTorchFileWriter(stripped)
    operators: set[str] = set()
    for name in reader.get_all_records():
        # The last one is a digest of the others, which the writer makes anew.
        if not name.endswith((".debug_pkl", ".data/serialization_id")):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
            if name.endswith(".py"):
                called = re.findall(r"\bops\.(\w+)\.(\w+)", record.decode())
                operators |= {f"{library}::{name}" for library, name in called if library != "prim"}
    described = json.dumps({**card, "operators": sorted(operators)}, sort_keys=True).encode()
    writer.write_record(MEMBER, described, len(described))
    writer.write_end_of_file()
    return stripped.getvalue()


class _Deflated:
    """What takes the place of zipfile's compressor, which knows one strategy only."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def compress(self, data: bytes) -> bytes:
        return b""

    def flush(self) -> bytes:
        return self._content


def _compressed(archive: bytes) -> bytes:
    """Return a TorchScript file's bytes with every member compressed, as PyTorch reads them too (by miniz)."""
    compressed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as stored, zipfile.ZipFile(compressed, "w") as target:
        for name in stored.namelist():
            content = stored.read(name)
            member = zipfile.ZipInfo(name)  # of 1980, whenever it is written
            member.compress_type, member.file_size = zipfile.ZIP_DEFLATED, len(content)
            with target.open(member, "w") as stream:
                stream._compressor = _Deflated(deflated(content))  # type: ignore[attr-defined]  # private
                stream.write(content)
    return compressed.getvalue()


def _require_all_close(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float, what: str) -> None:
    for one, other in zip(found, expected, strict=True):
        require_close(one, other, tolerance, what)


def require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raise RuntimeError if two results differ by more than ``tolerance``, relative to the largest feature."""
    deviation = float((found - expected).abs().max() / expected.abs().max())
    if not deviation <= tolerance:  # written so that NaN fails too
        raise RuntimeError(f"{what} differ by {deviation:.2g} of the largest feature; at most {tolerance:.2g} expected")
