"""Check what another runtime made of the model against the model that it was made of."""

import logging
from pathlib import Path

import torch

from dinoquant.export import TOLERANCE_FLOAT32, TOLERANCE_REDUCED, load, require_close
from dinoquant.model_file import read_card
from dinoquant.runtimes.remote import RemoteModel

log = logging.getLogger("dinoquant")

BATCHES = (1, 16)
# Relative to the largest feature. What int8 does to features is for the accuracy to say, not for this.
TOLERANCES = {"fp32": TOLERANCE_FLOAT32, "bf16": TOLERANCE_REDUCED}


def require_alike(model: Path, fp32: Path, threads: int) -> None:
    """Run ``model`` at batch sizes 1 and 16 beside the TorchScript file ``fp32``, on random images.

    Raises RuntimeError if it yields anything but a finite feature vector for each image, or if a float model's features
    differ from fp32's by more than rounding.
    """
    card = read_card(model)
    size = card["image_size"]
    images = torch.randn(max(BATCHES), 3, size, size, generator=torch.Generator().manual_seed(0))
    reference = load(fp32)
    for batch_size in BATCHES:
        with torch.no_grad():
            expected = reference(images[:batch_size])
        with RemoteModel(model, batch_size=batch_size, threads=threads) as remote:
            found = remote(images[:batch_size])
        if found.shape != expected.shape or not found.isfinite().all():
            raise RuntimeError(f"{card['variant']} yields {list(found.shape)}, finite: {bool(found.isfinite().all())}")
        if card["recipe"] in TOLERANCES:
            require_close(found, expected, TOLERANCES[card["recipe"]], f"{card['variant']} and fp32")
        away = float((found - expected).abs().max() / expected.abs().max())
        log.debug("at batch size %d, features are up to %.2g of the largest away from fp32's", batch_size, away)
