"""Choose the Linear layers that a recipe converts, in a copy of the model that may be changed."""

import copy
import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from dinoquant.recipes.anatomy.families import described
from dinoquant.recipes.patch_embedding import is_patch_embedding, rewrite

log = logging.getLogger("dinoquant")


class _Watched(nn.Module):
    """A Linear or convolution that is called, and remembers whether anything else of it was used."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.read = False

    def __getattr__(self, name: str) -> Any:
        if name == "module":
            return super().__getattr__(name)
        self.read = True
        return getattr(self.module, name)

    def forward(self, inputs: Tensor) -> Tensor:
        """Call the module."""
        outputs: Tensor = self.module(inputs)
        return outputs


def copy_with_targets(model: nn.Module, asked: Collection[str]) -> tuple[nn.Module, list[str]]:
    """Return a copy of ``model`` and the names of the Linear layers in it that stand for the kinds ``asked``.

    "Linear" stands for every Linear, "Conv2d" for the patch embeddings, which the copy has as `PatchLinear`. Those
    whose weights the model itself reads, as timm's Gemma 4 does to learn their precision, are left as they are.
    """
    changed = copy.deepcopy(model)
    named = dict(changed.named_modules())
    linears = [name for name, module in named.items() if "Linear" in asked and isinstance(module, nn.Linear)]
    convolutions = [name for name, module in named.items() if "Conv2d" in asked and is_patch_embedding(module)]
    read = _read(changed, linears + convolutions) if described(model) is None else set()
    if read:
        log.warning("left in float32, because the model itself reads their weights: %s", ", ".join(sorted(read)))
    targets = [name for name in linears if name not in read]
    return changed, targets + rewrite(changed, [name for name in convolutions if name not in read])


@torch.no_grad()
def _read(model: nn.Module, names: Collection[str]) -> set[str]:
    """Return those of the modules whose weights are read by others when the model runs."""
    if not names:
        return set()
    either: Any = model
    size = getattr(getattr(either, "patch_embed", None), "img_size", None) or either.pretrained_cfg["input_size"]
    image = torch.zeros(1, 3, *size[-2:])
    model(image)  # some compute once what they keep
    watched = copy.deepcopy(model)
    probes = {name: _Watched(watched.get_submodule(name)) for name in names}
    for name, probe in probes.items():
        watched.set_submodule(name, probe)
    watched(image)
    return {name for name, probe in probes.items() if probe.read}
