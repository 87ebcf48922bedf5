"""TorchScript files as they are run and timed: PyTorch set up alike for every model, and a model as a call."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from dinoquant.data.preprocess import preprocess
from dinoquant.machine import require_processors
from dinoquant.network.card import Card
from dinoquant.network.export import load
from dinoquant.runtimes.backend import Array, Backend, Run


class Settings(TypedDict):
    """What `set_up` fixed, for the record."""

    processors: list[int] | None  # that the threads may run on, all together
    interop_threads: int
    flush_denormal: bool
    tf32: bool


def set_up(threads: int) -> Settings:
    """Give PyTorch ``threads`` threads inside an operator and one between operators; return what was fixed.

    Overrides OMP_NUM_THREADS, which Snakemake sets to the number of cores it was told of. Denormals are computed in
    full and float32 products on CUDA are float32, not TF32: what a user of the model gets who asks for nothing else.

    Raises UserError if the threads are bound to fewer processors than there are threads.
    """
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # may be set only once in a process
        torch.set_num_interop_threads(1)
    torch.set_flush_denormal(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.zeros(threads << 16).exp_()  # starts the threads, which are bound no earlier
    return {
        "processors": require_processors(threads),
        "interop_threads": torch.get_num_interop_threads(),
        "flush_denormal": False,
        "tf32": False,
    }


class TorchScript:
    """A process of its own for TorchScript files, for footprints and as `make bench` runs them beside the others."""

    def __init__(self, device: str) -> None:
        self._device = device

    def load(self, model: Path, card: Card, batch_size: int) -> Run:
        """Load a file, for any batch size."""
        loaded = load(model, self._device, card)
        wait_for(self._device)

        @torch.inference_mode()
        def run(images: Array) -> Array:
            features: Array = loaded(torch.from_numpy(images).to(self._device)).cpu().numpy()
            return features

        return run


def prepare(threads: int, device: str) -> Backend:
    """Set up PyTorch, and the context of a GPU, which is the same for every model."""
    set_up(threads)
    torch.zeros(1, device=device)
    wait_for(device)
    return TorchScript(device)


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


def preparation(batch_size: int, card: Card, device: str) -> Callable[[], float]:
    """Return the call that makes a model's input out of ``batch_size`` uint8 images of 64 x 64 pixels on the host."""
    images = torch.randint(256, (batch_size, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return as_call(lambda: preprocess(images.to(device), card["image_size"], card["mean"], card["std"]), device)
