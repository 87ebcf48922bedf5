"""Figure: the speed of each variant under the roofs of the machine (see `dinoquant.measure.peaks`)."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dinoquant.report.figures.labels import name_lines
from dinoquant.report.figures.style import MUTED, WIDTH, Style, crowding, finish, flagged_notes, unsupported_notes
from dinoquant.report.records import Peaks

CELL = ["variant", "device", "batch_size"]
UNITS = [(1e12, "TOP/s"), (1e9, "GOP/s"), (0, "OP/s")]


def draw(table: pd.DataFrame, limits: pd.DataFrame, machines: Sequence[Peaks], style: Style) -> Figure:
    """Return operations per second over operations per byte, a line per variant and a panel per device.

    Args:
        table: the summary.
        limits: `results/limits.csv`.
        machines: what `dinoquant.measure.peaks.measure` measured, per device.
    """
    measured = table.loc[table["status"] != "unsupported", [*CELL, "latency_p50_ms"]].merge(limits, on=CELL)
    # A call's operations are two for every multiply-add.
    measured["achieved"] = 2e9 * measured["gmacs"] * measured["batch_size"] / (measured["latency_p50_ms"] / 1e3)
    devices = list(table["device"].unique())
    size = (WIDTH, 1.7 + 4.6 * len(devices) * crowding(len(style.variants)))
    figure, panels = plt.subplots(len(devices), 1, figsize=size, squeeze=False)
    machine_of = {machine["device"]: machine for machine in machines}
    for device, ax in zip(devices, panels.flat, strict=True):
        _panel(ax, measured[measured["device"] == device], machine_of[device], style)
        ax.set_title(device)
    batch_sizes = [str(size) for size in sorted(table["batch_size"].unique())]
    marks = "Each line: one variant, from left to right" if len(batch_sizes) > 1 else "Each mark: one variant"
    return finish(
        figure,
        "Speed under the machine's roofs",
        f"{marks} at batch size {', '.join(batch_sizes)}. Higher is better. Roofs: the fastest large product in each "
        "precision, and memory, measured on this machine with the same threads. Percent: of the speed that the "
        "variant's own mix of precisions allows, at the largest batch size.",
        [*flagged_notes(table), *unsupported_notes(table)],
    )


def _panel(ax: Axes, rows: pd.DataFrame, machine: Peaks, style: Style) -> None:
    ends, names = {}, {}
    for variant in rows["variant"].unique():
        line = rows[rows["variant"] == variant].sort_values("batch_size")
        ax.plot(
            line["operations_per_byte"],
            line["achieved"],
            color=style.colours[variant],
            marker=style.markers[variant],
            markersize=7,
            linewidth=1.4,
            zorder=3,
        )
        last = line.iloc[-1]
        ends[variant] = (float(last["operations_per_byte"]), float(last["achieved"]))
        share = last["limit_ms"] / last["latency_p50_ms"]
        names[variant] = variant if np.isnan(share) else f"{variant}, {share:.0%}"
    roofs = {precision: peak for precision, peak in machine["gemm_flops"].items() if peak}
    memory = machine["bandwidth_bytes_per_s"]
    left = min(rows["operations_per_byte"].min(), min(roofs.values()) / memory) / 2
    right = 1.5 * rows["operations_per_byte"].max()
    low, high = 0.6 * min(rows["achieved"].min(), *roofs.values()), 1.7 * max(*roofs.values(), rows["achieved"].max())
    ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    _roofs(ax, roofs, memory)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _speed(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("operations per byte that has to be moved")
    ax.set_ylabel("operations per second")
    name_lines(ax, ends, names, style)


def _roofs(ax: Axes, roofs: Mapping[str, float], memory: float) -> None:
    """Draw a horizontal line per precision, from where memory is fast enough for it, and the slope of memory."""
    left, right = ax.get_xlim()
    for precision, peak in roofs.items():
        ridge = max(peak / memory, left)
        ax.plot([ridge, right], [peak, peak], color=MUTED, linewidth=1.2, zorder=1)
        ax.annotate(
            f"{precision}: {_speed(peak)}",
            (ridge, peak),
            xytext=(14, 2),
            textcoords="offset points",
            va="bottom",
            size="small",
            color=MUTED,
        )
    top = max(roofs.values())
    ends = np.array([left, max(top / memory, left)])
    ax.plot(ends, ends * memory, color=MUTED, linewidth=1.2, zorder=1)
    ax.annotate(
        f"memory: {memory / 1e9:.3g} GB/s",
        (left, max(left * memory, ax.get_ylim()[0])),
        xytext=(14, 0),
        textcoords="offset points",
        va="bottom",
        size="small",
        color=MUTED,
    )


def _speed(value: float) -> str:
    """Return operations per second in the largest unit that leaves at least 0.1 of it."""
    scale, unit = next((scale, unit) for scale, unit in UNITS if value >= scale / 10)
    return f"{value / (scale or 1):.3g} {unit}"
