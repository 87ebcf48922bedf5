"""Figure: what every kind of module became, per variant."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dinoquant.report.figures.style import WIDTH, Colour, Style, finish
from dinoquant.runtimes import BASELINE

UNTOUCHED_COLOUR = "#e6e6e6"
UNCHANGED = "fp32"  # what the audit says that a part became which the recipe left alone


def draw(audits: Mapping[str, pd.DataFrame], style: Style) -> Figure:
    """Return a tile per variant and kind of module, coloured by the precision of their products, shared out by number.

    ``audits`` maps a variant to its `audit.csv`; the models of other runtimes have none.
    """
    variants = [variant for variant in style.variants if variant in audits]
    baseline = audits[BASELINE]
    weights = baseline.groupby("kind")["bytes_before"].sum().sort_values(ascending=False)
    kinds = weights[weights > 0].index.tolist()
    colours = _colours(audits)
    figure, ax = plt.subplots(figsize=(WIDTH, 2.2 + 0.52 * len(variants)))
    for y, variant in enumerate(variants):
        for x, kind in enumerate(kinds):
            _tile(ax, x, y, audits[variant][audits[variant]["kind"] == kind], colours)
    _label(ax, kinds, variants)
    return finish(
        figure,
        "What the modules became",
        "Tile: how many modules (or loose parameters) of that kind, what they became, the bytes they take. "
        "Colour: the precision of their products; grey: left alone. Kinds without parameters are not shown.",
    )


def _colours(audits: Mapping[str, pd.DataFrame]) -> dict[str, Colour]:
    """Return the colour of each precision that something was converted to."""
    converted = [audit["precision"][audit["became"] != UNCHANGED] for audit in audits.values()]
    precisions = list(pd.unique(pd.concat(converted)))
    return dict(zip(precisions, sns.color_palette("pastel", len(precisions)), strict=True))


def _gist(became: str) -> str:
    """Return the first two words of what a module became, as in "int8 dynamic, per-tensor weights (x86)"."""
    return " ".join(became.replace(",", "").split()[:2])


def _tile(ax: Axes, x: int, y: int, modules: pd.DataFrame, colours: Mapping[str, Colour]) -> None:
    left, texts = x - 0.49, []
    for gist, group in modules.groupby(modules["became"].map(_gist), sort=False):
        width = 0.98 * len(group) / len(modules)
        colour = UNTOUCHED_COLOUR if gist == UNCHANGED else colours[group["precision"].iloc[0]]
        ax.barh(y, width, left=left, color=colour, height=0.88, edgecolor="white", linewidth=2)
        texts.append((f"{len(group)} {gist}", f"{group['bytes_after'].sum() / 1e6:.2f} MB"))
        left += width
    text = "\n".join(texts[0] if len(texts) == 1 else map(", ".join, texts))
    ax.text(x, y, text, ha="center", va="center", size="x-small", color="#222222")


def _label(ax: Axes, kinds: list[str], variants: list[str]) -> None:
    ax.set_xticks(range(len(kinds)), kinds)
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(variants)), variants)
    ax.set_xlim(-0.5, len(kinds) - 0.5)
    ax.set_ylim(len(variants) - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
