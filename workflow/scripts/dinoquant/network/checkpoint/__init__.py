"""Load a checkpoint into a network: find the weights in the file, say which were taken, and leave nothing to chance."""

import logging
from pathlib import Path

from torch import Tensor, nn

from dinoquant.network import architecture
from dinoquant.network.architecture import Loaded
from dinoquant.network.checkpoint.fitting import fit, fit_jax, is_jax
from dinoquant.network.checkpoint.reading import read
from dinoquant.network.checkpoint.sets import WHOLE, choose, some

log = logging.getLogger(__name__)


def load(model: nn.Module, path: str | Path, *, image_size: int | None = None, weights: str | None = None) -> Loaded:
    """Load the checkpoint at ``path`` into ``model`` as float32 and make it take images of ``image_size`` pixels.

    :param image_size: None keeps the size that the checkpoint's position embedding is made for.
    :param weights: which of several sets of weights to take; None prefers averaged ones (EMA, teacher) to raw ones.

    Nothing in the file is executed. Raises UserError if the file is no checkpoint, if its tensors are not exactly those
    of the model apart from heads, or if it holds several sets of weights of which none is known to be preferred.
    """
    path = Path(path)
    native = architecture.side(model)
    content = read(path)
    if isinstance(content, dict) and is_jax(content):
        loaded = Loaded(WHOLE, dropped=fit_jax(model, content, path))
    else:
        choice = choose(content, model, weights)
        heads = fit(model, choice.taken.tensors)
        loaded = Loaded(choice.taken.label, choice.others, choice.beside, sorted([*choice.taken.strays, *heads]))
        loaded.notes.extend(choice.notes)
        if coarse := {
            str(value.dtype).removeprefix("torch.") for value in choice.taken.tensors.values() if _is_coarse(value)
        }:
            loaded.notes.append(
                f"Some weights of the checkpoint are of 8 bits ({', '.join(sorted(coarse))}): fp32 starts from them."
            )
    loaded.notes.extend(_resized(model, native, image_size))
    log.info("weights taken from the checkpoint: %s", loaded.weights)
    if loaded.other_weights:
        log.info("the checkpoint holds other weights, too (model.weights chooses): %s", some(loaded.other_weights))
    if loaded.beside or loaded.dropped:
        log.info("not used from the checkpoint: %s", some([*loaded.beside, *loaded.dropped]))
    for note in loaded.notes:
        log.info("%s", note)
    return loaded


def _is_coarse(value: Tensor) -> bool:
    return value.is_floating_point() and value.itemsize == 1


def _resized(model: nn.Module, native: int, image_size: int | None) -> list[str]:
    """Make the model take ``image_size`` pixels, and say what that does to the position embedding."""
    trained, patch = architecture.side(model), architecture.patch_size(model)
    architecture.resize(model, image_size)
    size = architecture.side(model)
    if patch is None or "pos_embed" not in model.state_dict():
        return []
    if size != trained:
        return [
            f"The position embedding was interpolated from the {trained // patch} x {trained // patch} patches of the "
            f"checkpoint ({trained} pixels) to {size // patch} x {size // patch} ({size} pixels)."
        ]
    if image_size is None and trained != native:
        return [
            f"The checkpoint's position embedding is made for images of {trained} pixels, so the model takes these and "
            f"not the {native} of model.architecture; model.image_size sets another size."
        ]
    return []
