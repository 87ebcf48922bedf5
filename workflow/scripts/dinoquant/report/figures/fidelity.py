"""Figure: how close every variant's features and k-NN predictions are to fp32's."""

import math

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dinoquant.report.figures.style import (
    MUTED,
    WIDTH,
    Row,
    Rows,
    Style,
    by_variant,
    deviations,
    empty_row,
    finish,
    unsupported_notes,
    variant_axis,
)
from dinoquant.runtimes import BASELINE

# Column of the summary, title, unit, the value of fp32 itself, how to print the value.
PANELS = [
    ("cosine_mean", "Cosine to fp32", "mean", 1.0, "{:.4f}"),
    ("knn_top1_drop", "k-NN top-1 lost", "percentage points", 0.0, "{:+.2f}"),
    ("knn_agreement", "Agreement", "% of queries", 100.0, "{:.1f}"),
]


def draw(table: pd.DataFrame, style: Style) -> Figure:
    """Return three panels: cosine to fp32's features, loss of k-NN top-1 in points, agreement of predictions in %."""
    rows = by_variant(table, known=["cosine_mean"])
    variants = [variant for variant in style.variants if variant != BASELINE]
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 2.4 + 0.4 * len(variants)), sharey=True)
    for ax, (column, title, unit, reference, form) in zip(panels, PANELS, strict=True):
        variant_axis(ax, variants)
        ax.axvline(reference, color=MUTED, linestyle="--", linewidth=1, zorder=0)
        ax.margins(x=0.1)
        ax.set_title(title)
        ax.set_xlabel(unit)
        for y, variant in enumerate(variants):
            if variant in rows and not math.isnan(rows[variant][column]):
                _mark(ax, y, rows[variant], column, style)
                _print(ax, y, form.format(rows[variant][column]))
    for y, variant in enumerate(variants):
        if variant not in rows:
            empty_row(panels[0], y, "not measured")
    if all(math.isnan(row["knn_top1"]) for row in rows.values()):
        for ax in panels[1:]:
            empty_row(ax, 0, "no labels")
    return finish(
        figure,
        style.accuracy_title("Fidelity to fp32"),
        "Marker: value, with its interval. Tick: 5th percentile of the cosine over queries. "
        "Agreement: same k-NN prediction. Dashed: fp32 itself"
        f"{_baseline(rows)}.",
        unsupported_notes(table),
    )


def _mark(ax: Axes, y: int, row: Row, column: str, style: Style) -> None:
    colour = style.colours[row["variant"]]
    interval = None
    if f"{column}_ci_low" in row:
        interval = deviations(row[column], row[f"{column}_ci_low"], row[f"{column}_ci_high"])
    if column == "cosine_mean":
        ax.plot(row["cosine_p5"], y, marker="|", markersize=13, markeredgewidth=2, color=colour)
    marker = style.markers[row["variant"]]
    ax.errorbar(row[column], y, xerr=interval, capsize=3, markersize=8, color=colour, fmt=marker)


def _print(ax: Axes, y: int, text: str) -> None:
    """Write the value to the right of the panel, in a column."""
    ax.annotate(
        text,
        (1, y),
        xycoords=ax.get_yaxis_transform(),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        size="small",
    )


def _baseline(rows: Rows) -> str:
    known = BASELINE in rows and not math.isnan(rows[BASELINE]["knn_top1"])
    return f", whose k-NN top-1 is {rows[BASELINE]['knn_top1']:.2f} %" if known else ""
