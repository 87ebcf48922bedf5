"""Run TorchScript files as they are timed: PyTorch set up alike for every model, and a model as a call to be timed."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoquant.data.preprocess import preprocess


def set_up(threads: int) -> dict[str, Any]:
    """Give PyTorch ``threads`` threads inside an operator and one between operators; return what was fixed.

    Overrides OMP_NUM_THREADS, which Snakemake sets to the number of cores it was told of. Denormals are computed in
    full and float32 products on CUDA are float32, not TF32: what a user of the model gets who asks for nothing else.
    """
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # may be set only once in a process
        torch.set_num_interop_threads(1)
    torch.set_flush_denormal(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return {"interop_threads": torch.get_num_interop_threads(), "flush_denormal": False, "tf32": False}


def load(model: Path, device: str) -> torch.jit.ScriptModule:
    """Load a model for inference."""
    loaded: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]  # not typed in torch
        model, map_location=device
    )
    return loaded.eval()


def random_images(batch_size: int, image_size: int, device: str, seed: int) -> Tensor:
    """Return a float32 standard normal batch [batch_size, 3, image_size, image_size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 3, image_size, image_size, generator=generator).to(device)


def wait_for(device: str) -> None:
    """Wait until the device has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


def as_call(run: Callable[[], object], device: str) -> Callable[[], float]:
    """Return a function that runs ``run`` once and returns the ms until its result is there, on a GPU too."""

    @torch.inference_mode()
    def call() -> float:
        wait_for(device)
        start = time.perf_counter_ns()
        run()
        wait_for(device)
        return (time.perf_counter_ns() - start) / 1e6

    return call


def as_device_call(run: Callable[[], object]) -> Callable[[], float]:
    """Return a function that runs ``run`` once and returns the ms that the GPU worked on it, by its own clock."""

    @torch.inference_mode()
    def call() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    return call


def preparation(batch_size: int, card: Mapping[str, Any], device: str) -> Callable[[], float]:
    """Return the call that makes a model's input out of ``batch_size`` uint8 images of 64 x 64 pixels on the host."""
    images = torch.randint(256, (batch_size, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return as_call(lambda: preprocess(images.to(device), card["image_size"], card["mean"], card["std"]), device)
