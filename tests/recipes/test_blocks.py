"""The parts of the int8 models against float64: rounding, clipping, scales, attention, memory, and a GPU's branch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.int8 import layers, transformer
from dinoquant.recipes.int8.assemble import FP32, assemble
from dinoquant.recipes.int8.layers import FloatLinear, StaticLinear, TokenLinear, quantize_weight, steps_to_uint8
from dinoquant.recipes.int8.transformer import LastBlock, Patches
from samples import tiny_vit

IN, OUT, TOKENS = 72, 48, 20  # of 8 a multiple, but of no vector register's width
ZERO_POINT = 100


@pytest.fixture(params=["processor", "float32"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The integer product of this processor if it is exact here, and the one in float32 of processors without it."""
    if request.param == "float32":
        monkeypatch.setattr(layers, "int8_is_exact", lambda portable: False)
    elif not layers.int8_is_exact(portable=False):
        pytest.skip("this processor has no exact int8 product")
    return str(request.param)


def static(noise: Callable[..., Tensor], **options: Any) -> StaticLinear:
    integers, scale = quantize_weight(noise(OUT, IN))
    return StaticLinear(integers, 0.02 * scale, noise(OUT), ZERO_POINT, **options)


def token(noise: Callable[..., Tensor], after_gelu: bool = False) -> TokenLinear:
    return TokenLinear(*quantize_weight(noise(OUT, IN)), noise(OUT), after_gelu)


def static_reference(linear: StaticLinear, steps: Tensor) -> Tensor:
    """Return what ``linear`` computes before its own result is rounded, in float64."""
    integers = steps.double().trunc().clamp(0, 255) - linear.zero_point
    product = integers @ linear.weight.double().T * linear.scale.double() + linear.bias.double()
    return functional.gelu(product) if linear.gelu else product


def token_reference(linear: TokenLinear, inputs: Tensor) -> Tensor:
    """Return what ``linear`` computes, token by token, in float64; the scales are float32's."""
    rows = []
    for row in inputs.flatten(0, -2):
        if linear.after_gelu:
            step = max(row.max() / 239, torch.tensor(0.17 / 16))
            integers = (row / step + 16.5).double().floor() - 16
        else:
            step = max(row.abs().max() / 127, torch.tensor(1e-12))
            integers = (row / step + 128.5).double().floor() - 128
        rows.append(integers @ linear.weight.double().T * linear.scale.double() * step.double() + linear.bias.double())
    return torch.stack(rows).view(*inputs.shape[:-1], -1)


@pytest.mark.parametrize("given", ["steps", "uint8"])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("result", ["float32", "bfloat16", "uint8"])
@pytest.mark.usefixtures("arithmetic")
def test_static_linear_is_the_integer_product(
    result: str, gelu: bool, given: str, noise: Callable[..., Tensor]
) -> None:
    options = {"result_step": 0.03, "result_zero_point": 17} if result == "uint8" else {}
    linear = static(noise, result=result, gelu=gelu, **options)
    steps = 50 * noise(2, TOKENS, IN) + ZERO_POINT + 0.5
    if given == "uint8":
        steps = steps.clamp(0, 255).to(torch.uint8)
    expected = static_reference(linear, steps)
    found = linear(steps)
    assert found.shape == (2, TOKENS, OUT)
    if result == "uint8":
        assert found.dtype == torch.uint8
        integers = torch.round(expected / 0.03 + 17).clamp(0, 255)
        assert {0, 255} <= set(integers.flatten().tolist()) or gelu
        off = (found.double() - integers).abs()
        assert off.max() <= 1
        assert off.mean() < 0.005  # where float32 rounds to the other side of a half
    else:
        tolerance = 2**-8 if found.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-5)


def test_results_have_the_type_asked_for(noise: Callable[..., Tensor]) -> None:
    if not layers.int8_is_exact(portable=False):
        pytest.skip("without the exact int8 product, results are float32")
    assert static(noise, result="bfloat16")(noise(3, IN)).dtype == torch.bfloat16
    assert static(noise)(noise(3, IN)).dtype == torch.float32


@pytest.mark.usefixtures("arithmetic")
def test_static_linear_clips_at_both_ends(noise: Callable[..., Tensor]) -> None:
    linear = static(noise)
    for beyond, end in ((-3.0, 0.0), (-20_000.0, 0.0), (256.9, 255.0), (20_000.0, 255.0)):
        steps = torch.full((4, IN), ZERO_POINT + 0.5)
        clipped = steps.clone()
        steps[:, 10], clipped[:, 10] = beyond, end
        assert torch.equal(linear(steps), linear(clipped))


