"""Names written into a figure, apart from one another.

Our own rather than adjustText's, which moves names by random steps: with forty variants it does not come to an end in a
minute, and leaves some names on the markers of others.
"""

import math
from collections.abc import Mapping
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from dinoquant.report.figures.style import MUTED, Style, crowding, font_scale

Point = tuple[float, float]
# Where a name may stand around its point: first near, right and left before above and below; then farther away.
DISTANCES = [13, 26, 42, 60, 80, 105, 135, 170, 210]  # points
ANGLES = [0, 180, 90, 270, 35, 145, 325, 215, 60, 120, 300, 240]  # degrees


def name_points(ax: Axes, points: Mapping[str, Point], line: Line2D) -> None:
    """Write the names beside their points, each at the first position where it covers no marker, whisker, name or line.

    Where there is room enough, no line from a name back to its point crosses a name or another marker either. The
    layout must be done before, as it decides where there is room.
    """
    inside = ax.get_window_extent()
    radius = 7 * ax.figure.dpi / 72
    centres = ax.transData.transform(list(points.values()))
    markers = [Bbox([centre - radius, centre + radius]) for centre in centres]
    front = line.get_path().transformed(line.get_transform())
    whiskers = [path.transformed(bars.get_transform()) for bars in ax.collections for path in bars.get_paths()]
    names: list[Bbox] = []
    leaders: list[Path] = []
    for (name, point), centre in zip(points.items(), centres, strict=True):
        for crossed, distance, angle in product([False, True], DISTANCES, ANGLES):
            label = _label(ax, name, point, distance, angle)
            box = _text_box(label)
            leader = Path([centre, np.clip(centre, box.min, box.max)])
            free = not any(box.overlaps(other) for other in [*markers, *names])
            free = free and not any(path.intersects_bbox(box, filled=False) for path in (front, *whiskers))
            if not crossed:
                others = [*names, *(marker for marker in markers if not marker.contains(*centre))]
                free = free and not any(leader.intersects_bbox(other, filled=False) for other in others)
                free = free and not any(other.intersects_bbox(box, filled=False) for other in leaders)
            if free and inside.contains(*box.min) and inside.contains(*box.max):
                break
            label.remove()
        else:  # no room anywhere: better covered than missing
            box, distance = _text_box(_label(ax, name, point, DISTANCES[0], ANGLES[0])), DISTANCES[0]
        names.append(box)
        leaders += [leader] * (distance > DISTANCES[0])


def _label(ax: Axes, name: str, point: Point, distance: float, angle: float) -> Annotation:
    """Write ``name`` at ``distance`` points from ``point``; a line leads back to the point if that is far."""
    direction = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    align, anchor = ("left", 0) if direction[0] > 0.1 else ("right", 1) if direction[0] < -0.1 else ("center", 0.5)
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 5, "relpos": (anchor, 0.5)}
    return ax.annotate(
        name,
        point,
        xytext=(distance * direction[0], distance * direction[1]),
        textcoords="offset points",
        ha=align,
        va="center",
        size="small",
        arrowprops=line if distance > DISTANCES[0] else None,
        in_layout=False,
    )


def _text_box(label: Annotation) -> Bbox:
    """Return the box of the text alone, in pixels; an annotation's own box has the line to its point in it."""
    label.get_window_extent()  # updates the position
    return Text.get_window_extent(label).padded(3)


def name_lines(ax: Axes, ends: Mapping[str, tuple[float, float]], names: Mapping[str, str], style: Style) -> None:
    """Write the variants' ``names`` to the right of the axes, in the order of their lines' ends and apart from another.

    The limits of the axes must not change afterwards.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = {variant: float(to_axes.transform(end)[1]) for variant, end in ends.items()}
    variants = sorted(heights, key=lambda variant: heights[variant])
    gap = 0.062 * font_scale() / crowding(len(style.variants))
    for variant, height in zip(variants, spread_apart([heights[v] for v in variants], gap, 1.0), strict=True):
        ax.annotate(
            names[variant],
            ends[variant],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            size="small",
            arrowprops={"arrowstyle": "-", "color": style.colours[variant], "linewidth": 1, "relpos": (0, 0.5)},
        )


def spread_apart(values: list[float], gap: float, top: float) -> list[float]:
    """Return the ascending ``values`` moved apart by ``gap`` at least, close to where they were and below ``top``.

    Least squares under the constraints: with ``gap`` taken off per rank, they are the nearest ascending sequence.
    """
    ranks = np.arange(len(values))
    shifted = isotonic_regression(np.asarray(values) - gap * ranks).x + gap * ranks
    return list(shifted - max(0.0, shifted[-1] - top))
