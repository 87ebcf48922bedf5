"""Split the extraction of features into shards that different workers take, and put their results together again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from dinoquant.errors import UserError
from dinoquant.files import read_json

Indices = NDArray[np.int64]


class Saturation(TypedDict):
    """What `dinoquant.runtimes.saturation` found."""

    saturates: bool
    cosine: float
    images: int


class Extraction(TypedDict):
    """What an extraction took, as its file has it."""

    variant: str
    device: str
    images: int
    seconds: float
    model_seconds: float
    overhead: float | None
    """Seconds outside the model, as a share of those inside."""
    batch_size: int
    threads: int
    shards: int
    machines: list[Mapping[str, object]]
    unsupported: str | None
    """Why there are no features, where a machine would emulate the model's precision."""
    saturation: Saturation | None
    """Of int8 models of other runtimes."""


def shard_indices(splits: Mapping[str, Indices], batch_size: int, shard: int, shards: int) -> dict[str, Indices]:
    """Return the images of one shard, ``shard`` of 1 to ``shards``, by split; a split may be empty.

    The batches of all splits, one after the other, are dealt out in order, as evenly as they go and never divided: a
    model with dynamic per-tensor quantization gives an image other features in the company of other images. So the
    shards' features are bit for bit those of the whole.

    Raises:
        UserError: there are fewer batches than shards.
    """
    batches = {split: -(-len(indices) // batch_size) for split, indices in splits.items()}
    total = sum(batches.values())
    if total < shards:
        raise UserError(
            f"accuracy.shards is {shards}, but there are only {total} batches of accuracy.batch_size {batch_size} "
            "images: lower one of the two."
        )
    first, end = (total * n // shards for n in (shard - 1, shard))
    own = {}
    for split, indices in splits.items():
        own[split] = indices[max(0, first) * batch_size : max(0, end) * batch_size]
        first, end = first - batches[split], end - batches[split]
    return own


def gather(
    features: Sequence[str | Path], splits: Mapping[str, Indices], *, partly: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Return the features of all shards' files, in their order, by split; none where shards are there ``partly``.

    Raises:
        UserError: they are not those of all images of the ``splits``.
    """
    shards = [dict(np.load(path)) for path in features]
    if partly:
        return {split: shards[0][split][:0] for split in splits}
    gathered = {split: np.concatenate([shard[split] for shard in shards]) for split in splits}
    for split, indices in splits.items():
        if len(gathered[split]) != len(indices):
            raise UserError(
                f"The shards {', '.join(map(str, features))} have features of {len(gathered[split])} {split} images; "
                f"expected {len(indices)}. Delete them and run again."
            )
    return gathered


def gather_timings(paths: Sequence[str | Path]) -> Extraction:
    """Return what the shards took, together: images and seconds are sums, and every machine is named once.

    One shard that was refused is enough for all to be; of the machines, the one that saturates most counts.
    """
    timings: list[Extraction] = [read_json(path) for path in paths]
    seconds = sum(timing["seconds"] for timing in timings)
    model_seconds = sum(timing["model_seconds"] for timing in timings)
    saturations = [timing["saturation"] for timing in timings if timing["saturation"]]
    machines = [machine for timing in timings for machine in timing["machines"]]
    return {
        **timings[0],
        "images": sum(timing["images"] for timing in timings),
        "seconds": seconds,
        "model_seconds": model_seconds,
        "overhead": seconds / model_seconds - 1 if model_seconds else None,
        "shards": len(timings),
        "machines": [machine for i, machine in enumerate(machines) if machine not in machines[:i]],
        "unsupported": next((timing["unsupported"] for timing in timings if timing["unsupported"]), None),
        "saturation": min(saturations, key=lambda saturation: saturation["cosine"], default=None),
    }
