"""Figure: accuracy against speed, with the front of variants that no other beats in both."""

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
    WIDTH,
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
SPEED, ACCURACY = "speedup", "cosine_mean"
# The axis has the logarithm of the distance to 1, for 0.99 and 0.999 differ as much as 0.9 and 0.99 do.
EXACT = 0.99999  # what is nearer is drawn here
COSINES = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, EXACT]


def draw(table: pd.DataFrame, style: Style) -> Figure:
    """Return the mean cosine to fp32 over the speed-up, a panel per device."""
    table = at_batch_size(table, style)
    devices = list(table["device"].unique())
    rows = {device: by_variant(table[table["device"] == device], known=[SPEED, ACCURACY]) for device in devices}
    size = (WIDTH, 1.5 + 4.3 * len(devices) * crowding(len(style.variants)))
    figure, panels = plt.subplots(len(devices), 1, figsize=size, squeeze=False)
    for device, ax in zip(devices, panels.flat, strict=True):
        _panel(ax, rows[device], style)
        ax.set_title(device)
    finish(
        figure,
        style.accuracy_title(f"Accuracy against speed at batch size {table['batch_size'].iloc[0]}"),
        "Up and to the right is better. Whiskers: confidence intervals. "
        "Line: the Pareto front; hollow: some other variant is both faster and closer to fp32.",
        [*_unmeasured_notes(table), *flagged_notes(table), *unsupported_notes(table)],
    )
    figure.draw_without_rendering()  # the labels go where there is room, which the layout decides
    for device, ax in zip(devices, panels.flat, strict=True):
        points = _points(rows[device])
        best = _front(points)
        (front_line,) = (line for line in ax.lines if line.get_gid() == FRONT)
        # Those on the front come first, and so nearest.
        name_points(ax, {name: points[name] for name in sorted(points, key=lambda name: name not in best)}, front_line)
    return figure


def _points(rows: Rows) -> dict[str, Point]:
    return {variant: (row[SPEED], min(row[ACCURACY], EXACT)) for variant, row in rows.items()}


def _nines(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 for 0.9, 2 for 0.99 and so on."""
    return -np.log10(np.maximum(1 - cosine, (1 - EXACT) / 10))


def _front(points: dict[str, Point]) -> list[str]:
    return front({name: (-speed, accuracy) for name, (speed, accuracy) in points.items()})


def _panel(ax: Axes, rows: Rows, style: Style) -> None:
    points = _points(rows)
    best = _front(points)
    steps = np.repeat([points[name] for name in best], 2, axis=0)
    ax.plot(steps[1:, 0], steps[:-1, 1], color=MUTED, linewidth=1.2, zorder=1, gid=FRONT)
    for variant, row in rows.items():
        (x, y), colour, on_front = points[variant], style.colours[variant], variant in best
        ax.errorbar(
            x,
            y,
            xerr=deviations(x, row["speedup_ci_low"], row["speedup_ci_high"]),
            yerr=deviations(y, *(min(row[f"{ACCURACY}_ci_{end}"], EXACT) for end in ("low", "high"))),
            marker=style.markers[variant],
            markersize=9,
            color=colour,
            markerfacecolor=colour if on_front else "none",
            markeredgewidth=1.8,
            elinewidth=1.2,
            zorder=2 if on_front else 3,  # a hollow marker must not hide behind a full one
        )
    ax.set_xlim(0, 1.22 * max(x for x, _ in points.values()))
    ax.set_yscale("function", functions=(_nines, lambda nines: 1 - 10.0**-nines))
    ax.yaxis.set_major_locator(FixedLocator(COSINES))
    ax.yaxis.set_major_formatter(lambda cosine, _: f"{cosine:g}" if cosine < EXACT else f"≥ {EXACT}")
    ax.margins(y=0.18)
    ax.set_xlabel("times as fast as fp32, timed in alternation")
    ax.set_ylabel("mean cosine to fp32")


def _unmeasured_notes(table: pd.DataFrame) -> list[str]:
    """Return a sentence that names the variants whose speed is known but whose accuracy is not."""
    rows = table[table[SPEED].notna() & table[ACCURACY].isna()]
    return [f"Accuracy not measured: {', '.join(rows['variant'].unique())}"] if len(rows) else []
