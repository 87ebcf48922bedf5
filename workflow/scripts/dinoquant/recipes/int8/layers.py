"""Linear layers in int8, bfloat16 and float32 as TorchScript, from operators that stock PyTorch has.

Each Linear packs its weights for oneDNN when the file is loaded, because a packed weight cannot be stored, and takes
then what is exact and fast there (see `processor`). Where the processor would give wrong sums, the same integers are
multiplied in float32 instead; where it emulates bfloat16, float32 takes its place.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoquant.recipes.int8.processor import PAIR_LIMIT, bfloat16_is_native, int8_is_exact, pairs_fit

GELU_MINIMUM = 0.17  # GELU is nowhere below -0.16998


def free_large_block() -> int:
    """Allocate and free one large block, so that the allocator holds on to freed memory from now on; return its size.

    glibc returns freed memory to the system once more than twice the largest block freed so far lies unused, and the
    next call faults it in again, page by page, which can take as long as all the arithmetic. Having freed one block of
    just under 32 MiB, its largest such threshold, it keeps what it has. Other allocators do not mind.

    Unless the size is used, TorchScript leaves the whole call out.
    """
    return torch.empty([32 * 1024 * 1024 - 65536], dtype=torch.uint8).numel()


def quantize_weight(weight: Tensor, portable: bool = False) -> tuple[Tensor, Tensor]:
    """Round ``[out, in]`` to int8, symmetric, one scale per output channel; return integers and scales ``[out]``.

    :param portable: choose scales that keep every pair of neighbours within `PAIR_LIMIT`.
    """
    scale = weight.abs().amax(1) / 127
    if portable:
        even = weight.size(1) // 2 * 2
        means = weight[:, 0:even:2] / 2 + weight[:, 1:even:2] / 2  # a sum might exceed float32
        # A half less than the limit: that much two roundings may add in all. (The pad is for a single column.)
        scale = torch.maximum(scale, functional.pad(means.abs(), (0, 1)).amax(1) / (PAIR_LIMIT / 2 - 0.25))
    # The floor is the one of PyTorch's observers: a channel of zeros must not divide by zero.
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def steps_to_uint8(steps: Tensor) -> Tensor:
    """Clip to 0..255, in place, and cut off the fraction.

    By way of int16, since PyTorch has no vector code from float to u8.
    """
    return steps.clamp_(0.0, 255.0).to(torch.int16).to(torch.uint8)


def multiply(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return a Linear of ``inputs`` by oneDNN: PyTorch's own takes MKL, which is slow on AMD's processors."""
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return outputs


