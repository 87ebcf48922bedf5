"""What figures of images share: a row for each image, with a tile for each variant beside it."""

import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from dinoquant.report.figures.style import MUTED, WIDTH, font_scale

MOST_COLUMNS = 8  # of tiles; with more variants the images are shown again below, beside the others
LONGEST = 13  # characters of a name in one line above a tile, at the usual size of text

Draw = Callable[[Axes, str, int], None]  # draws a variant's tile of the image with that number


def tiled(images: NDArray[np.generic], variants: Sequence[str], draw: Draw) -> Figure:
    """Return a row of tiles for each of the images, uint8 ``[N, 3, H, W]``: the image, then each variant's."""
    count = max(1, math.ceil(len(variants) / MOST_COLUMNS))
    lines = [line.tolist() for line in np.array_split(np.array(variants, dtype=object), count)]
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
                draw(ax, variant, number)
        for ax, name in zip(rows[0], ["image", *line], strict=False):
            ax.set_title(_broken(name), loc="center", size="x-small", weight="normal")
    return figure


def write_below(ax: Axes, text: str) -> None:
    """Write a tile's number below it."""
    ax.text(0.5, -0.03, text, transform=ax.transAxes, ha="center", va="top", size="x-small", color=MUTED)


def notes(what: str, reasons: Mapping[str, str]) -> list[str]:
    """Return a sentence for each reason that names the variants without a tile; ``what`` there is none of."""
    variants: dict[str, list[str]] = {}
    for variant, reason in reasons.items():
        variants.setdefault(reason, []).append(variant)
    return [f"No {what} of {', '.join(names)}: {reason}." for reason, names in variants.items()]


def _broken(name: str) -> str:
    """Return a variant's name in lines short enough for a tile, broken behind hyphens where it has some."""
    lines = [""]
    for part in name.replace("-", "-\n").split("\n"):
        if lines[-1] and len(lines[-1] + part) > LONGEST / font_scale():
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
