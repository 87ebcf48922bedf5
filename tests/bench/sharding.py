"""Print the wall time and the digest of one extraction in 1, 2 and 4 shards: the digests have to be equal.

The model is one with dynamic per-tensor quantization, whose features depend on which images share a batch. Shards gain
nothing where an extraction's threads fill the machine already: here each takes one, on all cores together.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dinoquant.files import sha256

ROOT = Path(__file__).parents[2]
VARIANT = "int8-dynamic-linear"
IMAGES = {
    "bank_per_class": 40,
    "queries": 200,
    "generated": {"classes": 20, "train_per_class": 42, "val_per_class": 10},
}


def snakemake(folder: str, target: str, shards: int, cores: str) -> float:
    """Make a target of the demo, of more images, in a folder and return the seconds it took."""
    config = ["--configfile", "config/demo.yaml", "--config", f"accuracy={{shards: {shards}}}", f"dataset={IMAGES}"]
    command = [sys.executable, "-m", "snakemake", target, "--cores", cores, "--directory", folder, *config]
    start = time.perf_counter()
    subprocess.run([*command, "--quiet", "all"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Make the model once, then its features in each number of shards; end with status 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cores", default="all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for target in (f"results/models/{VARIANT}/model.pt", "results/data/images.npy"):
            snakemake(folder, target, 1, options.cores)
        features = Path(folder) / "results/features" / f"{VARIANT}.npz"
        digests = set()
        print(f"{VARIANT}, 1,000 images, {options.cores} cores\nshards  wall s  sha256")
        for shards in options.shards:
            features.unlink(missing_ok=True)
            seconds = snakemake(folder, str(features.relative_to(folder)), shards, options.cores)
            digests.add(sha256(features))
            print(f"{shards:6}  {seconds:6.1f}  {sha256(features)}")
    print("equal" if len(digests) == 1 else "DIFFERENT")
    raise SystemExit(len(digests) != 1)


if __name__ == "__main__":
    main()
