"""What the tests of recipes share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    """Return what makes tensors of standard normal numbers, the same in every test."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


class OnCuda(Tensor):
    """A tensor on the CPU that claims to be on a GPU."""

    is_cuda = True


@pytest.fixture
def on_cuda() -> Callable[[Tensor], Tensor]:
    """Return what makes a tensor claim that."""
    return lambda tensor: tensor.as_subclass(OnCuda)
