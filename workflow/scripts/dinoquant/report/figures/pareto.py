"""Figure: accuracy against speed, with the front of variants that no other beats in both; on a substitute, size."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from dinoquant.report.choice import front
from dinoquant.report.figures.labels import Point, name_points
from dinoquant.report.figures.style import (
    MUTED,
    Row,
    Rows,
    Style,
    at_batch_size,
    by_variant,
    crowding,
    deviations,
    finish,
    flagged_notes,
    unsupported_notes,
)

FRONT = "pareto-front"  # gid of the line
SPEED, ACCURACY, SIZE = "speedup", "cosine_mean", "size_mb"
WIDTH = 6.5  # inches: half a page beside the rows that matter, or all of a telephone
# The axis has the logarithm of the distance to 1, for 0.99 and 0.999 differ as much as 0.9 and 0.99 do.
EXACT = 0.99999  # what is nearer is drawn here
COSINES = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, EXACT]


@dataclass(frozen=True)
class Vertical:
    """What the speed is set against."""

    column: str
    title: str
    label: str
    better: str  # what is better than another in both
    sign: int  # 1: more is better

    def value(self, number: float) -> float:
        """Return where a number of the column is drawn."""
        return min(number, EXACT) if self.column == ACCURACY else number

    def interval(self, row: Row) -> list[list[float]] | None:
        """Return how far the interval reaches from the value; None if the column has none."""
        if self.column != ACCURACY:
            return None
        value, low, high = (self.value(row[f"{ACCURACY}{end}"]) for end in ("", "_ci_low", "_ci_high"))
        return deviations(value, low, high)


FIDELITY = Vertical(ACCURACY, "Accuracy against speed", "mean cosine to fp32", "closer to fp32", 1)
# Where weights or images are a substitute, whose accuracy says nothing.
SMALLNESS = Vertical(SIZE, "Size against speed", "size, MB (smaller is higher)", "smaller", -1)


def draw(table: pd.DataFrame, style: Style) -> Figure:
    """Return the mean cosine to fp32 over the speed-up, a panel per device; with a substitute the size over it."""
    vertical = SMALLNESS if style.substitute else FIDELITY
    table = at_batch_size(table, style)
    devices = list(table["device"].unique())
    rows = {device: by_variant(table[table["device"] == device], known=[SPEED, vertical.column]) for device in devices}
    size = (WIDTH, 1.5 + 4.3 * len(devices) * crowding(len(style.variants)))
    figure, panels = plt.subplots(len(devices), 1, figsize=size, squeeze=False)
    for device, ax in zip(devices, panels.flat, strict=True):
        _panel(ax, rows[device], style, vertical)
        ax.set_title(device)
    finish(
        figure,
        f"{vertical.title} at batch size {table['batch_size'].iloc[0]}",
        "Up and to the right is better. Whiskers: confidence intervals. "
        f"Line: the Pareto front; hollow: some other variant is both faster and {vertical.better}.",
        [*_unmeasured_notes(table, vertical), *flagged_notes(table), *unsupported_notes(table)],
    )
    figure.draw_without_rendering()  # the labels go where there is room, which the layout decides
    for device, ax in zip(devices, panels.flat, strict=True):
        points = _points(rows[device], vertical)
        best = _front(points, vertical)
        (front_line,) = (line for line in ax.lines if line.get_gid() == FRONT)
        # Those on the front come first, and so nearest.
        name_points(ax, {name: points[name] for name in sorted(points, key=lambda name: name not in best)}, front_line)
    return figure


def _points(rows: Rows, vertical: Vertical) -> dict[str, Point]:
    return {variant: (row[SPEED], vertical.value(row[vertical.column])) for variant, row in rows.items()}


def _nines(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 for 0.9, 2 for 0.99 and so on."""
    return -np.log10(np.maximum(1 - cosine, (1 - EXACT) / 10))


def _front(points: dict[str, Point], vertical: Vertical) -> list[str]:
    return front({name: (-speed, vertical.sign * value) for name, (speed, value) in points.items()})


def _panel(ax: Axes, rows: Rows, style: Style, vertical: Vertical) -> None:
    points = _points(rows, vertical)
    best = _front(points, vertical)
    steps = np.repeat([points[name] for name in best], 2, axis=0)
    ax.plot(steps[1:, 0], steps[:-1, 1], color=MUTED, linewidth=1.2, zorder=1, gid=FRONT)
    for variant, row in rows.items():
        (x, y), colour, on_front = points[variant], style.colours[variant], variant in best
        ax.errorbar(
            x,
            y,
            xerr=deviations(x, row["speedup_ci_low"], row["speedup_ci_high"]),
            yerr=vertical.interval(row),
            marker=style.markers[variant],
            markersize=9,
            color=colour,
            markerfacecolor=colour if on_front else "none",
            markeredgewidth=1.8,
            elinewidth=1.2,
            zorder=2 if on_front else 3,  # a hollow marker must not hide behind a full one
        )
    ax.set_xlim(0, 1.22 * max(x for x, _ in points.values()))
    if vertical is FIDELITY:
        ax.set_yscale("function", functions=(_nines, lambda nines: 1 - 10.0**-nines))
        ax.yaxis.set_major_locator(FixedLocator(COSINES))
        ax.yaxis.set_major_formatter(lambda cosine, _: f"{cosine:g}" if cosine < EXACT else f"≥ {EXACT}")
    ax.margins(y=0.18)
    if vertical is SMALLNESS:
        ax.invert_yaxis()
    ax.set_xlabel("times as fast as fp32, timed in alternation")
    ax.set_ylabel(vertical.label)


def _unmeasured_notes(table: pd.DataFrame, vertical: Vertical) -> list[str]:
    """Return a sentence that names the variants whose speed is known but not what it is set against."""
    rows = table[table[SPEED].notna() & table[vertical.column].isna()]
    return [f"{vertical.label.capitalize()} not measured: {', '.join(rows['variant'].unique())}"] if len(rows) else []
