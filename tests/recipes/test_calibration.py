"""What calibration reports of a float model: true ranges, a sample of the right rows, weights that predict harm."""

import copy

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.recipes.int8 import calibration
from dinoquant.recipes.int8.calibration import Observed, observe, require_images
from samples import tiny_vit

IMAGES = 12  # more than one batch of calibration, and no multiple of it
PATCHES = 16
TOKENS = PATCHES + 1


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    return tiny_vit()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def seen(network: VisionTransformer, images: Tensor) -> dict[str, Observed]:
    with torch.no_grad():  # as the recipes call it
        return observe(network, images)


def inputs_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return ``[images, tokens, in]``, by a hook of the test's own."""
    kept: list[Tensor] = []
    with model.get_submodule(name).register_forward_hook(lambda _, inputs, __: kept.append(inputs[0])):
        model(images)
    return kept[0]


def test_every_linear_and_the_patch_embedding_are_there(seen: dict[str, Observed], network: nn.Module) -> None:
    linears = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    assert set(seen) == linears | {"patch_embed.proj"}


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "blocks.0.mlp.fc2", "blocks.1.attn.proj", "blocks.1.mlp.fc1"])
def test_ranges_are_those_of_all_tokens(
    name: str, seen: dict[str, Observed], network: nn.Module, images: Tensor
) -> None:
    expected = inputs_of(network, name, images).flatten(0, 1)
    torch.testing.assert_close(seen[name].minimum, expected.amin(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[name].maximum, expected.amax(0), rtol=1e-4, atol=1e-5)


def test_an_outlier_in_one_token_of_one_image_is_in_the_range(network: nn.Module, images: Tensor) -> None:
    for where in range(IMAGES):
        changed = images.clone()
        changed[where, 1, 20, 3] = 100.0
        observed = observe(network, changed)["patch_embed.proj"]
        column = 8 * 8 + 20 % 8 * 8 + 3  # second colour, fifth row of the patch, fourth pixel
        assert observed.maximum[column] == 100
        assert observed.maximum.sum() < 100 + 192 * 6


def test_the_sample_holds_the_first_token_of_each_image_and_some_others(
    seen: dict[str, Observed], network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "TOKENS", 4)
    few = observe(network, images)
    kept_weight = []
    for name, every in seen.items():
        positions = PATCHES if name == "patch_embed.proj" else TOKENS
        width = every.minimum.numel()
        assert every.inputs.shape == (IMAGES * positions, width)
        assert every.rows.shape == (IMAGES * positions,)
        assert few[name].inputs.shape == (IMAGES * 5, width)
        assert few[name].rows.shape == (IMAGES * 5,)
        torch.testing.assert_close(few[name].inputs[::5], every.inputs[::positions])
        assert torch.equal(few[name].maximum, every.maximum)
        if name in ("patch_embed.proj", "blocks.0.attn.qkv"):  # further on the first token, always kept, outweighs all
            kept_weight.append(float(few[name].rows.sum() / every.rows.sum()))
    # The 4 kept stand for all 16: by chance for more or less, but not for themselves alone.
    assert 0.75 < sum(kept_weight) / 2 < 2


def test_rows_come_in_the_order_of_their_weights(network: nn.Module, images: Tensor) -> None:
    # Only the first token's features are read behind the last block: what the others say there cannot count.
    observed = observe(network, images)["blocks.1.mlp.fc2"]
    first = torch.zeros(IMAGES, TOKENS, dtype=torch.bool)
    first[:, 0] = True
    assert torch.equal(observed.rows > 0, first.flatten())
    expected = inputs_of(network, "blocks.1.mlp.fc2", images)[:, 0]
    torch.testing.assert_close(observed.inputs[first.flatten()], expected, rtol=1e-4, atol=1e-5)


def test_weights_are_positive(seen: dict[str, Observed], network: nn.Module) -> None:
    for name, observed in seen.items():
        linear = network.get_submodule(name)
        assert observed.outputs.shape == (linear.weight.shape[0],)
        assert torch.isfinite(observed.rows).all()
        assert (observed.rows >= 0).all()
        assert (observed.rows > 0).any()
        # Of fc1 an output may be cut off by GELU at every token.
        assert (observed.outputs > 0 if "fc1" not in name else observed.outputs >= 0).all()
        assert observed.outputs.mean() == pytest.approx(1)


@torch.no_grad()
def test_the_weights_predict_what_an_error_does_to_the_features(network: VisionTransformer, images: Tensor) -> None:
    """Errors of equal size in outputs of great and of little weight, at the same Linear."""
    observed = observe(network, images)["blocks.0.mlp.fc1"]
    order = observed.outputs.argsort()
    features = network(images)
    harm = []
    for outputs in (order[:20], order[-20:]):
        changed = copy.deepcopy(network)
        changed.get_submodule("blocks.0.mlp.fc1").bias[outputs] += 0.1
        harm.append(float(((changed(images) - features) / features.norm(dim=1, keepdim=True)).square().sum()))
    predicted = observed.outputs[order[-20:]].sum() / observed.outputs[order[:20]].sum()
    assert harm[1] / harm[0] > 3
    assert 0.1 < harm[1] / harm[0] / float(predicted) < 10


def test_error_is_the_weighted_sum_of_squares() -> None:
    observed = Observed(torch.empty(2, 1), torch.tensor([1.0, 10.0]), torch.tensor([2.0, 0.5]), *torch.empty(2, 1))
    assert observed.error(torch.tensor([[3.0, 2.0], [0.0, -1.0]])) == 9 * 2 + 4 * 0.5 + 10 * 0.5


def test_equal_images_give_equal_answers_whatever_the_random_state(network: nn.Module, images: Tensor) -> None:
    state = torch.random.get_rng_state()
    first = observe(network, images)
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        second = observe(network, images)
    for name, observed in first.items():
        for field in ("inputs", "rows", "outputs", "minimum", "maximum"):
            assert torch.equal(getattr(observed, field), getattr(second[name], field)), (name, field)


def test_the_model_and_the_images_are_left_as_they_were(network: nn.Module, images: Tensor) -> None:
    before, pixels = copy.deepcopy(network.state_dict()), images.clone()
    observe(network, images)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(images, pixels)
    assert not images.requires_grad
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert isinstance(network.patch_embed.proj, nn.Conv2d)


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_outlives_the_call(
    fails: bool, network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    copied = calibration.copy_with_targets
    monkeypatch.setattr(calibration, "copy_with_targets", lambda *given: made.append(copied(*given)) or made[0])
    if fails:
        with pytest.raises(AssertionError):
            observe(network, images[..., :16])
    else:
        observe(network, images)
    assert made
    assert not any(module._forward_hooks for module in made[0][0].modules())


@pytest.mark.parametrize("images", [None, torch.empty(0, 3, 32, 32)])
def test_no_images_is_the_users_error(images: Tensor | None) -> None:
    with pytest.raises(UserError, match=r"int8-smooth needs calibration images.*dataset\.calibration_images"):
        require_images("int8-smooth", images)


def test_images_are_passed_on(images: Tensor) -> None:
    assert require_images("int8-smooth", images) is images
