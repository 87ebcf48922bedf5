"""Figure: images per second over batch size."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.optimize import isotonic_regression

from dinoquant.report.figures.style import WIDTH, Style, crowding, finish, flagged_notes, font_scale, unsupported_notes


def draw(table: pd.DataFrame, style: Style) -> Figure:
    """Return a line per variant, named at its right end and ringed where it is highest, and a panel per device."""
    rows = table[table["status"] != "unsupported"]
    devices = list(table["device"].unique())
    size = (WIDTH, 1.5 + 4.2 * len(devices) * crowding(len(style.variants)))
    figure, panels = plt.subplots(len(devices), 1, figsize=size, squeeze=False)
    for device, ax in zip(devices, panels.flat, strict=True):
        _panel(ax, rows[rows["device"] == device], style)
        ax.set_title(device)
    return finish(
        figure,
        "Throughput",
        "Images per second: batch size over median latency. Higher is better. Ring: the variant's best batch size.",
        [*flagged_notes(table), *unsupported_notes(table)],
    )


def _panel(ax: Axes, rows: pd.DataFrame, style: Style) -> None:
    batch_sizes = sorted(rows["batch_size"].unique())
    ends = {}
    for variant in rows["variant"].unique():
        line = rows[rows["variant"] == variant].sort_values("batch_size")
        look = {"color": style.colours[variant], "marker": style.markers[variant]}
        ax.plot(line["batch_size"], line["throughput_ips"], markersize=8, linewidth=2, **look)
        best = line.loc[line["throughput_ips"].idxmax()]
        ring = {"marker": "o", "markerfacecolor": "none", "color": style.colours[variant]}
        ax.plot(best["batch_size"], best["throughput_ips"], markersize=16, clip_on=False, **ring)
        ends[variant] = (float(line["batch_size"].iloc[-1]), float(line["throughput_ips"].iloc[-1]))
    ax.set_xscale("log", base=2)
    ax.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 1.08 * rows["throughput_ips"].max())
    ax.set_xlabel("batch size")
    ax.set_ylabel("images per second")
    name_lines(ax, ends, {variant: variant for variant in ends}, style)


def name_lines(ax: Axes, ends: Mapping[str, tuple[float, float]], names: Mapping[str, str], style: Style) -> None:
    """Write the variants' ``names`` to the right of the axes, in the order of their lines' ends and apart from another.

    The limits of the axes must not change afterwards.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = {variant: float(to_axes.transform(end)[1]) for variant, end in ends.items()}
    variants = sorted(heights, key=lambda variant: heights[variant])
    places = spread(
        [heights[variant] for variant in variants], 0.062 * font_scale() / crowding(len(style.variants)), 1.0
    )
    for variant, height in zip(variants, places, strict=True):
        ax.annotate(
            names[variant],
            ends[variant],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            size="small",
            arrowprops={"arrowstyle": "-", "color": style.colours[variant], "linewidth": 1, "relpos": (0, 0.5)},
        )


def spread(values: list[float], gap: float, top: float) -> list[float]:
    """Return the ascending ``values`` moved apart by ``gap`` at least, close to where they were and below ``top``.

    Least squares under the constraints: with ``gap`` taken off per rank, they are the nearest ascending sequence.
    """
    ranks = np.arange(len(values))
    shifted = isotonic_regression(np.asarray(values) - gap * ranks).x + gap * ranks
    return list(shifted - max(0.0, shifted[-1] - top))
