"""Make another runtime's model in that runtime's environment, and check it against the model it is made of."""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from dinoquant.files import atomic, write_json
from dinoquant.network.card import BESIDE, new_card, read_card
from dinoquant.network.export import require_close
from dinoquant.runtimes import files, recipe_of
from dinoquant.runtimes.backend import Array, of_image
from dinoquant.runtimes.emulation import emulated
from dinoquant.runtimes.opened import open_model
from dinoquant.runtimes.remote import Remote
from dinoquant.runtimes.torchscript import random_images

log = logging.getLogger("dinoquant")

PARTIAL = ".partial-"
BATCHES = (1, 16)
# Relative to the largest feature: rounding of another order of sums in float32, and of bfloat16's 8 bit mantissa. What
# int8 does to features is for the accuracy to say, not for this.
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
# With random weights, a TorchScript file has 0.9994 to itself where images are one part in a million brighter.
LEAST_COSINE = 0.998


def convert(
    source: Path,
    target: Path,
    variant: str,
    options: Mapping[str, Any],
    info: Mapping[str, Any],
    *,
    fp32: Path,
    images: Array | None,
    threads: int,
) -> None:
    """Write the model ``target``, with its card beside it, complete or not at all.

    Args:
        source: the ONNX file; for inductor the float32 weights, or the TorchScript file of a recipe of our own.
        options: the variant's, with its runtime and recipe.
        info: the float model's `info.json`.
        fp32: the TorchScript file to check the result against.
        images: for the calibration: float32 ``[N, 3, S, S]``, normalised; None for recipes without.

    Raises UserError and RuntimeError as `Remote` and `require_alike` do.
    """
    card = new_card(variant, options["runtime"], options, info)
    for leftover in target.parent.glob(f"{PARTIAL}*"):  # of a conversion that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as folder:
        made = Path(folder) / target.name
        with Remote(options["runtime"], threads) as process:
            card["versions"] = process.about()
            start = time.perf_counter()
            answer, _ = process.ask("convert", images, source=str(source.resolve()), target=str(made), card=card)
        taken = round(time.perf_counter() - start, 2)
        write_json(made.with_name(BESIDE), {**card, "convert_s": taken, **(answer["card"] or {})})
        require_alike(made, source if recipe_of(options).module else fp32, threads)
        for file in (*reversed(files(made)), made.with_name(BESIDE)):
            with atomic(target.with_name(file.name)) as partial:
                file.replace(partial)


def require_alike(model: Path, original: Path, threads: int) -> None:
    """Run ``model`` at batch sizes 1 and 16 beside the TorchScript file ``original``, on random images.

    Raises RuntimeError if it yields anything but a finite feature vector for each image, or if the features of a float
    model, or of a recipe of our own, differ from the original's by more than rounding. Does not run it where its
    precision would be emulated.
    """
    card = read_card(model)
    if reason := emulated(model, "cpu"):
        log.warning("%s was made but not run: %s", card["variant"], reason)
        return
    images = random_images(max(BATCHES), card["image_size"], "cpu", seed=0)
    for batch_size in BATCHES:
        batch = images[:batch_size]
        with open_model(original, "cpu", threads=threads, batch_size=batch_size) as reference:
            expected = reference(batch)
        with open_model(model, "cpu", threads=threads, batch_size=batch_size) as converted:
            features = converted(batch)
        finite = bool(features.isfinite().all())
        if features.shape != expected.shape or not finite:
            raise RuntimeError(f"{card['variant']} yields {list(features.shape)}, finite: {finite}")
        compared = of_image(features), of_image(expected)
        if card["recipe"] in TOLERANCES:
            require_close(*compared, TOLERANCES[card["recipe"]], f"{card['variant']} and fp32")
        if recipe_of(card["options"]).module:
            require_same_roundings(*compared, card["variant"])
        deviation = float((features - expected).abs().max() / expected.abs().max())
        log.debug(
            "at batch size %d, features are up to %.2g of the largest away from %s's", batch_size, deviation, original
        )


def require_same_roundings(features: Tensor, expected: Tensor, variant: str) -> None:
    """Raise RuntimeError if the features of a compiled model are not those of the TorchScript file it was made of.

    By each image's cosine: one int8 rounding that falls the other way makes others do so. Of tokens the first
    counts, as patches differ more by that alone.
    """
    cosine = float(cosine_similarity(features, expected).min())
    if not cosine >= LEAST_COSINE:  # written so that NaN fails too
        raise RuntimeError(f"{variant} and its TorchScript file: cosine {cosine:.5f}, at least {LEAST_COSINE} expected")
