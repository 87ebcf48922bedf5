"""Whether the processor that a job runs on would emulate a model's precision. Imports PyTorch only for such a model."""

from pathlib import Path

from dinoquant.machine import describe
from dinoquant.network.card import read_card


def emulated(model: Path, device: str) -> str | None:
    """Return why a model must not be run on this machine's ``device``; None where it computes in the model's precision.

    Emulated bfloat16 is 6 to 8 times slower than float32: a run of hours that tells nothing of the model. In float16
    no recipe computes on a CPU; int8 recipes take float32 in bfloat16's place where it is slow.
    """
    card = read_card(model)
    if device != "cpu" or "bf16" not in (card["recipe"], card["options"].get("rest")):
        return None
    from dinoquant.recipes.int8.processor import bfloat16_is_native

    if bfloat16_is_native():
        return None
    processor = describe()["cpu"] or "this processor"
    return f"bf16 would be emulated, many times slower than fp32: no instructions for it are in use on {processor}"
