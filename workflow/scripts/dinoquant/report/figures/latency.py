"""Figure: the latency of every variant, a panel per device."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dinoquant.report.figures.style import (
    WIDTH,
    Row,
    Rows,
    Style,
    at_batch_size,
    by_variant,
    deviations,
    empty_row,
    finish,
    flagged_notes,
    unsupported_notes,
    variant_axis,
)


def draw(table: pd.DataFrame, style: Style) -> Figure:
    """Return bars of the median latency in ms, with its interval, the 90th percentile and the speed-up over fp32."""
    table = at_batch_size(table, style)
    devices = list(table["device"].unique())
    height = 1.5 + len(devices) * (0.8 + 0.4 * len(style.variants))
    figure, panels = plt.subplots(len(devices), 1, figsize=(WIDTH, height), squeeze=False)
    for device, ax in zip(devices, panels.flat, strict=True):
        _panel(ax, by_variant(table[table["device"] == device]), style)
        ax.set_title(device)
    return finish(
        figure,
        f"Latency at batch size {table['batch_size'].iloc[0]}",
        "Bar: median. Whisker: 95 % interval (from six rounds up). Circle: 90th percentile. x: speed-up over fp32.",
        [*flagged_notes(table), *unsupported_notes(table)],
    )


def _panel(ax: Axes, rows: Rows, style: Style) -> None:
    variant_axis(ax, style.variants)
    for y, variant in enumerate(style.variants):
        row = rows[variant]
        if row["status"] == "unsupported":
            empty_row(ax, y, f"does not run on {row['device']}")
            continue
        p50, p90 = row["latency_p50_ms"], row["latency_p90_ms"]
        interval = deviations(p50, row["latency_p50_ci_low_ms"], row["latency_p50_ci_high_ms"])
        ax.barh(y, p50, height=0.62, color=style.colours[variant])
        ax.errorbar(p50, y, xerr=interval, color="black", capsize=3, linewidth=1.2)
        ax.plot(p90, y, marker="o", color="black", markerfacecolor="white", markersize=5)
        end = _longest([row])
        label = f"{p50:#.3g} ms   {row['speedup']:.2f}x"
        ax.annotate(label, (end, y), xytext=(8, 0), textcoords="offset points", va="center", size="small")
    ax.set_xlim(0, 1.3 * _longest(rows.values()))
    ax.set_xlabel("ms per batch")


def _longest(rows: Iterable[Row]) -> float:
    """Return how far the marks of ``rows`` reach; missing ones do not count."""
    reach = ["latency_p50_ms", "latency_p50_ci_high_ms", "latency_p90_ms"]
    return float(np.nanmax([[row[column] for column in reach] for row in rows]))
