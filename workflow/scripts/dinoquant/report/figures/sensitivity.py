"""Figure: how far each module alone moves the features once it is quantized."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dinoquant.report.figures.style import WIDTH, Style, finish, font_scale

COLOURS = "rocket_r"  # seaborn's; light is harmless, and grey print keeps the order
UNIT = 1e-6
SMALLEST = 1e-8  # below, it is float32's own rounding
RANGE = 100.0  # from the darkest colour to the lightest: a hundredth of the worst harms nobody, and takes no contrast
MOST_ANNOTATED = 32  # blocks; ViT-H has as many


def draw(table: pd.DataFrame, style: Style) -> Figure:
    """Return a panel per precision: a row per block and one for the patch embedding, a column per kind of Linear.

    ``table`` is `sensitivity.csv`.
    """
    damage = (1 - table["cosine_mean"]).clip(lower=SMALLEST)
    table = table.assign(damage=damage)[~table["module"].str.startswith("*")]
    precisions = list(table["precision"].unique())
    rows = int(table["block"].max()) + 2
    high = table["damage"].max()
    low = max(table["damage"].min(), high / RANGE)
    norm = LogNorm(low, max(high, 2 * low), clip=True)  # a scale needs an extent
    size = (WIDTH, 2.6 + 0.34 * font_scale() * rows)
    figure, panels = plt.subplots(1, len(precisions), figsize=size, sharey=True, squeeze=False)
    for precision, ax in zip(precisions, panels.flat, strict=True):
        _panel(ax, table[table["precision"] == precision], norm)
        ax.set_title(precision)
    panels[0, 0].set_ylabel("block")
    scale = mpl.cm.ScalarMappable(norm, mpl.colormaps[COLOURS])
    beyond = "min" if table["damage"].min() < low else "neither"
    bar = figure.colorbar(scale, ax=panels, label="1 - cosine to fp32", shrink=0.7, aspect=30, extend=beyond)
    bar.outline.set_visible(False)
    return finish(
        figure,
        style.accuracy_title("What each module alone does to the features"),
        "Cell: 1 - mean cosine to fp32's features with only this module quantized, in millionths, over "
        f"{table['images'].iloc[0]} images. Lower is better; the colours are logarithmic, alike in both panels.",
    )


def _panel(ax: Axes, table: pd.DataFrame, norm: Normalize) -> None:
    """Colour a cell per block and kind; the patch embedding's, on top, is as wide as the blocks'."""
    of_blocks = table[table["block"].notna()]
    kinds = list(of_blocks["kind"].unique())
    patches = float(table["damage"][table["block"].isna()].iloc[0])
    cells = of_blocks.pivot_table(index="block", columns="kind", values="damage")[kinds].to_numpy()
    values = np.vstack([np.full(len(kinds), patches), cells])
    rows = len(values)
    ax.pcolormesh(values, cmap=COLOURS, norm=norm, edgecolor="white", linewidth=1.5)
    ax.hlines(1, 0, len(kinds), color="white", linewidth=4)
    ax.add_patch(Rectangle((0, 0), len(kinds), 1, facecolor=mpl.colormaps[COLOURS](norm(patches)), linewidth=0))
    if rows - 1 <= MOST_ANNOTATED:
        _write(ax, len(kinds) / 2, 0.5, patches, norm)
        for y, row in enumerate(values[1:], start=1):
            for x, value in enumerate(row):
                _write(ax, x + 0.5, y + 0.5, value, norm)
    ax.set_xticks(np.arange(len(kinds)) + 0.5, [kind.rpartition(".")[2] for kind in kinds])
    ax.set_yticks(np.arange(rows) + 0.5, ["patches", *map(str, range(rows - 1))])
    ax.set_ylim(rows, 0)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _write(ax: Axes, x: float, y: float, damage: float, norm: Normalize) -> None:
    """Write the number in millionths, in the ink that shows on its colour."""
    millionths = damage / UNIT
    text = f"{millionths:,.0f}" if millionths >= 9.95 else f"{millionths:.1f}"
    red, green, blue = mpl.colormaps[COLOURS](norm(damage))[:3]
    ink = "#222222" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"  # ITU-R BT.601's brightness
    ax.text(x, y, text, ha="center", va="center", size="small", color=ink)