def test_steps_are_cut_off_and_clipped() -> None:
    steps = torch.tensor([-1e4, -1.0, -0.5, 0.0, 0.99, 1.0, 1.5, 254.99, 255.0, 255.99, 256.0, 1e4])
    assert steps_to_uint8(steps).tolist() == [0, 0, 0, 0, 0, 1, 1, 254, 255, 255, 255, 255]
    assert steps_to_uint8(steps).dtype == torch.uint8


@pytest.mark.parametrize("shape", [(TOKENS, IN), (1, TOKENS, IN), (3, TOKENS, IN), (2, 4, 5, IN), (1, 1, IN)], ids=str)
@pytest.mark.parametrize("after_gelu", [False, True])
@pytest.mark.usefixtures("arithmetic")
def test_token_linear_is_the_integer_product(
    after_gelu: bool, shape: tuple[int, ...], noise: Callable[..., Tensor]
) -> None:
    linear = token(noise, after_gelu)
    inputs = noise(*shape) * torch.exp(noise(*shape[:-1], 1))  # tokens of different size
    if after_gelu:
        inputs = functional.gelu(inputs)
    before = inputs.clone()
    found = linear(inputs)
    assert found.shape == (*shape[:-1], OUT)
    assert found.dtype == torch.float32
    expected = token_reference(linear, inputs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(inputs, before)
    plain = functional.linear(inputs, linear.weight * linear.scale[:, None], linear.bias)
    # Per token: within what half a step in each of the inputs can do, of independent sign.
    step = torch.maximum(inputs.amax(-1), -inputs.amin(-1)) / 127 + 0.01
    assert ((found - plain).abs().amax(-1) < step * 0.5 * 4 * math.sqrt(IN)).all()


@pytest.mark.parametrize("after_gelu", [False, True])
@pytest.mark.usefixtures("arithmetic")
def test_odd_tokens(after_gelu: bool, noise: Callable[..., Tensor]) -> None:
    linear = token(noise, after_gelu)
    weight = linear.weight * linear.scale[:, None]
    rows = {
        "zeros": torch.zeros(IN),
        "constant": torch.full((IN,), 5.0),
        "huge": torch.full((IN,), 3e30),
        "one huge": functional.one_hot(torch.tensor(5), IN) * 1e30,
        "tiny": torch.full((IN,), 1e-20),
    }
    if not after_gelu:
        rows |= {"negative": torch.full((IN,), -0.7), "huge negative": torch.full((IN,), -3e30)}
    found = linear(torch.stack(list(rows.values())))
    assert torch.isfinite(found).all()
    for row, features in zip(rows.values(), found, strict=True):
        expected = functional.linear(row, weight, linear.bias)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=float(1e-6 * row.abs().max()) + 1e-5)
    assert torch.equal(found[0], linear.bias)
    for name, row in rows.items():  # whatever the neighbours are
        assert torch.equal(found[list(rows).index(name)], linear(row[None])[0]), name


def test_what_gelu_yields_fits_into_the_steps_below_zero(noise: Callable[..., Tensor]) -> None:
    assert -functional.gelu(torch.linspace(-2, 0, 100_001)).min() <= layers.GELU_MINIMUM
    linear = token(noise, after_gelu=True)
    lowest = functional.gelu(torch.full((1, IN), -0.7518))
    expected = functional.linear(lowest, linear.weight * linear.scale[:, None], linear.bias)
    torch.testing.assert_close(linear(lowest), expected, rtol=0.01, atol=0.01)


