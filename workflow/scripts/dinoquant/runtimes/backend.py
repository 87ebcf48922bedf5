"""What the module of a runtime offers: `prepare`, which returns what makes and loads that runtime's models."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dinoquant.network.card import Card

if TYPE_CHECKING:  # the peers have no PyTorch
    from torch import Tensor

Array = NDArray[np.float32]
Output = TypeVar("Output", Array, "Tensor")
Run = Callable[[Array], Array]  # float32 [B, 3, S, S] -> float32 [B, D] or [B, N, D], both on the host
CHECKED_IMAGES = 8  # on which the features of an int8 model are compared with exact ones


def of_image(output: Output) -> Output:
    """Return what is compared of an output: features ``[B, D]``, or the first of the tokens ``[B, N, D]``.

    Of thousands of patches the worst is far off by rounding alone: 0.2 of the largest feature in bfloat16 (ViT-Ti).
    """
    return output if output.ndim == 2 else output[:, 0]


class Backend(Protocol):
    """A runtime that is imported and set up."""

    def load(self, model: Path, card: Card, batch_size: int) -> Run:
        """Load a model for batches of exactly ``batch_size``, which lets a runtime plan for it."""


class Converter(Backend, Protocol):
    """A runtime that makes its own models; those in TorchScript are made by the recipes."""

    def convert(self, source: Path, target: Path, card: Card, images: Array | None) -> Mapping[str, object] | None:
        """Make the model that ``card`` describes out of the float32 model's file ``source`` (`Runtime.source`).

        ``images`` are for the calibration: float32 ``[N, 3, S, S]``, normalised; None for recipes without. For a recipe
        of our own, ``source`` is its TorchScript file. Returns what the card must have beside what it says already.
        """

    def exact(self, model: Path, card: Card, images: Array) -> Array:
        """Return the features that an int8 model's integers give where no sum of products saturates.

        ``images`` are the first of those for the calibration, if the recipe takes any.
        """


def prepare(runtime: str, threads: int, device: str) -> Backend:
    """Import a runtime, and let what it loads have so many threads.

    The module is found by its name, so that whoever runs models depends on the one runtime's module only. Peers are
    measured on the CPU only, and take no notice of ``device``.
    """
    module = importlib.import_module(f"dinoquant.runtimes.{runtime}")
    prepare_runtime: Callable[[int, str], Backend] = module.prepare
    return prepare_runtime(threads, device)
