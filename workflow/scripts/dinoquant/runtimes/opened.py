"""Open a model of any runtime, TorchScript in this process and the others in one of their own, to run or to time it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dinoquant.network.card import Card, read_card
from dinoquant.network.export import load
from dinoquant.recipes import FEATURES, TOKENS
from dinoquant.runtimes import TORCHSCRIPT, checked_card
from dinoquant.runtimes.remote import Remote
from dinoquant.runtimes.torchscript import as_call, set_up


class LocalModel:
    """A TorchScript file in this process. Images are float32 ``[B, 3, S, S]``, normalised, on the model's device."""

    def __init__(self, path: Path, card: Card, device: str, threads: int) -> None:
        set_up(threads)
        self.card, self.runtime = card, {"name": card["runtime"]}
        self._device = device
        self.module = load(path, device, card)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, float32 ``[B, D]``, or the tokens, ``[B, N, D]``: what the model's output is."""
        output: Tensor = self.module(images)
        return output

    def ready(self, images: Tensor) -> None:
        """Keep the input of `time`."""
        self._call = as_call(partial(self.module, images), self._device)

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
        """Return the features, or the tokens."""
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


def features_by(model: OpenModel, fp32: str | Path) -> Callable[[Tensor], Tensor]:
    """Return what gives features ``[B, D]`` of images, whatever the model's output is.

    Tokens are pooled by the head in the model's own file; those of another runtime by the head of ``fp32``, the file
    that such models are made like.
    """
    if model.card["output"] == FEATURES:
        return model
    head = (model.module if isinstance(model, LocalModel) else load(fp32)).forward_head
    return lambda images: head(model(images))


def tokens_by(model: OpenModel) -> Callable[[Tensor], Tensor]:
    """Return what gives all tokens ``[B, N, D]`` of images; only for a model of which `no_tokens` gives no reason."""
    if model.card["output"] == TOKENS:
        return model
    assert isinstance(model, LocalModel)
    method: Callable[[Tensor], Tensor] = model.module.forward_features
    return method


def no_tokens(path: str | Path, tokens: int | None) -> str | None:
    """Return why the model at ``path`` cannot give its tokens; None if it can.

    ``tokens`` is how many the network makes of an image (`info.json`), None if it makes none.
    """
    card = read_card(Path(path))
    if tokens is None:
        return f"{card['architecture']} has no tokens of equal patches behind its last norm"
    if card["output"] == FEATURES and card["runtime"] != TORCHSCRIPT:
        return f"{card['runtime']}'s file gives features only; with model.output: tokens it gives its patches"
    return None


@contextmanager
def open_model(
    path: str | Path, device: str, *, threads: int, batch_size: int, timed: bool = False
) -> Iterator[OpenModel]:
    """Load a model that a rule of this workflow made, with ``threads`` threads and for calls of ``batch_size`` images.

    ``timed`` gives a process of the model's own the allocator that timings have; whoever times in this one calls
    `dinoquant.runtimes.allocator.keep_freed_memory` before PyTorch is imported. Raises UserError for what is no such
    file, and where the runtime is missing.
    """
    card = checked_card(Path(path))
    if card["runtime"] == TORCHSCRIPT:
        yield LocalModel(Path(path), card, device, threads)
    else:
        with RemoteModel(path, batch_size=batch_size, threads=threads, timed=timed) as model:
            yield model
