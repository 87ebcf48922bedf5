"""Weight rounding: within int8, within half a step where it is to the nearest, and better for the inputs given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinoquant.recipes.int8.gptq import gptq
from dinoquant.recipes.int8.layers import quantize_weight
from dinoquant.recipes.int8.processor import pairs_fit

shapes = st.tuples(st.integers(1, 6), st.integers(1, 9))
numbers = st.one_of(
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([0.0, 1e-38, -1e-30, 2.0**127, -(2.0**127)]),
)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Small matrices: any numbers, all equal ones, or rows of very different size."""
    rows, columns = draw(shapes)
    kind = draw(st.sampled_from(["any", "constant", "rows"]))
    if kind == "constant":
        return torch.full((rows, columns), draw(numbers))
    values = draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns))
    matrix = torch.tensor(values, dtype=torch.float32).view(rows, columns)
    if kind == "rows":
        matrix = matrix.clamp(-1, 1) * torch.logspace(-6, 20, rows)[:, None]
    return matrix


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def correlated(rows: int, width: int) -> Tensor:
    """Inputs with a few directions that carry nearly everything, as those of a transformer have."""
    return noise(rows, 4) @ noise(4, width) + 0.1 * noise(rows, width)


def error(weight: Tensor, scale: Tensor, integers: Tensor, inputs: Tensor) -> float:
    difference = inputs.double() @ (integers.double() * scale.double()[:, None] - weight.double()).T
    return float(difference.square().sum())


@settings(max_examples=200, deadline=None)
@given(matrices())
def test_rounding_to_the_nearest_is_off_by_half_a_step_at_most(weight: Tensor) -> None:
    integers, scale = quantize_weight(weight)
    assert integers.dtype == torch.int8
    assert integers.min() >= -127
    assert (scale > 0).all()
    back = integers.double() * scale.double()[:, None]
    half = scale.double()[:, None] * (0.5 + 1e-4)  # float32 rounds the quotient before it is rounded to an integer
    assert ((back - weight.double()).abs() <= half).all()
    largest = weight.abs().amax(1)
    assert (integers.abs().amax(1)[largest > 1e-4] == 127).all(), "the largest weight does not use the whole range"


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from([0.0, 1e-15, 1.0, 1e15]))
def test_any_weights_and_inputs_give_int8(weight: Tensor, size: float) -> None:
    _, scale = quantize_weight(weight)
    inputs = size * noise(5, weight.shape[1])
    integers = gptq(weight, scale, inputs)
    assert integers.dtype == torch.int8
    assert integers.shape == weight.shape
    assert integers.min() >= -127
    if size == 0:
        nearest = torch.round(weight.double() / scale.double()[:, None])
        assert torch.equal(integers.double(), nearest), "nothing is known of the inputs: nearest is best"


def test_constant_weights_come_back() -> None:
    for value in (0.0, 3.0, -1e-3):
        weight = torch.full((3, 40), value)
        integers, scale = quantize_weight(weight)
        torch.testing.assert_close(integers * scale[:, None], weight)
        assert torch.equal(gptq(weight, scale, noise(50, 40)), integers)


@pytest.mark.parametrize("width", [2, 64, 127, 128, 129, 300])
def test_correlated_inputs_are_multiplied_better_than_by_the_nearest(width: int) -> None:
    weight, inputs = noise(16, width), correlated(400, width)
    nearest, scale = quantize_weight(weight)
    found = error(weight, scale, gptq(weight, scale, inputs), inputs)
    # Many weights can make up for each other in the few directions that count; of 2 weights none can do much.
    assert found <= error(weight, scale, nearest, inputs) * (1.0 if width == 2 else 0.5)


def test_one_column_is_rounded_to_the_nearest() -> None:
    weight = noise(7, 1)
    nearest, scale = quantize_weight(weight)
    assert torch.equal(gptq(weight, scale / 2, noise(9, 1)), torch.round(2 * weight / scale[:, None]).clamp(-127, 127))
    assert torch.equal(gptq(weight, scale, noise(9, 1)), nearest)