class Int8Linear(nn.Module):
    """What both int8 Linears share: int8 weights ``[out, in]``, a scale for each output, and the packed form."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    packed: Tensor
    zeros: Tensor
    exact: bool
    native_bfloat16: bool

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = weight, scale, bias
        self.packed, self.zeros, self.exact, self.native_bfloat16 = weight, weight, False, False
        self.pack()

    def pack(self) -> None:
        """Pack the weights for this processor; what the file keeps is the integers."""
        self.exact = free_large_block() > 0 and not self.weight.is_cuda and int8_is_exact(pairs_fit(self.weight))
        self.native_bfloat16 = self.weight.is_cuda or bfloat16_is_native()
        self.zeros = torch.zeros([self.weight.size(0)], dtype=torch.int64)
        if self.exact:
            self.packed = torch.ops.onednn.qlinear_prepack(self.weight.clone(), None)  # packs in place
        elif self.weight.is_cuda:
            # `torch._int_mm` takes multiples of 8 there, which the 588 inputs of a patch of 14 pixels are not.
            self.packed = functional.pad(self.weight, [0, (8 - self.weight.size(1) % 8) % 8]).t()
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(torch.float32), None)

    def stored_bytes(self) -> int:
        """Return the bytes of what the file keeps."""
        return int(self.weight.nbytes + self.scale.nbytes + self.bias.nbytes)


class StaticLinear(Int8Linear):
    """int8 weights on inputs in fixed quantization steps; ``[..., in]`` -> ``[..., out]``.

    The layer before writes ``x / step + zero_point + 0.5``, so that cutting the fraction off rounds; or u8 already.
    With `gelu`, GELU follows. The result is "float32", "bfloat16", or "uint8" in steps of its own.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        zero_point: int,
        result: str = "float32",
        gelu: bool = False,
        result_step: float = 1.0,
        result_zero_point: int = 0,
    ) -> None:
        super().__init__(weight, scale, bias)  # scale: of the weights, times the inputs' step
        self.zero_point = zero_point
        self.result = result
        self.gelu = gelu
        self.result_step = result_step
        self.result_zero_point = result_zero_point

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, Tensor, int, str, bool, float, int, bool]:
        """Return what the file keeps."""
        return (
            self.weight,
            self.scale,
            self.bias,
            self.zero_point,
            self.result,
            self.gelu,
            self.result_step,
            self.result_zero_point,
            self.training,
        )

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, Tensor, int, str, bool, float, int, bool]) -> None:
        """Pack what the file kept."""
        self.weight = state[0]
        self.scale = state[1]
        self.bias = state[2]
        self.zero_point = state[3]
        self.result = state[4]
        self.gelu = state[5]
        self.result_step = state[6]
        self.result_zero_point = state[7]
        self.training = state[8]
        self.pack()

    def rows(self, start: int, stop: int) -> "StaticLinear":
        """Return the Linear of some of the outputs."""
        weight, scale, bias = (kept[start:stop].clone() for kept in (self.weight, self.scale, self.bias))
        return StaticLinear(
            weight,
            scale,
            bias,
            self.zero_point,
            self.result,
            self.gelu,
            self.result_step,
            self.result_zero_point,
        )

    def forward(self, steps: Tensor) -> Tensor:
        """Round and clip, multiply, add the bias."""
        quantized = steps
        if steps.dtype != torch.uint8:
            quantized = steps_to_uint8(steps)
        if self.exact:
            dtype = torch.float32
            if self.result == "bfloat16" and self.native_bfloat16:
                dtype = torch.bfloat16
            elif self.result == "uint8":
                dtype = torch.uint8
            result: Tensor = torch.ops.onednn.qlinear_pointwise(
                quantized,
                1.0,
                self.zero_point,
                self.packed,
                self.scale,
                self.zeros,
                self.bias,
                self.result_step,
                self.result_zero_point,
                dtype,
                "gelu" if self.gelu else "none",
                [],
                "none",
            )
            return result
        centred = quantized.to(torch.float32) - self.zero_point
        product = multiply(centred, self.packed, None) * self.scale + self.bias
        if self.gelu:
            product = functional.gelu(product)
        if self.result == "uint8":
            return steps_to_uint8(product / self.result_step + (self.result_zero_point + 0.5))
        return product


