"""List for every part of the model what a variant asked of it, what it became, and what it weighs."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from torch import nn

from dinoquant.files import write_rows
from dinoquant.recipes.base import ModelPart, Quantized, parts
from dinoquant.recipes.patch_embedding import is_patch_embedding

UNCHANGED = "fp32"
REASONS = {
    "LayerNorm": "computed from its input's own mean and variance; no matrix product",
    "GELU": "a nonlinear function without integer kernel in PyTorch; no matrix product",
    "softmax": "inside scaled_dot_product_attention, which has no integer kernel in PyTorch",
    "Dropout": "does nothing in eval mode",
    "PatchDropout": "does nothing in eval mode",
    "DropPath": "does nothing in eval mode",
    "Identity": "does nothing",
    "LayerScale": "one multiplication per channel; no matrix product",
    "Parameter": "added to or joined with the tokens; no matrix product",
}


class Row(TypedDict):
    """A part of the model in `audit.csv`."""

    module: str
    kind: str
    quantizable: str  # "true" or "false"
    reason: str
    asked: str  # the recipe, where it was asked to convert this kind
    became: str  # `UNCHANGED` exactly where the recipe left the part alone
    precision: str  # of its products: "int8", "bf16", "fp16" or "fp32"
    why: str  # where the recipe chose the precision by itself
    kernel: str  # of the int8 products in a package: what multiplies them, by its code; empty for TorchScript files
    parameters: int
    bytes_before: int  # of the tensors in the file: weights, biases, scales and zero points
    bytes_after: int


COLUMNS = tuple(Row.__annotations__)


def rows(model: nn.Module, recipe: str, quantized: Quantized) -> Iterator[Row]:
    """Yield a row per part of the float ``model``: its leaf modules, its softmaxes, its loose parameters."""
    for part in parts(model):
        quantizable, reason = _verdict(model, part)
        became = quantized.became.get(part.name)
        yield {
            "module": part.name,
            "kind": part.kind,
            "quantizable": str(quantizable).lower(),
            "reason": reason,
            "asked": recipe if part.kind in quantized.asked else "",
            "became": became.what if became else UNCHANGED,
            "precision": became.precision if became else "fp32",
            "why": became.why if became else "",
            "kernel": "",
            "parameters": part.parameters,
            "bytes_before": part.bytes,
            "bytes_after": became.bytes if became else part.bytes,
        }


def write(path: str | Path, model: nn.Module, recipe: str, quantized: Quantized) -> None:
    """Write the rows as CSV."""
    write_rows(path, COLUMNS, rows(model, recipe, quantized))


def with_kernels(rows: Iterable[Mapping[str, str]], kernels: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the rows of a TorchScript file's audit as those of the package that was compiled from it.

    ``kernels`` are those of its card. Raises ValueError unless each int8 row has one, and each of them a row.
    """
    merged = [{**row, "kernel": kernels.get(row["module"], "")} for row in rows]
    int8 = {row["module"] for row in merged if row["precision"] == "int8"}
    if unequal := int8 ^ kernels.keys():
        raise ValueError(f"a kernel without an int8 module, or a module without a kernel: {', '.join(sorted(unequal))}")
    return merged


def _verdict(model: nn.Module, part: ModelPart) -> tuple[bool, str]:
    if part.kind == "Linear":
        return True, "a matrix product, which has integer kernels"
    if part.kind == "Conv2d":
        if is_patch_embedding(model.get_submodule(part.name)):
            return True, "kernel equals stride: computed as a Linear over flattened patches"
        return False, "overlapping, padded or grouped: not a Linear over patches, and PyTorch has no dynamic Conv2d"
    return False, REASONS.get(part.kind, "no recipe converts this kind")
