"""What holds for any input: of the quantizers' rounding, scales and clipping, and of the config's check."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dinoquant.config import complete
from dinoquant.errors import UserError
from dinoquant.recipes.int8.calibration import Observed
from dinoquant.recipes.int8.layers import GELU_MINIMUM, TokenLinear, quantize_weight, steps_to_uint8
from dinoquant.recipes.int8.scales import split_range, static_steps

ROOT = Path(__file__).parents[1]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
GOOD = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"variants": SCHEMA["$defs"]["presets"]}
WIDTH = 16
SLACK = 1 + 1e-4  # float32 rounds too

few = settings(max_examples=60, derandomize=True, database=None, deadline=None)
# Zeros, constants, one outlier among small values, and everything between, from the tiniest normal numbers to 1e30.
values = st.one_of(
    st.just(0.0),
    st.floats(-1, 1, width=32),
    st.builds(lambda sign, power: sign * 10.0**power, st.sampled_from([-1, 1]), st.integers(-37, 30)),
)


def matrices(rows: int, elements: st.SearchStrategy[float] = values) -> st.SearchStrategy[Tensor]:
    """Return ``[rows, WIDTH]``, rows drawn one by one; every third is constant."""
    constant = elements.map(lambda value: [value] * WIDTH)
    row = st.one_of(constant, *[st.lists(elements, min_size=WIDTH, max_size=WIDTH)] * 2)
    return st.lists(row, min_size=rows, max_size=rows).map(torch.tensor)


@few
@given(matrices(3))
def test_weights_come_back_to_half_a_step(weight: Tensor) -> None:
    integers, scale = quantize_weight(weight)
    assert integers.dtype == torch.int8
    assert integers.min() >= -127
    assert ((scale > 0) & scale.isfinite()).all()
    assert ((integers * scale[:, None] - weight).abs() <= 0.5 * SLACK * scale[:, None]).all()
    # The scale is no larger than needed: the largest weight of a channel takes the last integer.
    used = scale > torch.finfo(torch.float32).eps
    assert (integers.abs().amax(1)[used] == 127).all()
    assert torch.equal(quantize_weight(-weight)[0], -integers)


@few
@given(matrices(1))
def test_steps_saturate_and_keep_their_order(steps: Tensor) -> None:
    integers = steps_to_uint8(steps).int()
    assert torch.equal(integers, steps.clamp(0, 255).floor().int())
    assert (integers[0, steps[0].argsort()].diff() >= 0).all()


@few
@given(matrices(3), st.booleans())
def test_tokens_come_back_to_half_a_step(tokens: Tensor, after_gelu: bool) -> None:
    """A Linear that passes its inputs on shows how they were rounded."""
    linear = TokenLinear(*quantize_weight(torch.eye(WIDTH)), torch.zeros(WIDTH), after_gelu)
    if after_gelu:
        tokens = tokens.clamp_min(-GELU_MINIMUM)
        # 16 of the 255 steps are for what GELU has below 0.
        step = torch.maximum(tokens.amax(1) / 239, torch.tensor(GELU_MINIMUM / 16))
    else:
        step = torch.maximum(tokens.abs().amax(1) / 127, torch.tensor(1e-12))
    found = linear(tokens)
    assert found.isfinite().all()
    assert ((found - tokens).abs() <= 0.5 * SLACK * step[:, None]).all()
    assert (found[(tokens == 0).all(1)] == 0).all()
    assert torch.equal(linear(tokens[1:2]), found[1:2])  # a token's result does not depend on its neighbours


def observed(inputs: Tensor) -> Observed:
    return Observed(inputs, torch.ones(len(inputs)), torch.ones(WIDTH), inputs.amin(0), inputs.amax(0))


def identity() -> nn.Linear:
    linear = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    linear.weight.copy_(torch.eye(WIDTH))
    return linear


# What layers meet; 1e30 squared is more than float32 has.
activations = st.one_of(st.just(0.0), st.floats(-1, 1, width=32), st.floats(-1e4, 1e4, width=32))


@few
@given(matrices(4, activations))
def test_static_steps_hold_what_they_were_fitted_to(inputs: Tensor) -> None:
    steps = static_steps(identity(), observed(inputs))
    width = steps.smooth * steps.step
    assert ((width > 0) & width.isfinite()).all()
    assert 0 <= steps.zero_point <= 255
    found = steps.round(inputs) * steps.smooth
    # A zero point is an integer, so that the range is shifted by up to half a step.
    assert ((found - inputs).abs() <= 1.01 * width).all()
    assert (found[inputs == 0] == 0).all()
    beyond = steps.round(torch.stack([width, -width]) * 1000) / steps.step
    assert torch.equal(beyond.round(), torch.tensor([[255.0], [0.0]]).expand(2, WIDTH) - steps.zero_point)


@settings(few, max_examples=20)
@given(matrices(4, activations))
def test_split_ranges_clip_and_keep_zero(inputs: Tensor) -> None:
    gelu = nn.functional.gelu(inputs)
    split = split_range(identity(), observed(gelu))
    assert split.step > 0
    assert 0 <= split.zero_point <= 255
    found = split.round(gelu)
    assert found.shape == (4, WIDTH + int(split.copies.sum()))
    rounded, whole = found[:, :WIDTH], gelu.clamp_max(split.clip)
    assert ((rounded - whole).abs() <= 1.01 * split.step).all()
    assert (rounded[gelu == 0] == 0).all()


keys = st.sampled_from(sorted(SCHEMA["properties"])) | st.text(max_size=5) | st.integers() | st.none()
# Text that YAML would take for something, or for nothing.
texts = st.sampled_from(["{", "*a", "\t-", "1.5", "8.0", "1e400", ".nan", "2024-01-01", "0x10", "null", "\n", "a/../b"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.text(max_size=8) | st.dates()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


def checked(config: dict[Any, Any]) -> None:
    """Only a UserError may come out; what is accepted stays as it is when checked again."""
    try:
        accepted = complete(config, SCHEMA)
    except UserError:
        return
    assert complete(accepted, SCHEMA) == accepted


@few
@given(st.dictionaries(keys, trees, max_size=4))
def test_any_config_is_accepted_or_explained(config: dict[Any, Any]) -> None:
    checked(config)


@settings(few, max_examples=200)
@given(st.data())
def test_any_change_of_a_good_config_is_accepted_or_explained(data: st.DataObject) -> None:
    config = yaml.safe_load(yaml.safe_dump(GOOD))
    section = data.draw(st.sampled_from([config, *(value for value in config.values() if isinstance(value, dict))]))
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(texts | trees)
    checked(config)


@pytest.mark.parametrize("count", [1, 7])
def test_config_that_holds_itself_is_explained(count: int) -> None:
    config: dict[str, Any] = {}
    config["dataset"] = {"generated": [config] * count}
    with pytest.raises(UserError, match="deep"):
        complete(config, SCHEMA)