class TokenLinear(Int8Linear):
    """int8 weights on inputs with one scale per token; float32 ``[..., in]`` -> float32 ``[..., out]``.

    Symmetric; or for what comes out of a GELU, with nearly all of the 256 values above 0.
    """

    CENTRE: Final[int] = 128  # the u8 value that stands for 0
    AFTER_GELU: Final[int] = 16  # likewise, of what comes out of a GELU
    GELU_MINIMUM: Final[float] = GELU_MINIMUM
    SMALLEST_STEP: Final[float] = 1e-12  # a token of zeros must not divide by zero
    FEWEST_ROWS: Final[int] = 32  # of `torch._int_mm` on CUDA, which refuses 16; the last block has a row an image

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor, after_gelu: bool) -> None:
        super().__init__(weight, scale, bias)
        self.after_gelu = after_gelu

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, Tensor, bool, bool]:
        """Return what the file keeps."""
        return self.weight, self.scale, self.bias, self.after_gelu, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, Tensor, bool, bool]) -> None:
        """Pack what the file kept."""
        self.weight = state[0]
        self.scale = state[1]
        self.bias = state[2]
        self.after_gelu = state[3]
        self.training = state[4]
        self.pack()

    def rows(self, start: int, stop: int) -> "TokenLinear":
        """Return the Linear of some of the outputs."""
        weight, scale, bias = (kept[start:stop].clone() for kept in (self.weight, self.scale, self.bias))
        return TokenLinear(weight, scale, bias, self.after_gelu)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale each token to 8 bits, multiply, scale back and add the bias."""
        largest = inputs.amax(-1, keepdim=True)
        if self.after_gelu:
            zero_point = self.AFTER_GELU
            step = (largest / (255 - zero_point)).clamp_min_(self.GELU_MINIMUM / zero_point)
        else:
            zero_point = self.CENTRE
            step = (torch.maximum(largest, -inputs.amin(-1, keepdim=True)) / 127).clamp_min_(self.SMALLEST_STEP)
        if inputs.is_cuda:  # int8 tensor cores take signed integers, and tokens in one row
            integers = torch.round(inputs / step)
            if self.after_gelu:
                integers -= self.CENTRE - zero_point
            tokens = integers.to(torch.int8).flatten(0, -2)
            missing = [0, self.packed.size(0) - tokens.size(1), 0, max(0, self.FEWEST_ROWS - tokens.size(0))]
            product = torch._int_mm(functional.pad(tokens, missing), self.packed)[: tokens.size(0)]
            if self.after_gelu:
                product += (self.CENTRE - zero_point) * self.weight.sum(1, dtype=torch.int32)
            scaled = torch.unflatten(product * self.scale, 0, inputs.size()[:-1])
        elif self.exact:
            scaled = torch.ops.onednn.qlinear_pointwise(
                (inputs / step).add_(zero_point + 0.5).to(torch.int16).to(torch.uint8),
                1.0,
                zero_point,
                self.packed,
                self.scale,
                self.zeros,
                None,
                1.0,
                0,
                torch.float32,
                "none",
                [],
                "",
            )
        else:
            integers = (inputs / step).add_(zero_point + 0.5).floor_() - zero_point
            scaled = multiply(integers, self.packed, None) * self.scale
        return torch.addcmul(self.bias, scaled, step)


class FloatLinear(nn.Module):
    """A Linear in bfloat16 or float32; float32 ``[..., in]`` -> float32 ``[..., out]``.

    Where the processor emulates bfloat16, its weights are multiplied in float32.
    """

    weight: Tensor
    bias: Tensor
    packed: Tensor
    native_bfloat16: bool

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self.packed, self.native_bfloat16 = self.weight, False
        self.pack()

    def pack(self) -> None:
        """Pack the weights for this processor; the file keeps them plain."""
        self.native_bfloat16 = free_large_block() > 0 and (self.weight.is_cuda or bfloat16_is_native())
        if self.weight.is_cuda or (self.native_bfloat16 and self.weight.dtype == torch.bfloat16):
            self.packed = self.weight
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(torch.float32), None)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, bool]:
        """Return what the file keeps."""
        return self.weight, self.bias, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, bool]) -> None:
        """Pack what the file kept."""
        self.weight = state[0]
        self.bias = state[1]
        self.training = state[2]
        self.pack()

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply in the weights' precision."""
        if self.packed.is_mkldnn:
            return multiply(inputs, self.packed, self.bias.to(torch.float32))
        return functional.linear(inputs.to(self.weight.dtype), self.weight, self.bias).to(torch.float32)

    def rows(self, start: int, stop: int) -> "FloatLinear":
        """Return the Linear of some of the outputs."""
        return FloatLinear(self.weight[start:stop].clone(), self.bias[start:stop].clone(), self.weight.dtype)

    def stored_bytes(self) -> int:
        """Return the bytes of what the file keeps."""
        return int(self.weight.nbytes + self.bias.nbytes)
