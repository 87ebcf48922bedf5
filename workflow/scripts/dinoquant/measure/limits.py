"""How fast each variant could be at best: its operations at the machine's peaks, or its bytes at the memory's speed.

The bound of the roofline model (see `dinoquant.measure.peaks`). Needs no PyTorch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from dinoquant.files import read_rows, write_rows

FLOAT_BYTES = 4


class Bound(TypedDict, total=False):
    """The shortest time of a call; what is not known is absent."""

    gmacs: float
    limit_ms: float
    bound: str  # "compute" or "memory"
    operations_per_byte: float


class Row(Bound):
    """A row of `limits.csv`."""

    variant: str
    device: str
    batch_size: int


COLUMNS = ("variant", "device", "batch_size", *Bound.__annotations__)


class Machine(TypedDict):
    """What `dinoquant.measure.peaks.measure` returns, as far as it is read here."""

    device: str
    gemm_flops: Mapping[str, float | None]  # operations/s by precision
    bandwidth_bytes_per_s: float


class Info(TypedDict):
    """What is read here of the float32 model's `info.json`."""

    image_size: int
    feature_dim: int


@dataclass(frozen=True)
class Model:
    """What one variant does for an image: multiply-adds by precision, and the bytes of its file."""

    macs: Mapping[str, int]
    file_bytes: int


def macs_by_precision(macs: Mapping[str, int], precisions: Mapping[str, str] | str) -> dict[str, int]:
    """Return the multiply-adds by precision of a variant.

    :param macs: multiply-adds by part (`dinoquant.network.operations.needed`).
    :param precisions: of the products of each part, by its name; or one for all, of a runtime that does not tell of its
        parts: the highest speed that its recipe can have.
    """
    totals: Counter[str] = Counter()
    for part, count in macs.items():
        totals[precisions if isinstance(precisions, str) else precisions[part]] += count
    return dict(totals)


def compute_seconds(macs: Mapping[str, int], peaks: Mapping[str, float | None]) -> float | None:
    """Return the time of all products at the machine's peaks in operations/s, one precision after the other.

    None if the peak of a precision is not known. Where a narrow product is slower than float32, the numbers may as well
    be multiplied in float32; bfloat16's are where the processor has no instructions for it.
    """
    seconds = 0.0
    for kind, count in macs.items():
        peak = peaks.get("fp32" if kind == "bf16" and peaks.get("bf16") is None else kind)
        if peak is None:
            return None
        seconds += 2 * count / max(peak, peaks.get("fp32") or 0)
    return seconds


def limit(model: Model, batch_size: int, image_size: int, feature_dim: int, machine: Machine) -> Bound:
    """Return the shortest time of a call in ms, what bounds it, and operations per byte.

    The bytes are those that a call cannot do without: the file's weights once, the images and the features, float32.
    Weights that stay in a cache from call to call can be faster than memory.
    """
    moved = model.file_bytes + FLOAT_BYTES * batch_size * (3 * image_size**2 + feature_dim)
    total = sum(model.macs.values())
    one = compute_seconds(model.macs, machine["gemm_flops"])
    row: Bound = {"gmacs": total / 1e9, "operations_per_byte": 2 * total * batch_size / moved}
    if one is None:
        return row
    compute, memory = batch_size * one, moved / machine["bandwidth_bytes_per_s"]
    return row | {"limit_ms": 1e3 * max(compute, memory), "bound": "compute" if compute >= memory else "memory"}


def rows(
    models: Mapping[str, Model],
    machines: Iterable[Machine],
    info: Info,
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
            bound = limit(models[variant], batch_size, info["image_size"], info["feature_dim"], machine_of[device])
            yield {"variant": variant, "device": device, "batch_size": batch_size, **bound}


def read_precisions(audit: str | Path) -> dict[str, str]:
    """Return the precision of every part's products, by name, from an `audit.csv`."""
    return {row["module"]: row["precision"] for row in read_rows(audit)}


def write(path: str | Path, table: Iterable[Row]) -> None:
    """Write the rows as CSV with six significant digits; missing values are empty."""
    rounded = (
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in table
    )
    write_rows(path, COLUMNS, rounded)
