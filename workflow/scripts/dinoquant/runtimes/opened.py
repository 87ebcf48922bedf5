"""Open a model of any runtime, TorchScript in this process and the others in one of their own, to run or to time it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dinoquant.network.card import Card, read_card
from dinoquant.network.export import load
from dinoquant.runtimes import TORCHSCRIPT
from dinoquant.runtimes.remote import Remote
from dinoquant.runtimes.torchscript import as_call, set_up


class LocalModel:
    """A TorchScript file in this process. Images are float32 ``[B, 3, S, S]``, normalised, on the model's device."""

    def __init__(self, path: Path, card: Card, device: str, threads: int) -> None:
        set_up(threads)
        self.card, self.runtime = card, {"name": card["runtime"]}
        self._device = device
        self._module = load(path, device, card)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, float32 ``[B, D]``."""
        features: Tensor = self._module(images)
        return features

    def ready(self, images: Tensor) -> None:
        """Keep the input of `time`."""
        self._call = as_call(partial(self._module, images), self._device)

    def time(self) -> float:
        """Run the model once on its ready input and return the milliseconds until the device is done."""
        return self._call()


class RemoteModel(Remote):
    """A model in a process of its own, on the CPU, to be used like a local one.

    ``runtime`` also has the versions of its libraries, and what was done about the allocator if it is timed.

    Args:
        path: a file that a rule of this workflow made, with its card.
        batch_size: the most images of a call; with fewer the rest is computed in vain.
        timed: give the process the allocator that timings have (`dinoquant.runtimes.allocator`).
    """

    def __init__(self, path: str | Path, *, batch_size: int, threads: int, timed: bool = False) -> None:
        self.card, self._path = read_card(Path(path)), str(path)
        super().__init__(self.card["runtime"], threads, timed=timed)
        self.ask("load", model=self._path, card=self.card, batch_size=batch_size)
        self.runtime = {"name": self.card["runtime"], **self.about()}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features."""
        _, features = self.ask("features", images.numpy())
        return torch.from_numpy(features)

    def exact(self, images: Tensor) -> Tensor:
        """Return the features that an int8 model gives where nothing saturates (`Converter.exact`)."""
        _, features = self.ask("exact", images.numpy(), model=self._path, card=self.card)
        return torch.from_numpy(features)

    def ready(self, images: Tensor) -> None:
        """Send the input of `time`."""
        self.ask("ready", images.numpy())

    def time(self) -> float:
        """Run once; the way to the process and back is not timed."""
        return float(self.ask("time")[0]["ms"])


OpenModel = LocalModel | RemoteModel


@contextmanager
def open_model(
    path: str | Path, device: str, *, threads: int, batch_size: int, timed: bool = False
) -> Iterator[OpenModel]:
    """Load a model that a rule of this workflow made, with ``threads`` threads and for calls of ``batch_size`` images.

    ``timed`` gives a process of the model's own the allocator that timings have; whoever times in this one calls
    `dinoquant.runtimes.allocator.keep_freed_memory` before PyTorch is imported. Raises UserError for what is no such
    file, and where the runtime is missing.
    """
    card = read_card(Path(path))
    if card["runtime"] == TORCHSCRIPT:
        yield LocalModel(Path(path), card, device, threads)
    else:
        with RemoteModel(path, batch_size=batch_size, threads=threads, timed=timed) as model:
            yield model
