"""Write the float32 model as an ONNX file, from which the peers make theirs."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from dinoquant.network.export import torchscript_warnings_known
from dinoquant.runtimes import PEERS_PYTHON

OPSET = 17  # the first with LayerNormalization as one operator


def write(network: nn.Module, image_size: int, path: Path) -> None:
    """Write ``network``: "images" float32 ``[batch, 3, S, S]`` to "features" ``[batch, D]``, for any batch size.

    Of a network that gives tokens, "features" are these: ``[batch, N, D]``.
    """
    example = torch.zeros(1, 3, image_size, image_size)
    with _onnx_importable(), warnings.catch_warnings(), torchscript_warnings_known():
        warnings.filterwarnings("ignore", "You are using the legacy", DeprecationWarning)
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={name: {0: "batch"} for name in ("images", "features")},
            opset_version=OPSET,
            dynamo=False,  # the other exporter would take one more package
        )


@contextmanager
def _onnx_importable() -> Iterator[None]:
    """Let PyTorch's exporter check its result with `onnx`, which only the peers' environment has."""
    before = list(sys.path)
    sys.path += map(str, PEERS_PYTHON.parents[1].glob("lib/python*/site-packages"))
    try:
        yield
    finally:
        sys.path[:] = before
