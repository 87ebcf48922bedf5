"""TorchScript files as calls to be timed: what is set up, what is timed, and the input."""

import time
from collections.abc import Iterator

import pytest
import torch

from dinoquant.runtimes.torchscript import as_call, random_images, set_up


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_and_precision_are_fixed_and_recorded() -> None:
    torch.set_num_threads(2)  # what an environment variable may have asked for
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    fixed = set_up(1)
    assert torch.get_num_threads() == 1
    assert torch.get_num_interop_threads() == fixed["interop_threads"] == 1
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.tensor([1e-40]).mul(0.5).item() > 0, "denormals were flushed"


def test_a_call_is_timed_in_inference_mode() -> None:
    modes = []

    def run() -> None:
        modes.append(torch.is_inference_mode_enabled())
        time.sleep(0.02)

    milliseconds = as_call(run, "cpu")()
    assert 20 <= milliseconds < 1000
    assert modes == [True]
    assert not torch.is_inference_mode_enabled()


def test_the_input_has_the_asked_shape_and_repeats() -> None:
    one, same, other = (random_images(4, 8, "cpu", seed) for seed in (0, 0, 1))
    assert (tuple(one.shape), one.dtype) == ((4, 3, 8, 8), torch.float32)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std() == pytest.approx(1.0, abs=0.1)
