"""Figure: what the [CLS] token attends to in the last block, for fp32 and every variant on the same images."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from dinoquant.report.figures.inputs import Arrays
from dinoquant.report.figures.style import Style, finish
from dinoquant.report.figures.tiles import notes, tiled, write_below
from dinoquant.runtimes import BASELINE

COLOURS = "viridis"  # as in DINO's `visualize_attention.py`
PERCENTILE = 97  # of 196 patches: all but the brightest 6


def draw(maps: Mapping[str, Arrays], style: Style) -> Figure:
    """Return a row of tiles per image: the image, fp32's map, and each variant's, the mean over the heads.

    ``maps`` has those of each variant; below stands why there are none of the others.
    """
    reasons = {variant: str(own["reason"]) for variant, own in maps.items() if "reason" in own}
    reasons = {**style.without_attention, **reasons}
    means = {variant: maps[variant]["maps"].mean(axis=1) for variant in style.variants if variant not in reasons}

    def tile(ax: Axes, variant: str, number: int) -> None:
        values, reference = means[variant][number], means[BASELINE][number]
        highest = float(np.percentile(reference, PERCENTILE))
        ax.imshow(values, cmap=COLOURS, vmin=float(reference.min()), vmax=highest, interpolation="nearest")
        if variant != BASELINE:
            # By rank: the few patches that draw most would make any two maps of an image look alike.
            even = not np.ptp(values)
            write_below(ax, "even" if even else f"{spearmanr(values.ravel(), reference.ravel()).statistic:.3f}")

    return finish(
        tiled(maps[BASELINE]["images"], list(means), tile),
        style.accuracy_title("What [CLS] attends to in the last block"),
        f"Mean over the heads. Colours are alike within a row: from the least of fp32's map to its {PERCENTILE}th "
        "percentile, since a few patches often draw most. Number: rank correlation with fp32's map (Spearman).",
        notes("map", reasons),
    )
