"""The float recipes: what they put in the place of timm's modules for GPUs."""

from collections.abc import Callable

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.network import architecture
from dinoquant.recipes import cast
from dinoquant.recipes.cast import Cast, GeluLinear, PatchProjection


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(12, 12), (13, 14)], ids=str)
def test_the_product_over_patches_is_the_convolution(
    size: tuple[int, int], bias: bool, noise: Callable[..., Tensor], on_cuda: Callable[[Tensor], Tensor]
) -> None:
    convolution, images = nn.Conv2d(3, 8, 4, 4, bias=bias), noise(2, 3, *size)
    projection = PatchProjection(convolution)
    expected = convolution(images)
    assert torch.equal(projection(images), expected)
    found = projection(on_cuda(images)).as_subclass(Tensor)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(16,), (2, 5, 16), (2, 3, 5, 16)], ids=str)
def test_gelu_behind_a_linear(
    shape: tuple[int, ...], noise: Callable[..., Tensor], on_cuda: Callable[[Tensor], Tensor]
) -> None:
    linear, inputs = nn.Linear(16, 24), noise(3, *shape)
    merged = GeluLinear(linear)
    expected = functional.gelu(linear(inputs))
    assert torch.equal(merged(inputs), expected)
    found = merged(on_cuda(inputs)).as_subclass(Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=6e-4)  # on a GPU it is an approximation


@pytest.mark.parametrize("recipe", ["bf16", "fp16"])
def test_what_is_merged_changes_nothing_on_a_cpu(recipe: str, noise: Callable[..., Tensor]) -> None:
    network = architecture.seeded("test_vit", None, 0)
    images = noise(2, 3, 160, 160)
    dtype = cast.DTYPES[recipe]
    quantized = cast.quantize(network, {"recipe": recipe})
    names = {name for name, module in network.named_modules() if type(module) is nn.GELU}
    assert len(names) > 1
    assert {name for name, part in quantized.became.items() if "on a GPU approximated by tanh" in part.what} == names
    network.to(dtype)
    with torch.no_grad():
        assert torch.equal(quantized.module(images), Cast(network, dtype)(images))


@pytest.mark.parametrize(
    "mlp",
    [
        Mlp(8, act_layer=nn.SiLU),
        Mlp(8, act_layer=lambda: nn.GELU(approximate="tanh")),
        Mlp(8, bias=False),
        Mlp(8, use_conv=True),
    ],
    ids=["SiLU", "tanh", "no bias", "convolution"],
)
def test_another_mlp_is_left_alone(mlp: Mlp) -> None:
    model: nn.Module = nn.Sequential(mlp)
    before = list(map(type, model.modules()))
    assert cast.for_gpus(model) == []
    assert list(map(type, model.modules())) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", ["bf16", "fp16"])
def test_on_a_gpu(recipe: str, noise: Callable[..., Tensor]) -> None:
    network, images = architecture.seeded("test_vit", None, 0), noise(4, 3, 160, 160)
    module = torch.jit.trace(cast.quantize(network, {"recipe": recipe}).module, images[:1], check_trace=False).cuda()
    with torch.no_grad():
        similarity = functional.cosine_similarity(module(images.cuda()).cpu(), network(images))
    assert similarity.min() > 0.999
