"""Choose the Linear layers that a recipe converts, in a copy of the model that may be changed."""

import copy
from collections.abc import Collection

from torch import nn

from dinoquant.recipes.patch_embedding import rewrite


def copy_with_targets(model: nn.Module, asked: Collection[str]) -> tuple[nn.Module, list[str]]:
    """Return a copy of ``model`` and the names of the Linear layers in it that stand for the kinds ``asked``.

    "Linear" stands for every Linear, "Conv2d" for the patch embeddings, which the copy has as `PatchLinear`.
    """
    changed = copy.deepcopy(model)
    targets = [name for name, module in changed.named_modules() if "Linear" in asked and isinstance(module, nn.Linear)]
    return changed, targets + (rewrite(changed) if "Conv2d" in asked else [])
