"""This project's TorchScript files in a process of their own, as `make bench` runs them beside the other runtimes."""

from pathlib import Path
from typing import Any

import torch

from dinoquant.network import export
from dinoquant.runtimes.pytorch import set_up
from dinoquant.runtimes.worker import Array, Run


def prepare(threads: int) -> None:
    """Set up PyTorch as it is where TorchScript is timed."""
    set_up(threads)


def load(model: Path, card: dict[str, Any], batch_size: int) -> Run:
    """Load a file, for any batch size."""
    loaded = export.load(model).eval()

    @torch.inference_mode()
    def run(images: Array) -> Array:
        features: Array = loaded(torch.from_numpy(images)).numpy()
        return features

    return run
