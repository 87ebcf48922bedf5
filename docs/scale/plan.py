"""Print what a number of bank and query images takes, by the seconds that a finished run measured for its own images.

.venv/bin/python docs/scale/plan.py results --bank 100000 --queries 10000 --workers 2 8 64

A worker is one extraction (one shard of one variant) at a time, with the threads and on the machine of the run, with
others beside it as in the run; the plan holds for workers like that. It counts what grows with the images: extraction,
k-NN, packed images, features.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

FLOAT32, FLOAT64 = 4, 8
KNN_BLOCK = 24 * 2**21  # bytes in work at a time, as `dinoquant.judge.knn` says


def plan(folder: Path, bank: int, queries: int, workers: list[int]) -> pd.DataFrame:
    """Return a row per variant of the results in ``folder``: its images/s, and hours by the number of workers."""
    rows = []
    for path in sorted((folder / "features").glob("*.json")):
        timing = json.loads(path.read_text())
        rate = timing["images"] / timing["seconds"]
        hours = (bank + queries) / rate / 3600
        rows.append(
            {"variant": timing["variant"], "device": timing["device"], "threads": timing["threads"], "images/s": rate}
            | {f"h, {count} workers": hours / count for count in workers}
        )
    if not rows:
        raise SystemExit(f"{folder}/features has no timings: run the workflow there first.")
    table = pd.DataFrame(rows)
    total = table.filter(like="h, ").sum()
    return pd.concat([table, pd.DataFrame([{"variant": "all of them", **total}])], ignore_index=True)


def main() -> None:
    """Print the hours, the memory and the disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--bank", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 64])
    options = parser.parse_args()
    images = options.bank + options.queries
    table = plan(options.results, options.bank, options.queries, options.workers)
    with np.load(next((options.results / "features").glob("*.npz"))) as features:
        dimensions = features["bank"].shape[1]
    pixels = np.load(options.results / "data/images.npy", mmap_mode="r")
    packed, found = images * pixels[0].nbytes, images * dimensions * FLOAT32
    directions = images * dimensions * FLOAT64
    print(f"{options.bank:,} bank and {options.queries:,} query images, features of {dimensions} numbers")
    print(table.to_string(index=False, float_format="%.2f", na_rep=""))
    print(f"disk: {packed / 1e9:.2f} GB of packed images; {found / 1e6:.0f} MB of features per variant,")
    print("twice that while its shards are gathered")
    # Two models' features, one of them in float64 beside its scaled copy, and a block of similarities.
    print(f"memory of k-NN: about {(2 * found + 2 * directions + KNN_BLOCK) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