@pytest.mark.parametrize("dead", [[0], [63], [3, 40]])
def test_inputs_that_are_never_there_do_not_matter_to_the_others(dead: list[int]) -> None:
    weight, inputs = noise(8, 64), correlated(200, 64)
    inputs[:, dead] = 0
    nearest, scale = quantize_weight(weight)
    found = gptq(weight, scale, inputs)
    assert torch.equal(found[:, dead], nearest[:, dead])
    assert error(weight, scale, found, inputs) < 0.5 * error(weight, scale, nearest, inputs)


def test_uncorrelated_inputs_leave_nothing_to_gain() -> None:
    weight, inputs = noise(8, 32), torch.eye(32) * 3
    nearest, scale = quantize_weight(weight)
    assert torch.equal(gptq(weight, scale, inputs), nearest)


def test_too_small_a_scale_clips() -> None:
    weight = noise(4, 32)
    _, scale = quantize_weight(weight)
    integers = gptq(weight, scale / 3, torch.eye(32))
    expected = torch.round(weight / (scale / 3)[:, None]).clamp(-127, 127)
    assert (integers - expected).abs().max() <= 1  # a quotient at a half may round either way in float64
    assert integers.abs().max() == 127


def test_the_arguments_are_left_alone() -> None:
    weight, inputs = noise(4, 20), noise(30, 20)
    _, scale = quantize_weight(weight)
    before = [tensor.clone() for tensor in (weight, scale, inputs)]
    gptq(weight, scale, inputs)
    assert all(torch.equal(*pair) for pair in zip(before, (weight, scale, inputs), strict=True))


class TestPortable:
    """Weights whose neighbours 2k and 2k + 1 add up to at most 128 in size."""

    @settings(max_examples=300, deadline=None)
    @given(matrices(), st.sampled_from([0.0, 1.0, 1e15]))
    def test_all_pairs_fit_whatever_the_weights(self, weight: Tensor, size: float) -> None:
        nearest, scale = quantize_weight(weight, portable=True)
        half = scale.double()[:, None] * (0.5 + 1e-4)
        assert ((nearest.double() * scale.double()[:, None] - weight.double()).abs() <= half).all()
        for integers in (nearest, gptq(weight, scale, size * noise(5, weight.shape[1]), portable=True)):
            assert integers.dtype == torch.int8
            assert integers.shape == weight.shape
            assert integers.min() >= -127
            assert pairs_fit(integers)

    def test_a_pair_of_one_sign_shares_the_limit_and_one_of_two_signs_has_all(self) -> None:
        nearest, _ = quantize_weight(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 1.0, 1.0]]), portable=True)
        assert nearest.tolist() == [[64, 64, 0], [127, -127, 0], [0, 127, 127]]
        assert pairs_fit(torch.tensor([[127, -127, 127, 1, -64, -64, 127]], dtype=torch.int8))
        assert not pairs_fit(torch.tensor([[1, 1, 65, 64]], dtype=torch.int8))
        assert not pairs_fit(torch.tensor([[1, 1, -65, -64]], dtype=torch.int8))

    @pytest.mark.parametrize("width", [2, 64, 127, 129, 300])
    def test_correlated_inputs_are_still_multiplied_better(self, width: int) -> None:
        weight, inputs = noise(16, width), correlated(400, width)
        nearest, scale = quantize_weight(weight, portable=True)
        found = error(weight, scale, gptq(weight, scale, inputs, portable=True), inputs)
        assert found <= error(weight, scale, nearest, inputs) * (1.0 if width == 2 else 0.5)

    def test_correcting_as_it_goes_it_would_exceed_the_limit(self) -> None:
        first = 0.1 + 0.8 * torch.rand(16, 32, generator=torch.Generator().manual_seed(5))
        weight, inputs = torch.stack([first, 1 - first], -1).flatten(1), correlated(400, 64)
        _, scale = quantize_weight(weight, portable=True)
        assert not pairs_fit(gptq(weight, scale, inputs))
        assert pairs_fit(gptq(weight, scale, inputs, portable=True))

    def test_it_costs_less_than_half_a_bit(self) -> None:
        weight = noise(200, 384)
        scales = [quantize_weight(weight, portable)[1] for portable in (False, True)]
        assert 1 < float((scales[1] / scales[0]).mean()) < 2**0.5
