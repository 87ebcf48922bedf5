"""Figure: the principal components of patch tokens as colours, for fp32 and every variant on the same images."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from dinoquant.report.figures.inputs import Arrays
from dinoquant.report.figures.style import Style, finish
from dinoquant.report.figures.tiles import notes, tiled, write_below
from dinoquant.runtimes import BASELINE

CUT = 1  # percent of patches at each end of a component that share the end's colour

Floats = NDArray[np.floating]


def draw(tokens: Mapping[str, Arrays], style: Style) -> Figure:
    """Return a row of tiles per image: the image, fp32's patches, and each variant's.

    ``tokens`` has those of each variant; below stands why there are none of the others.
    """
    reasons = {variant: str(own["reason"]) for variant, own in tokens.items() if "reason" in own}
    reasons = {**style.without_patches, **reasons}
    shown = [variant for variant in style.variants if variant not in reasons]
    patches: dict[str, Floats] = {variant: tokens[variant]["patches"] for variant in shown}
    pictures = colours(patches) if shown else {}

    def tile(ax: Axes, variant: str, number: int) -> None:
        ax.imshow(pictures[variant][number], interpolation="nearest")
        if variant != BASELINE:
            write_below(ax, f"{_cosine(patches[variant][number], patches[BASELINE][number]):.4f}")

    return finish(
        tiled(tokens[BASELINE]["images"], shown, tile),
        style.accuracy_title("Patch tokens: their first three principal components"),
        "Components as red, green and blue. Axes and range are those of fp32's patches of all of these images, so that "
        "what differs is the variant's. Number: mean cosine of the image's patches to fp32's.",
        notes("patches", reasons),
    )


def colours(patches: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return each variant's patches ``[N, P, D]`` as colours ``[N, G, G, 3]``, 0 to 1, by the components of fp32's.

    The pictures by which DINOv2 is known (Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision",
    2023, figure 1), of whole images: no background is cut off.
    """
    reference = patches[BASELINE]
    components = PCA(3, svd_solver="full").fit(reference.reshape(-1, reference.shape[-1]))
    low, high = np.percentile(_projected(components, reference), (CUT, 100 - CUT), axis=(0, 1))
    side = math.isqrt(reference.shape[1])
    return {
        variant: np.clip((_projected(components, own) - low) / (high - low), 0, 1).reshape(-1, side, side, 3)
        for variant, own in patches.items()
    }


def _projected(components: PCA, patches: Floats) -> Floats:
    projected: Floats = components.transform(patches.reshape(-1, patches.shape[-1])).reshape(*patches.shape[:2], 3)
    return projected


def _cosine(first: Floats, second: Floats) -> float:
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return float(((first * second).sum(axis=-1) / lengths).mean())
