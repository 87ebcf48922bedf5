"""What the processor has: the integer product under every instruction set against exact integers, and bf16."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinoquant.recipes.int8.processor import PAIR_LIMIT, bfloat16_is_native, int8_is_exact, pairs_fit

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 instruction sets")
CAPS = {
    "sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}
# Run by name in a process of its own: oneDNN reads its cap once.
INSIDE = """
import sys
import test_processor

getattr(test_processor, sys.argv[1])()
"""


def under(cap: str, function: str) -> None:
    """Call a function of this module in a fresh process with an instruction set at most."""
    path = os.pathsep.join([str(Path(__file__).parent), str(SCRIPTS)])
    environment = {**os.environ, **CAPS[cap], "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", INSIDE, function]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def product(inputs: Tensor, weight: Tensor, zero_point: int) -> Tensor:
    """Return oneDNN's u8 x s8 product ``[..., out]``, float32."""
    outputs = len(weight)
    packed = torch.ops.onednn.qlinear_prepack(weight.clone(), None)
    scale, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        inputs, 1.0, zero_point, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


def at_the_limit(outputs: int, width: int, seed: int, spread: float) -> Tensor:
    """Return weights in pairs that add up to all of the limit, or of two signs to anything, in random order."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(1, PAIR_LIMIT, (outputs, (width + 1) // 2), generator=generator)
    first = torch.where(torch.rand(pairs.shape, generator=generator) < spread, pairs, PAIR_LIMIT // 2)
    same = torch.rand(pairs.shape, generator=generator) < 0.7
    second = torch.where(same, PAIR_LIMIT - first, -torch.randint(0, PAIR_LIMIT, pairs.shape, generator=generator))
    sign = 2 * torch.randint(0, 2, pairs.shape, generator=generator) - 1
    return (torch.stack([first, second], -1).flatten(1)[:, :width] * sign.repeat_interleave(2, 1)[:, :width]).to(
        torch.int8
    )


def hardest(weight: Tensor, rows: int, seed: int) -> Tensor:
    """Return u8 inputs ``[rows, in]``: at the top, or there where an output's weights have one sign, or random."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 256, (rows, weight.shape[1]), dtype=torch.uint8, generator=generator)
    inputs[0::3] = 255
    for row in range(1, rows, 3):
        output = weight[row % len(weight)]
        inputs[row] = torch.where((output > 0) == bool(row % 2), 255, 0)
    return inputs


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.one_of(st.integers(1, 40), st.sampled_from([197, 788])),
    st.one_of(st.integers(1, 70), st.sampled_from([192, 384, 768, 1600])),
    st.one_of(st.integers(1, 40), st.sampled_from([64, 192, 576])),
    st.sampled_from([0, 1, 3, 16, 100, 128, 255]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 1000),
)
def products_are_exact(rows: int, width: int, outputs: int, zero_point: int, spread: float, seed: int) -> None:
    weight = at_the_limit(outputs, width, seed, spread)
    assert pairs_fit(weight)
    inputs = hardest(weight, rows, seed)
    expected = (inputs.long() - zero_point) @ weight.long().T
    # float32 holds integers up to 2^24; of up to 1600 inputs these sums may be larger.
    assert torch.equal(product(inputs, weight, zero_point), expected.float())
    assert torch.equal(product(inputs.view(1, rows, width), weight, zero_point)[0], expected.float())


def portable_weights_are_exact() -> None:
    assert int8_is_exact(portable=True)
    assert torch.jit.script(int8_is_exact)(True)
    products_are_exact()


def larger_weights_are_not() -> None:
    """And the check says so; and one more than the limit is one too many."""
    assert not int8_is_exact(portable=False)
    assert not torch.jit.script(int8_is_exact)(False)
    inputs = torch.full((4, 64), 255, dtype=torch.uint8)
    fits, exceeds = (torch.tensor([[64, last]], dtype=torch.int8).repeat(16, 32) for last in (64, 65))
    assert (product(inputs, fits, 0) == 255 * 128 * 32).all()
    assert not (product(inputs, exceeds, 0) == 255 * 129 * 32).any()


def bfloat16_is_emulated() -> None:
    assert not bfloat16_is_native()
    assert not torch.jit.script(bfloat16_is_native)()


def test_portable_weights_are_exact_here() -> None:
    if torch.ops.mkldnn._is_mkldnn_acl_supported():
        pytest.skip("on Arm all integers are multiplied as float32")
    portable_weights_are_exact()


@X86
@pytest.mark.parametrize("cap", CAPS)
def test_portable_weights_are_exact_without_vnni(cap: str) -> None:
    under(cap, "portable_weights_are_exact")


@X86
@pytest.mark.parametrize("cap", ["avx2", "avx512"])
def test_larger_ones_are_not(cap: str) -> None:
    under(cap, "larger_weights_are_not")


@X86
@pytest.mark.parametrize("cap", CAPS)
def test_emulated_bfloat16_is_not_taken_for_native(cap: str) -> None:
    under(cap, "bfloat16_is_emulated")


def test_native_bfloat16_is_found() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if "avx512_bf16" not in flags or os.environ.get("ONEDNN_MAX_CPU_ISA"):
        pytest.skip("this processor has no bfloat16 that this test knows of")
    assert bfloat16_is_native()
    torch.set_flush_denormal(True)
    try:
        assert not bfloat16_is_native(), "without denormals nothing can be known"
    finally:
        torch.set_flush_denormal(False)
