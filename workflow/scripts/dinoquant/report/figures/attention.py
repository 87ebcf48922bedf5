"""Figure: what the [CLS] token attends to in the last block, for fp32 and every variant on the same images."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dinoquant.report.figures.inputs import Maps
from dinoquant.report.figures.style import MUTED, WIDTH, Style, finish, font_scale
from dinoquant.runtimes import BASELINE

COLOURS = "viridis"  # as in DINO's `visualize_attention.py`
MOST_COLUMNS = 8  # of maps; with more variants the images are shown again below, beside the others
LONGEST = 13  # characters of a name in one line above a tile, at the usual size of text
PERCENTILE = 97  # of 196 patches: all but the brightest 6


def draw(maps: Mapping[str, Maps], style: Style) -> Figure:
    """Return a row of tiles per image: the image, fp32's map, and each variant's, the mean over the heads.

    ``maps`` has those of each variant; below stands why there are none of the others.
    """
    reasons = {variant: str(own["reason"]) for variant, own in maps.items() if "reason" in own}
    reasons = {**style.without_attention, **reasons}
    means = {variant: maps[variant]["maps"].mean(axis=1) for variant in style.variants if variant not in reasons}
    lines = _lines(list(means))
    images = maps[BASELINE]["images"]
    columns = 1 + max(map(len, lines))
    height = len(lines) * (0.45 * font_scale() + len(images) * (WIDTH / columns + 0.15 * font_scale()))
    figure, grid = plt.subplots(
        len(lines) * len(images),
        columns,
        figsize=(WIDTH, 1.4 * font_scale() + height),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.04, wspace=0, hspace=0),
    )
    for ax in grid.flat:
        ax.axis("off")
    for rows, line in zip(np.split(grid, len(lines)), lines, strict=True):
        for number, (row, image) in enumerate(zip(rows, images, strict=True)):
            row[0].imshow(image.transpose(1, 2, 0))
            for ax, variant in zip(row[1:], line, strict=False):
                _tile(ax, means[variant][number], means[BASELINE][number], variant)
        for ax, name in zip(rows[0], ["image", *line], strict=False):
            ax.set_title(_broken(name), loc="center", size="x-small", weight="normal")
    return finish(
        figure,
        style.accuracy_title("What [CLS] attends to in the last block"),
        f"Mean over the heads. Colours are alike within a row: from the least of fp32's map to its {PERCENTILE}th "
        "percentile, since a few patches often draw most. Number: rank correlation with fp32's map (Spearman).",
        _notes(reasons),
    )


def _lines(names: list[str]) -> list[list[str]]:
    """Return the names in as few lines as they fit in, of about equal length."""
    count = max(1, math.ceil(len(names) / MOST_COLUMNS))
    return [line.tolist() for line in np.array_split(np.array(names, dtype=object), count)]


def _tile(ax: Axes, values: NDArray[np.float32], reference: NDArray[np.float32], variant: str) -> None:
    highest = float(np.percentile(reference, PERCENTILE))
    ax.imshow(values, cmap=COLOURS, vmin=float(reference.min()), vmax=highest, interpolation="nearest")
    if variant != BASELINE:
        # By rank: the few patches that draw most would make any two maps of an image look alike.
        text = f"{spearmanr(values.ravel(), reference.ravel()).statistic:.3f}" if np.ptp(values) else "even"
        ax.text(0.5, -0.03, text, transform=ax.transAxes, ha="center", va="top", size="x-small", color=MUTED)


def _broken(name: str) -> str:
    """Return a variant's name in lines short enough for a tile, broken behind hyphens where it has some."""
    lines = [""]
    for part in name.replace("-", "-\n").split("\n"):
        if lines[-1] and len(lines[-1] + part) > LONGEST / font_scale():
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _notes(reasons: Mapping[str, str]) -> list[str]:
    """Return a sentence for each reason that names the variants without a map."""
    variants: dict[str, list[str]] = {}
    for variant, reason in reasons.items():
        variants.setdefault(reason, []).append(variant)
    return [f"No map of {', '.join(names)}: {reason}." for reason, names in variants.items()]
