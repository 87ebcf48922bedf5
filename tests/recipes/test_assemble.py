"""A transformer put together anew: ranges and splits, what is folded, every mix of precisions, what is refused."""

import itertools
from typing import Any

import pytest
import torch
from timm.layers import SwiGLU
from timm.models import VisionTransformer
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cosine_similarity

from dinoquant.errors import UserError
from dinoquant.recipes.anatomy.families import anatomy_of, targets
from dinoquant.recipes.int8.assemble import BF16, FP32, PER_TOKEN, PRECISIONS, STATIC, assemble
from dinoquant.recipes.int8.calibration import Observed, observe
from dinoquant.recipes.int8.layers import GELU_MINIMUM
from dinoquant.recipes.int8.scales import EXTRA, Split, colour_steps, split_range, static_steps
from samples import photographs, tiny_vit

LINEARS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    return tiny_vit()


@pytest.fixture(scope="module")
def seen(network: VisionTransformer) -> dict[str, Observed]:
    return observe(network, photographs(16, seed=1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return photographs(8, seed=2)


def observed(inputs: Tensor, outputs: int) -> Observed:
    """Return what calibration would of ``inputs`` ``[rows, in]``, all errors alike."""
    return Observed(inputs, torch.ones(len(inputs)), torch.ones(outputs), inputs.amin(0), inputs.amax(0))


def random_linear(width: int, outputs: int = 24) -> nn.Linear:
    linear = nn.Linear(width, outputs).requires_grad_(False)
    linear.weight.copy_(torch.randn(outputs, width, generator=torch.Generator().manual_seed(3)) / width**0.5)
    return linear


def normal(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def closeness(changed: nn.Module, model: nn.Module, images: Tensor) -> float:
    return float(cosine_similarity(changed(images), model(images)).min())


class TestSteps:
    @pytest.mark.parametrize("margin", [1.0, 1.5])
    def test_all_that_was_seen_is_within_the_range(self, margin: float) -> None:
        inputs = normal(200, 32) * torch.logspace(-1, 2, 32) + 3
        steps = static_steps(random_linear(32), observed(inputs, 24), margin)
        assert 0 <= steps.zero_point <= 255
        half = steps.step * 0.5001
        for reached in (inputs, inputs.amin(0) * margin, inputs.amax(0) * margin):
            smoothed = reached / steps.smooth
            # The zero point is rounded too: the ends of the range may lie half a step further in.
            assert ((steps.round(reached) - smoothed).abs() <= 2 * half).all()
        assert ((steps.round(inputs) - inputs / steps.smooth).abs() <= half).float().mean() > 0.99
        assert float(
            (inputs * margin / steps.smooth).amax() - (inputs * margin / steps.smooth).amin()
        ) == pytest.approx(255 * steps.step, rel=1e-4)

    def test_beyond_the_range_is_clipped(self) -> None:
        inputs = normal(50, 8)
        steps = static_steps(random_linear(8), observed(inputs, 24))
        far = steps.round(torch.stack([inputs.amax(0), inputs.amin(0)]) * 1000)
        expected = torch.tensor([255 - steps.zero_point, -steps.zero_point]) * steps.step
        torch.testing.assert_close(far, expected[:, None].expand(2, 8))

    def test_a_wide_channel_is_smoothed_so_that_the_others_keep_their_steps(self) -> None:
        inputs, linear = normal(300, 32), random_linear(32)
        inputs[:, 7] *= 100
        steps = static_steps(linear, observed(inputs, 24))
        assert steps.smooth[7] > 5 * steps.smooth[:7].max()
        assert float(steps.smooth.log().mean()) == pytest.approx(0, abs=1e-4)
        smoothed = functional.linear(steps.round(inputs), linear.weight * steps.smooth)
        plain = inputs.abs().max() / 127
        unsmoothed = functional.linear(torch.round(inputs / plain) * plain, linear.weight)
        expected = functional.linear(inputs, linear.weight)
        assert (smoothed - expected).square().sum() < 0.1 * (unsmoothed - expected).square().sum()

    @pytest.mark.parametrize("inputs", [torch.zeros(10, 8), torch.full((10, 8), 2.0), torch.full((10, 8), -2.0)])
    def test_inputs_that_never_change(self, inputs: Tensor) -> None:
        steps = static_steps(random_linear(8), observed(inputs, 24))
        assert steps.step > 0
        assert 0 <= steps.zero_point <= 255
        torch.testing.assert_close(steps.round(inputs) * steps.smooth, inputs, rtol=0.01, atol=0.01)

    def test_the_outputs_weights_decide(self) -> None:
        # What is best for the one output that counts: here that a single channel, which it alone reads, is exact.
        inputs, linear = normal(300, 16), random_linear(16)
        inputs[:, 0] *= 0.01
        linear.weight[0] = 0
        linear.weight[0, 0] = 100.0
        first = observed(inputs, 24)
        only = Observed(first.inputs, first.rows, torch.eye(24)[0] + 1e-9, first.minimum, first.maximum)
        others = Observed(first.inputs, first.rows, 1 - torch.eye(24)[0], first.minimum, first.maximum)
        errors = [
            float(
                (
                    static_steps(linear, which).round(inputs)[:, 0] * static_steps(linear, which).smooth[0]
                    - inputs[:, 0]
                ).std()
            )
            for which in (only, others)
        ]
        assert errors[0] < errors[1]


@pytest.mark.parametrize(("darkest", "brightest"), [(0.5, 1.5), (-1.5, -0.5), (-1.0, 1.0), (0.0, 2.0), (0.3, 0.3)])
def test_the_steps_of_a_colour_hit_all_values_of_a_photograph(darkest: float, brightest: float) -> None:
    values = torch.linspace(darkest, brightest, 256)
    inputs = torch.stack([values[(torch.arange(16) * 17 + shift) % 256] for shift in range(256)])
    inputs = torch.cat([inputs, inputs * 3, inputs - 7], 1)
    low, step = colour_steps(observed(inputs, 24), 3)
    torch.testing.assert_close(low, torch.tensor([darkest, darkest * 3, darkest - 7]))
    assert (step > 0).all()
    steps = (inputs.view(256, 3, 16) - low[:, None]) / step[:, None]
    torch.testing.assert_close(steps, steps.round().clamp(0, 255), rtol=0, atol=0.01)


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_photographs_lose_nothing_before_the_patch_embedding(shift: float, network: VisionTransformer) -> None:
    images = photographs(8, seed=7) * torch.tensor([0.5, 1.0, 2.0])[:, None, None] + shift
    precisions = dict.fromkeys(targets(network), FP32) | {"patch_embed.proj": STATIC}
    changed, _ = assemble(network, precisions, observe(network, images), FP32, portable=False)
    expected = network.patch_embed(images)
    # What is left is the rounding of the weights: half a step in each, of independent sign.
    step = network.patch_embed.proj.weight.flatten(1).abs().amax(1) / 127
    bound = step * 0.29 * images.square().mean().sqrt() * (3 * 64) ** 0.5
    off = (changed.model.patch_embed(images) - expected).square().mean((0, 1)).sqrt()
    assert (off <= 1.5 * bound).all()


def after_gelu(massive: dict[int, float], width: int = 80, rows: int = 2000) -> Tensor:
    """Return outputs of a GELU, up to about 3, and up to ``massive`` in the channels that it names."""
    inputs = normal(rows, width)
    for channel, largest in massive.items():
        inputs[:, channel] *= largest / inputs[:, channel].max()
    return functional.gelu(inputs)


class TestSplit:
    def test_massive_channels_are_split_and_others_are_not(self) -> None:
        massive = {3: 60.0, 40: 100.0}
        inputs = after_gelu(massive)
        split = split_range(random_linear(80), observed(inputs, 24))
        assert set(massive) <= set(split.source.tolist())
        assert split.clip < 10
        assert split.copies[3] < split.copies[40]
        for channel, largest in massive.items():
            assert (split.copies[channel] + 1) * split.clip >= largest * 0.999
        normal_ones = [channel for channel in range(80) if channel not in massive]
        assert int(split.copies[normal_ones].sum()) <= 8

    def test_without_massive_channels_next_to_nothing_is_split(self) -> None:
        inputs = after_gelu({})
        split = split_range(random_linear(80), observed(inputs, 24))
        assert len(split.source) <= 8
        assert split.clip > 1

    def test_splitting_is_worth_it(self) -> None:
        inputs, linear = after_gelu({3: 60.0, 40: 100.0}), random_linear(80)
        split = split_range(linear, observed(inputs, 24))
        whole = Split(float(inputs.max()), torch.zeros(80, dtype=torch.int64))
        expected = functional.linear(inputs, linear.weight)
        wide = torch.cat([linear.weight, linear.weight[:, split.source]], 1)
        off = (functional.linear(split.round(inputs), wide) - expected).square().sum()
        assert off < 0.2 * (functional.linear(whole.round(inputs), linear.weight) - expected).square().sum()

    @pytest.mark.parametrize("largest", [200.0, 1e4, 1e7])
    def test_never_more_copies_than_there_is_room_for(self, largest: float) -> None:
        inputs = after_gelu(dict.fromkeys(range(0, 80, 2), largest))
        split = split_range(random_linear(80), observed(inputs, 24))
        assert len(split.source) <= EXTRA
        assert split.round(inputs).shape == (2000, 80 + len(split.source))

    @pytest.mark.parametrize("inputs", [torch.zeros(10, 5), torch.full((10, 1), 7.0), torch.full((10, 2), -0.16)])
    def test_odd_inputs(self, inputs: Tensor) -> None:
        split = split_range(random_linear(inputs.shape[1]), observed(inputs, 24))
        wide = split.round(inputs)
        back = wide[:, : inputs.shape[1]].clone()
        back.index_add_(1, split.source, wide[:, inputs.shape[1] :])
        torch.testing.assert_close(back, inputs, rtol=0, atol=0.17 + split.step)

    def test_copies_add_up_to_their_channel(self) -> None:
        split = Split(4.0, torch.tensor([0, 3, 0, 1]))
        assert split.source.tolist() == [1, 1, 1, 3]
        assert split.shift.tolist() == [4.0, 8.0, 12.0, 4.0]
        reach = torch.tensor([4.0, 16.0, 4.0, 8.0])
        values = torch.linspace(-0.169, 1, 4001)[:, None] * reach
        values = torch.where(values < 0, values.clamp_min(-0.169), values)
        wide = split.round(values)
        assert wide.shape == (4001, 8)
        assert (wide <= split.clip + split.step).all()
        back = wide[:, :4].clone()
        back.index_add_(1, split.source, wide[:, 4:])
        off = (back - values).abs().amax(0)
        assert (off[[0, 2]] <= split.step * 1.01).all(), "not split: a step at most"
        # GELU is off by 0.17 from the ramp that would make the copies meet exactly.
        assert (off[[1, 3]] <= 0.17 + split.step * 2.5).all()
        far_from_seams = ((values[:, 1] % 4 - 2).abs() < 0.5) & (values[:, 1] > 0)
        assert ((back - values)[far_from_seams, 1].abs() <= 0.12).all()
        beyond = split.round(torch.full((1, 4), 1000.0))
        torch.testing.assert_close(beyond, torch.full((1, 8), 4.0), rtol=0, atol=split.step)

    @pytest.mark.parametrize("clip", [0.2, 1.0, 7.3, 200.0])
    def test_the_steps_cover_what_gelu_yields(self, clip: float) -> None:
        split = Split(clip, torch.zeros(3, dtype=torch.int64))
        assert 0 <= split.zero_point <= 255
        values = torch.linspace(-GELU_MINIMUM, clip, 300).view(100, 3)
        assert (split.round(values) - values).abs().max() <= split.step * 1.001


class TestAssemble:
    @pytest.mark.parametrize("attention", [BF16, FP32])
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_everything_in_one_precision(
        self, precision: str, attention: str, network: VisionTransformer, seen: dict[str, Observed], images: Tensor
    ) -> None:
        changed, became = assemble(network, dict.fromkeys(targets(network), precision), seen, attention)
        assert closeness(changed, network, images) > 0.99
        softmaxes = {f"blocks.{number}.attn.softmax" for number in range(2)} if attention == BF16 else set()
        assert set(became) == softmaxes | (set(targets(network)) if precision != FP32 else set())

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("name", ["patch_embed.proj", *(f"blocks.0.{name}" for name in LINEARS)])
    @pytest.mark.parametrize("others", [FP32, STATIC])
    def test_each_linear_in_each_precision(
        self,
        name: str,
        precision: str,
        others: str,
        network: VisionTransformer,
        seen: dict[str, Observed],
        images: Tensor,
    ) -> None:
        precisions = dict.fromkeys(targets(network), others) | {name: precision}
        changed, became = assemble(network, precisions, seen, FP32)
        assert closeness(changed, network, images) > 0.99
        assert set(became) == {name for name, chosen in precisions.items() if chosen != FP32}
        for part, found in became.items():
            words = {STATIC: "int8 static", PER_TOKEN: "int8 per-token"}
            assert found.what.startswith(words.get(precisions[part], precisions[part]))

    def test_neighbours_in_any_two_precisions(
        self, network: VisionTransformer, seen: dict[str, Observed], images: Tensor
    ) -> None:
        """fc1 writes what fc2 reads, and the values that `proj` reads come from `qkv`: each pair has its own seam."""
        for first, second in itertools.product(PRECISIONS, repeat=2):
            precisions = dict.fromkeys(targets(network), FP32)
            for prefix in ("blocks.0.", "blocks.1."):
                precisions |= {f"{prefix}mlp.fc1": first, f"{prefix}mlp.fc2": second}
                precisions |= {f"{prefix}attn.qkv": first, f"{prefix}attn.proj": second}
            changed, _ = assemble(network, precisions, seen, BF16)
            assert closeness(changed, network, images) > 0.99, (first, second)

    def test_what_is_float32_gives_the_models_own_features(self, network: VisionTransformer, images: Tensor) -> None:
        changed, _ = assemble(network, dict.fromkeys(targets(network), FP32), {}, FP32)
        torch.testing.assert_close(changed(images), network(images), rtol=1e-4, atol=1e-4)

    def test_int8_is_a_change(self, network: VisionTransformer, seen: dict[str, Observed], images: Tensor) -> None:
        for name in targets(network):
            for precision in (STATIC, PER_TOKEN, BF16):
                precisions = dict.fromkeys(targets(network), FP32) | {name: precision}
                changed, became = assemble(network, precisions, seen, FP32)
                off = (changed(images) - network(images)).abs().max()
                assert off > 1e-4, f"{name} says {became[name].what} and computes in float32"

    @pytest.mark.parametrize("part", LINEARS)
    def test_rounding_is_to_the_nearest_step(
        self, part: str, network: VisionTransformer, seen: dict[str, Observed]
    ) -> None:
        """Cut off without the half step that belongs there, all values are too low, and all images off alike."""
        images = photographs(64, seed=2)
        static = {f"blocks.{number}.{part}": STATIC for number in range(2)}
        changed, _ = assemble(network, dict.fromkeys(targets(network), FP32) | static, seen, FP32)
        off = changed(images) - network(images)
        assert off.mean(0).norm() < 0.42 * off.norm(dim=1).mean()  # without the half step 0.57 to 0.72

    def test_outliers_are_split_and_said_to_be(self, network: VisionTransformer, seen: dict[str, Observed]) -> None:
        _, became = assemble(network, dict.fromkeys(targets(network), STATIC), seen)
        notes = [became[f"blocks.{number}.mlp.fc2"].what for number in range(2)]
        assert any("1 outlier channels split into" in note for note in notes)
        for number, note in enumerate(notes):
            widened = EXTRA if "split" in note else 0
            assert became[f"blocks.{number}.mlp.fc2"].bytes == 64 * (256 + widened) + 2 * 4 * 64
            assert became[f"blocks.{number}.mlp.fc1"].bytes == (256 + widened) * (64 + 2 * 4)

    def test_bytes_are_those_of_the_integers(self, network: VisionTransformer) -> None:
        _, became = assemble(network, dict.fromkeys(targets(network), PER_TOKEN), {})
        for name in targets(network):
            weight = network.get_submodule(name).weight
            assert became[name].bytes == weight.numel() + 8 * len(weight)

    def test_the_model_is_left_alone(self, network: VisionTransformer, seen: dict[str, Observed]) -> None:
        before = {key: value.clone() for key, value in network.state_dict().items()}
        types = [type(module) for module in network.modules()]
        assemble(network, dict.fromkeys(targets(network), STATIC), seen)
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
        assert types == [type(module) for module in network.modules()]

    def test_equal_inputs_give_equal_models(
        self, network: VisionTransformer, seen: dict[str, Observed], images: Tensor
    ) -> None:
        first, second = (assemble(network, dict.fromkeys(targets(network), STATIC), seen)[0] for _ in range(2))
        assert torch.equal(first(images), second(images))

    @pytest.mark.parametrize(
        "options",
        [
            {"init_values": 0.5},
            {"qkv_bias": False},
            {"proj_bias": False},
            {"num_heads": 4},
            {"class_token": False, "global_pool": "avg"},
            {"reg_tokens": 3},
            {"pre_norm": True},
            {"img_size": 48},
        ],
        ids=lambda options: next(iter(options)),
    )
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_other_plain_transformers(self, precision: str, options: dict[str, Any]) -> None:
        network = tiny_vit(**options)
        side = options.get("img_size", 32)
        images = torch.nn.functional.interpolate(photographs(12, seed=5), (side, side))
        seen = observe(network, images[:8])
        changed, _ = assemble(network, dict.fromkeys(targets(network), precision), seen)
        assert closeness(changed, network, images[8:]) > 0.99

    def test_layer_scale_is_folded(self) -> None:
        network = tiny_vit(init_values=1.0)
        images = photographs(4, seed=6)
        changed, _ = assemble(network, dict.fromkeys(targets(network), FP32), {}, FP32)
        torch.testing.assert_close(changed(images), network(images), rtol=1e-4, atol=1e-4)
        assert not any("ls1" in name or "gamma" in name for name, _ in changed.named_modules())
        for block in network.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        for precision in PRECISIONS:
            seen = observe_without_gradients(network, images) if precision == STATIC else {}
            changed, _ = assemble(network, dict.fromkeys(targets(network), FP32) | others(network, precision), seen)
            torch.testing.assert_close(changed(images), network(images), rtol=1e-4, atol=1e-4)


def others(network: VisionTransformer, precision: str) -> dict[str, str]:
    """Return ``precision`` for all but the patch embedding."""
    return {name: precision for name in targets(network) if name != "patch_embed.proj"}


def observe_without_gradients(network: VisionTransformer, images: Tensor) -> dict[str, Observed]:
    """Return what `observe` does of a model whose blocks do nothing: that gives no gradients to weigh by."""
    kept: dict[str, Tensor] = {}
    for name in targets(network)[1:]:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _, inputs, __, name=name: kept.update({name: inputs[0].flatten(0, -2)}))
    network(images)
    return {name: observed(inputs, network.get_submodule(name).out_features) for name, inputs in kept.items()}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"qk_norm": True}, r"blocks\.0\.attn\.q_norm is a LayerNorm"),
        ({"scale_attn_norm": True}, r"blocks\.0\.attn\.norm is a LayerNorm"),
        ({"scale_mlp_norm": True}, r"blocks\.0\.mlp\.norm is a LayerNorm"),
        ({"act_layer": nn.ReLU}, r"blocks\.0\.mlp\.act is a ReLU"),
        ({"act_layer": nn.SiLU}, r"blocks\.0\.mlp is a Mlp"),
        ({"act_layer": lambda: nn.GELU(approximate="tanh")}, r"blocks\.0\.mlp\.act is a GELU"),
        ({"norm_layer": nn.RMSNorm}, r"blocks\.0\.norm1 is a RMSNorm"),
    ],
)
def test_other_transformers_are_refused_by_the_part_that_differs(options: dict[str, Any], part: str) -> None:
    network = tiny_vit(**options)
    with pytest.raises(UserError, match=part + ".*Use int8-dynamic or int8-weight-only"):
        anatomy_of(network).blocks()
    with pytest.raises(UserError, match=part):
        assemble(network, dict.fromkeys(targets(network), FP32), {})


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"block_fn": ParallelScalingBlock}, r"blocks\.0 is a ParallelScalingBlock"),
        ({"block_fn": ResPostBlock}, r"blocks\.0 is a ResPostBlock"),
        ({"mlp_layer": SwiGLU}, r"blocks\.0\.mlp is a SwiGLU"),
    ],
)
def test_other_blocks_and_mlps_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        anatomy_of(tiny_vit(**options)).blocks()


def test_gated_attention_is_refused() -> None:
    network = tiny_vit()
    network.blocks[1].attn.gate = nn.Linear(64, 64)
    with pytest.raises(UserError, match=r"blocks\.1\.attn is a Attention"):
        anatomy_of(network).blocks()


def test_a_patch_embedding_that_overlaps_is_refused() -> None:
    network = tiny_vit()
    network.patch_embed.proj = nn.Conv2d(3, 64, 8, 8, padding=1)
    with pytest.raises(UserError, match=r"patch_embed\.proj is not a convolution over separate square patches"):
        anatomy_of(network).patch_embedding()
