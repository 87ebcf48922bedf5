"""What the processor that loads a file multiplies exactly and fast, found out in TorchScript by trying it.

x86 processors without VNNI multiply u8 x s8 with an instruction (vpmaddubsw) that adds the products of two neighbouring
inputs, 2k and 2k + 1, in 16 bits, where they saturate. Inputs are 0..255, so a pair of weights of one sign cannot
exceed 16 bits if the two add up to at most 128: 255 x 128 = 32,640. A pair of opposite signs never does.
"""

import torch
from torch import Tensor

PAIR_LIMIT = 128  # size of the sum of two neighbouring weights that every processor multiplies exactly


def pairs_fit(weight: Tensor, limit: int = PAIR_LIMIT) -> bool:
    """Tell whether ``weight`` ``[out, in]``, int8, keeps the limit in each pair of neighbours."""
    even = weight.size(1) // 2 * 2  # a last one without neighbour always does
    sums = weight[:, 0:even:2].to(torch.int16) + weight[:, 1:even:2].to(torch.int16)
    return bool((sums.abs() <= limit).all())


def int8_is_exact(portable: bool) -> bool:
    """Tell whether oneDNN's u8 x s8 product is exact here: with any weights, or ``portable`` ones, whose pairs fit.

    Tries the hardest weights, and inputs for each. On Arm, where another library multiplies, it is taken to be inexact.
    """
    if torch.ops.mkldnn._is_mkldnn_acl_supported():
        return False
    rows = [[127, 1], [1, 127], [64, 64], [127, -127], [-127, -1], [-1, -127], [-64, -64], [-127, 127]]
    if not portable:
        rows += [[127, 127], [-127, -127]]
    # As often the one beside the other as swapped: a processor that added other neighbours would be found out.
    pairs = torch.tensor(rows, dtype=torch.int8)
    hardest = torch.cat([pairs, pairs.flip([1])], 1).repeat([2, 16])
    inputs = torch.full([3, 64], 255, dtype=torch.uint8)
    inputs[1, 0::2] = 0
    inputs[2, 1::2] = 0
    outputs = hardest.size(0)
    product = torch.ops.onednn.qlinear_pointwise(
        inputs,
        1.0,
        0,
        torch.ops.onednn.qlinear_prepack(hardest.clone(), None),  # packs in place
        torch.ones([outputs]),
        torch.zeros([outputs], dtype=torch.int64),
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return bool((product == torch.mm(inputs.to(torch.float32), hardest.to(torch.float32).t())).all())


def bfloat16_is_native() -> bool:
    """Tell whether this processor multiplies bfloat16 itself, and does not emulate it, many times slower.

    What oneDNN calls supported may be emulated. Instructions for bfloat16 take numbers below float32's smallest normal
    one, 2^-126, for 0 (Intel's manual on VDPBF16PS, and AMX and Arm's BFMMLA likewise); an emulation keeps them.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    tiny = torch.zeros([32, 32])
    tiny[:, 0] = 2.0**-65
    reduced = tiny.to(torch.bfloat16)
    kept = bool(torch.mm(tiny, tiny.t()).max() > 0)  # else the process itself takes them for 0, and nothing is known
    return kept and bool(torch.mm(reduced, reduced.t()).max() == 0)
