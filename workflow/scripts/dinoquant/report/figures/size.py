"""Figure: the size on disk of every variant's model."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from dinoquant.report.figures.style import WIDTH, Style, by_variant, empty_row, finish, variant_axis


def draw(table: pd.DataFrame, style: Style) -> Figure:
    """Return bars of the size of a model's files in MB (1e6 bytes), and how many times smaller than fp32's that is."""
    rows = by_variant(table)
    figure, ax = plt.subplots(figsize=(WIDTH, 1.6 + 0.4 * len(style.variants)))
    variant_axis(ax, style.variants)
    for y, variant in enumerate(style.variants):
        size, compression = rows[variant]["size_mb"], rows[variant]["compression"]
        if not size > 0:  # NaN: it cannot be made here
            empty_row(ax, y, str(rows[variant]["reason"]))
            continue
        ax.barh(y, size, height=0.62, color=style.colours[variant])
        label = f"{size:.1f} MB   {compression:.2f}x"
        ax.annotate(label, (size, y), xytext=(8, 0), textcoords="offset points", va="center", size="small")
    ax.set_xlim(0, 1.3 * table["size_mb"].max())
    ax.set_xlabel("MB on disk")
    return finish(
        figure,
        "Size of the model file",
        "MB: 1e6 bytes of the files that make up the model. x: times smaller than fp32.",
    )