@pytest.fixture
def product_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `torch._int_mm` refuse what it refuses on CUDA (PyTorch's aten/src/ATen/native/cuda/Blas.cpp).

    And be exact, as it is there: on a CPU without VNNI its sums of neighbours saturate.
    """

    def refusing(tokens: Tensor, weight: Tensor) -> Tensor:
        assert tokens.size(0) > 16
        assert tokens.size(1) % 8 == weight.size(1) % 8 == 0
        return tokens.int() @ weight.int()

    monkeypatch.setattr(torch, "_int_mm", refusing)


@pytest.mark.usefixtures("product_of_gpus")
@pytest.mark.parametrize("shape", [(1, IN), (16, 1, IN), (TOKENS, IN), (2, TOKENS, IN), (2, 4, 5, IN)], ids=str)
@pytest.mark.parametrize("after_gelu", [False, True])
def test_the_branch_for_gpus_computes_the_same(
    after_gelu: bool, shape: tuple[int, ...], noise: Callable[..., Tensor], on_cuda: Callable[[Tensor], Tensor]
) -> None:
    linear = token(noise, after_gelu)
    inputs = noise(*shape) * torch.exp(noise(*shape[:-1], 1))
    if after_gelu:
        inputs = functional.gelu(inputs)
        inputs[..., 0] = -0.1699  # the lowest integer, for which int8 has just room
        inputs[0, ..., 1] = 1e4
    expected = linear(inputs)
    there = TokenLinear(on_cuda(linear.weight), linear.scale, linear.bias, after_gelu)
    found = there(on_cuda(inputs)).as_subclass(Tensor)
    # A value at a half of a step goes up in one and to the even neighbour in the other.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("product_of_gpus")
def test_the_branch_for_gpus_takes_patches_of_14_pixels(
    noise: Callable[..., Tensor], on_cuda: Callable[[Tensor], Tensor]
) -> None:
    """Whose 588 inputs are no multiple of 8."""
    weight, scale = quantize_weight(noise(OUT, 3 * 14 * 14))
    inputs, bias = noise(2, TOKENS, 3 * 14 * 14), noise(OUT)
    found = TokenLinear(on_cuda(weight), scale, bias, after_gelu=False)(on_cuda(inputs)).as_subclass(Tensor)
    torch.testing.assert_close(found, TokenLinear(weight, scale, bias, after_gelu=False)(inputs), rtol=1e-4, atol=1e-3)


def test_channels_of_tiny_weights_use_all_steps(noise: Callable[..., Tensor]) -> None:
    integers, scale = quantize_weight(torch.cat([noise(OUT, IN) * 1e-6, torch.zeros(1, IN)]))
    assert (integers[:-1].abs().amax(1) == 127).all()
    assert not (integers[-1] * scale[-1]).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("after_gelu", [False, True])
def test_token_linear_on_a_gpu(after_gelu: bool, noise: Callable[..., Tensor]) -> None:
    linear = token(noise, after_gelu)
    inputs = functional.gelu(noise(2, TOKENS, IN))
    expected = linear(inputs)
    there = TokenLinear(linear.weight.cuda(), linear.scale.cuda(), linear.bias.cuda(), after_gelu)
    torch.testing.assert_close(torch.jit.script(there)(inputs.cuda()).cpu(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_linear(dtype: torch.dtype, noise: Callable[..., Tensor]) -> None:
    weight, bias, inputs = noise(OUT, IN), noise(OUT), noise(2, TOKENS, IN)
    linear = FloatLinear(weight, bias, dtype)
    found = linear(inputs)
    assert found.dtype == torch.float32
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found, functional.linear(inputs, weight, bias), rtol=tolerance, atol=20 * tolerance)
    assert linear.stored_bytes() == (OUT * IN + OUT) * dtype.itemsize


@pytest.mark.parametrize("size", [32, 36])
def test_patches_are_the_convolution(size: int, noise: Callable[..., Tensor]) -> None:
    convolution = nn.Conv2d(3, OUT, 8, 8).requires_grad_(False)
    images = noise(2, 3, size, size)
    expected = convolution(images)
    linear = FloatLinear(convolution.weight.flatten(1), convolution.bias, torch.float32)
    torch.testing.assert_close(Patches(8, linear, None, None)(images), expected, rtol=1e-4, atol=1e-5)


def test_patches_of_8_bit_photographs_are_exact_but_for_the_weights(noise: Callable[..., Tensor]) -> None:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    images = (pixels / 255 - mean) / std
    integers, scale = quantize_weight(noise(OUT, 3 * 64))
    gain, offset = 255 * std, 255 * mean + 0.5
    patches = Patches(8, StaticLinear(integers, scale, noise(OUT), 0), gain, offset)
    weight = (integers * scale[:, None]).view(OUT, 3, 8, 8)
    expected = functional.conv2d(pixels, weight, patches.linear.bias, 8)
    torch.testing.assert_close(patches(images), expected, rtol=1e-5, atol=1e-2)


@pytest.fixture
def timm_blocks() -> list[nn.Module]:
    return [*tiny_vit().blocks, tiny_vit(init_values=1.0, qkv_bias=False, num_heads=4).blocks[0]]


def plain(block: nn.Module, attention: torch.dtype) -> transformer.Block:
    """Return ``block`` with Linears in float32, and none of what int8 needs."""
    width = block.attn.head_dim
    scale = torch.ones(block.attn.qkv.out_features)
    scale[: len(scale) // 3] = math.log2(math.e) / math.sqrt(width)

    def linear(old: nn.Linear, factor: Tensor | float = 1.0) -> FloatLinear:
        bias = torch.zeros(old.out_features) if old.bias is None else old.bias
        return FloatLinear(old.weight * torch.as_tensor(factor).view(-1, 1), bias * factor, torch.float32)

    linears = (
        linear(block.attn.qkv, scale),
        linear(block.attn.proj, getattr(block.ls1, "gamma", 1.0)),
        linear(block.mlp.fc1),
        linear(block.mlp.fc2, getattr(block.ls2, "gamma", 1.0)),
    )
    norms = (block.norm1, block.norm2)
    return transformer.Block(block.attn.num_heads, norms, linears, attention, 0.0, ("gelu", 1.0, 0.0), None)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_float32_block_is_timms(batch: int, timm_blocks: list[nn.Module], noise: Callable[..., Tensor]) -> None:
    tokens = noise(batch, 17, 64)
    for block in timm_blocks:
        before = tokens.clone()
        expected = block(tokens)
        for candidate in (plain(block, torch.float32), torch.jit.script(plain(block, torch.float32))):
            torch.testing.assert_close(candidate(tokens), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(tokens, before)


def test_bf16_attention_is_close_and_another(timm_blocks: list[nn.Module], noise: Callable[..., Tensor]) -> None:
    block, qkv = plain(timm_blocks[0], torch.bfloat16), noise(2, 17, 192)
    exact = plain(timm_blocks[0], torch.float32).attend(qkv)
    torch.testing.assert_close(block.attend(qkv), exact, rtol=0, atol=0.05)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert not torch.equal(block.attend(qkv), exact)


@pytest.mark.parametrize("attention", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", [1.0, 30.0, 75.0, 88.0, 120.0, 1e4])
def test_large_logits(
    largest: float, attention: torch.dtype, timm_blocks: list[nn.Module], noise: Callable[..., Tensor]
) -> None:
    """Up to 76 nats, 110 powers of 2, as softmax has it; beyond, finite and between the values."""
    block = plain(timm_blocks[0], attention)
    block.heads = 1
    width, length = 16, 17
    query, key, value = (noise(1, length, width) for _ in range(3))
    logits = query @ key.transpose(1, 2)
    query = query * (largest / logits.abs().max())
    query = query.to(attention).float()
    key = key.to(attention).float()
    found = block.attend(torch.cat([query * math.log2(math.e), key, value], -1))
    assert torch.isfinite(found).all()
    assert (found <= value.amax(1) * 1.02 + 0.02).all()
    assert (found >= value.amin(1) * 1.02 - 0.02).all()
    if largest <= 75 and attention == torch.float32:
        expected = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_all_beyond_the_limit_give_the_mean(sign: int, timm_blocks: list[nn.Module]) -> None:
    block = plain(timm_blocks[0], torch.float32)
    block.heads = 1
    qkv = torch.cat([torch.full((1, 9, 4), 1e3 * sign), torch.full((1, 9, 4), 1e3)], -1)
    values = torch.arange(36.0).view(1, 9, 4)
    expected = values.mean(1, keepdim=True).expand(-1, 9, -1)
    torch.testing.assert_close(block.attend(torch.cat([qkv, values], -1)), expected)


def test_all_float32_is_the_model(noise: Callable[..., Tensor]) -> None:
    network = tiny_vit()
    images = noise(2, 3, 32, 32)
    changed, became = assemble(network, dict.fromkeys(targets(network), FP32), {}, FP32)
    assert became == {}
    torch.testing.assert_close(changed(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("read", [1, 2, 5])
@pytest.mark.parametrize("attention", [torch.float32, torch.bfloat16])
def test_the_last_block_computes_only_the_tokens_that_are_read(
    attention: torch.dtype, read: int, timm_blocks: list[nn.Module], noise: Callable[..., Tensor]
) -> None:
    block = plain(timm_blocks[0], attention)
    tokens = noise(3, 17, block.qkv.weight.shape[1])
    with torch.no_grad():
        whole, first = block(tokens.clone()), LastBlock(block, read)(tokens.clone())
    assert first.shape == (3, read, whole.shape[2])
    torch.testing.assert_close(first, whole[:, :read], rtol=1e-4, atol=1e-4 if attention == torch.float32 else 1e-2)


def test_bytes_are_those_of_integers_scales_and_biases(noise: Callable[..., Tensor]) -> None:
    for linear in (static(noise), token(noise)):
        assert linear.stored_bytes() == OUT * IN + 4 * OUT + 4 * OUT


def test_the_block_of_memory_is_just_below_the_allocators_largest_threshold() -> None:
    assert layers.free_large_block() < 32 * 1024**2
    assert layers.free_large_block() > 31 * 1024**2
