"""Figure: how long the single calls took, from the raw samples, a panel per device."""

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from dinoquant.report.figures.style import (
    WIDTH,
    Style,
    at_batch_size,
    empty_row,
    finish,
    flagged_notes,
    unsupported_notes,
    variant_axis,
)
from dinoquant.report.records import Timing

WHISKERS = (1, 99)  # percentiles
Calls = Mapping[tuple[str, str], NDArray[np.float64]]  # ms of every call, by device and variant


def draw(table: pd.DataFrame, timings: Iterable[Timing], style: Style) -> Figure:
    """Return a box per variant of the ms that single calls took; ``timings`` are the files at the batch size shown."""
    table = at_batch_size(table, style)
    calls = {(t["device"], t["variant"]): np.concatenate(t["samples_ms"]["variant"]) for t in timings}
    devices = list(table["device"].unique())
    height = 1.5 + len(devices) * (0.8 + 0.4 * len(style.variants))
    figure, panels = plt.subplots(len(devices), 1, figsize=(WIDTH, height), squeeze=False)
    for device, ax in zip(devices, panels.flat, strict=True):
        _panel(ax, calls, device, style)
        ax.set_title(device)
    return finish(
        figure,
        f"Single calls at batch size {table['batch_size'].iloc[0]}",
        "Box: half of the calls, its line the median. Whiskers: 98 % of them. Dots: the others. "
        "n: number of calls. Logarithmic scale.",
        [*flagged_notes(table), *unsupported_notes(table)],
    )


def _panel(ax: Axes, calls: Calls, device: str, style: Style) -> None:
    variant_axis(ax, style.variants)
    for y, variant in enumerate(style.variants):
        if (device, variant) not in calls:
            empty_row(ax, y, f"does not run on {device}")
            continue
        ms, colour = calls[device, variant], style.colours[variant]
        ax.boxplot(
            ms,
            positions=[y],
            orientation="horizontal",
            widths=0.62,
            whis=WHISKERS,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.75, "linewidth": 0.8},
            medianprops={"color": "black", "linewidth": 1.4},
            flierprops={"marker": ".", "markersize": 3, "markerfacecolor": colour, "markeredgecolor": colour},
        )
        across = ax.get_yaxis_transform()
        ax.annotate(f"n {ms.size}", (0.995, y), xycoords=across, ha="right", va="center", size="small")
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * (high / low) ** 0.12)  # room for the counts
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("ms per call")
