"""Print what k-NN over random features takes at a tenth of the full size and at the full size: seconds, memory, digest.

Equal digests from one version to the next say that the predictions are the same.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import time

import numpy as np

from dinoquant.judge.knn import predict

SIZES = ((10_000, 1_000), (100_000, 10_000))
DIMENSIONS, CLASSES = 384, 200


def measure(bank: int, queries: int) -> None:
    """Print one row; memory is the most that this process ever had, the features and NumPy among it."""
    rng = np.random.default_rng(0)
    features, asked = (rng.standard_normal((rows, DIMENSIONS), dtype=np.float32) for rows in (bank, queries))
    labels = rng.integers(0, CLASSES, bank)
    wall, processor = time.perf_counter(), time.process_time()
    found = predict(features, labels, asked, classes=CLASSES, k=20, temperature=0.07)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    digest = hashlib.sha256(found.tobytes()).hexdigest()[:12]
    print(f"{bank:7,}  {queries:7,}  {wall:6.1f}  {processor:11.1f}  {peak:9.0f}  {digest}")


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, metavar=("BANK", "QUERIES"))
    if size := parser.parse_args().size:
        measure(*size)
        return
    print("   bank  queries  wall s  processor s  memory MB  predictions", flush=True)
    for size in SIZES:
        subprocess.run([sys.executable, __file__, "--size", *map(str, size)], check=True)


if __name__ == "__main__":
    main()
