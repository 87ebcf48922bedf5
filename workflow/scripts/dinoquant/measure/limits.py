"""How fast each variant could be at best: its operations at the machine's peaks, or its bytes at the memory's speed.

The bound of the roofline model (see `dinoquant.measure.peaks`). Needs no PyTorch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoquant.files import read_rows, write_rows

COLUMNS = ("variant", "device", "batch_size", "gmacs", "limit_ms", "bound", "operations_per_byte")
FLOAT_BYTES = 4
# The precision of a part's products, by what its audit says that it became.
BECAME = {
    r"fp32|.*float32 arithmetic|fp16 dynamic.*": "fp32",  # FBGEMM converts fp16 weights and multiplies in float32
    r"bf16|bfloat16|products in bf16.*": "bf16",
    r"float16": "fp16",
    r"int8.*": "int8",
}
# Likewise by the recipe's name, for runtimes that do not tell of their parts: every product, so it is a bound at least.
RECIPES = {r"fp32": "fp32", r"bf16": "bf16", r"fp16": "fp16", r"int8-.*": "int8"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """What one variant does for an image: multiply-adds by precision (None: not known), and the bytes of its file."""

    macs: Mapping[str | None, int]
    file_bytes: int


def precision(text: str, table: Mapping[str, str]) -> str | None:
    """Return the precision that ``text`` stands for in a table of patterns; None for a text that it does not know."""
    return next((found for pattern, found in table.items() if re.fullmatch(pattern, text)), None)


def macs_by_precision(macs: Mapping[str, int], audit: Mapping[str, str] | None, recipe: str) -> dict[str | None, int]:
    """Return the multiply-adds by precision of a variant.

    :param macs: multiply-adds by part (`dinoquant.network.operations.needed`).
    :param audit: what the parts became, by name; None where there is no audit, and the recipe's name has to tell.
    """
    found: Counter[str | None] = Counter()
    for part, count in macs.items():
        found[precision(recipe, RECIPES) if audit is None else precision(audit.get(part, "fp32"), BECAME)] += count
    return dict(found)


def compute_seconds(macs: Mapping[str | None, int], peaks: Mapping[str, float | None]) -> float | None:
    """Return the time of all products at the machine's peaks in operations/s, one precision after the other.

    None if a precision or its peak is not known. Where a narrow product is slower than float32, as on processors that
    emulate it, the numbers may as well be multiplied in float32.
    """
    seconds = 0.0
    for kind, count in macs.items():
        peak = peaks.get(kind) if kind else None
        if peak is None:
            return None
        seconds += 2 * count / max(peak, peaks.get("fp32") or 0)
    return seconds


def limit(model: Model, batch_size: int, image_size: int, feature_dim: int, machine: Mapping[str, Any]) -> Row:
    """Return the last columns of a row: the shortest time of a call in ms, what bounds it, operations per byte.

    The bytes are those that a call cannot do without: the file's weights once, the images and the features, float32.
    Weights that stay in a cache from call to call can be faster than memory.
    """
    moved = model.file_bytes + FLOAT_BYTES * batch_size * (3 * image_size**2 + feature_dim)
    total = sum(model.macs.values())
    one = compute_seconds(model.macs, machine["gemm_flops"])
    row: Row = {"gmacs": total / 1e9, "operations_per_byte": 2 * total * batch_size / moved}
    if one is None:
        return row
    compute, memory = batch_size * one, moved / machine["bandwidth_bytes_per_s"]
    return row | {"limit_ms": 1e3 * max(compute, memory), "bound": "compute" if compute >= memory else "memory"}


def rows(
    models: Mapping[str, Model],
    machines: Iterable[Mapping[str, Any]],
    info: Mapping[str, Any],
    measured: Iterable[tuple[str, str]],
    batch_sizes: Iterable[int],
) -> Iterator[Row]:
    """Yield a row per device and variant in ``measured``, and batch size; what is not known is missing.

    :param models: by variant.
    :param machines: the peaks of each device, as `dinoquant.measure.peaks.measure` returns them.
    :param info: of the float32 model: ``image_size`` and ``feature_dim``.
    """
    machine_of = {machine["device"]: machine for machine in machines}
    batch_sizes = list(batch_sizes)
    for device, variant in measured:
        for batch_size in batch_sizes:
            found = limit(models[variant], batch_size, info["image_size"], info["feature_dim"], machine_of[device])
            yield {"variant": variant, "device": device, "batch_size": batch_size, **found}


def read_became(audit: str | Path) -> dict[str, str]:
    """Return what every part became, by name, from an `audit.csv`."""
    return {row["module"]: row["became"] for row in read_rows(audit)}


def write(path: str | Path, table: Iterable[Row]) -> None:
    """Write the rows as CSV with six significant digits; missing values are empty."""
    rounded = (
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in table
    )
    write_rows(path, COLUMNS, rounded)
