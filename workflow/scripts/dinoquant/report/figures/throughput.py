"""Figure: images per second over batch size."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dinoquant.report.figures.labels import name_lines
from dinoquant.report.figures.style import WIDTH, Style, crowding, finish, flagged_notes, unsupported_notes


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
        colour, marker = style.colours[variant], style.markers[variant]
        ax.plot(line["batch_size"], line["throughput_ips"], color=colour, marker=marker, markersize=8, linewidth=2)
        best = line.loc[line["throughput_ips"].idxmax()]
        ax.plot(
            best["batch_size"],
            best["throughput_ips"],
            color=colour,
            marker="o",
            markerfacecolor="none",
            markersize=16,
            clip_on=False,
        )
        ends[variant] = (float(line["batch_size"].iloc[-1]), float(line["throughput_ips"].iloc[-1]))
    ax.set_xscale("log", base=2)
    ax.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 1.08 * rows["throughput_ips"].max())
    ax.set_xlabel("batch size")
    ax.set_ylabel("images per second")
    name_lines(ax, ends, {variant: variant for variant in ends}, style)
