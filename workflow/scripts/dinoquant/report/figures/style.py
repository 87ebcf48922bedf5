"""What all figures share: a style with a colour and a marker per variant, footnotes, and reproducible files."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dinoquant.files import atomic
from dinoquant.runtimes import BASELINE

WIDTH = 9.0  # inches: 12 pt text is then about 15 px high at the 880 px of a README
BASELINE_COLOUR = "#3a3a3a"
MUTED = "#6b6b6b"
GRID = "#e3e3e3"
MARKERS = "oDsv^P<X>phd*"
# Files must be equal where the figures are: no dates, no versions, ids that do not come from a random number.
HASH_SALT = "dinoquant"
METADATA: Mapping[str, dict[str, None]] = {
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".png": {"Software": None},
}

Row = Mapping[Any, Any]  # by column of the summary: numbers and text
Rows = Mapping[str, Row]  # by variant
Colour = str | tuple[float, float, float]


class FigureParams(TypedDict):
    """The part of the config that a figure shows."""

    palette: str
    font_scale: float
    dpi: int
    variants: Sequence[str]
    batch_size: int | None
    without_attention: Mapping[str, str]  # reason by variant
    without_patches: Mapping[str, str]  # likewise
    substitute: str | None  # what stands in for real images or weights


@dataclass(frozen=True)
class Style:
    """One colour and one marker per variant, in the config's order, and what else of the config the figures show."""

    variants: tuple[str, ...]
    colours: Mapping[str, Colour]
    markers: Mapping[str, str]
    dpi: int
    batch_size: int | None
    without_attention: Mapping[str, str]
    without_patches: Mapping[str, str]
    substitute: str | None

    def accuracy_title(self, title: str) -> str:
        """Return the title of a figure that shows an accuracy, with a warning where its inputs are a substitute."""
        return f"{title}\n({self.substitute}: accuracy says nothing about DINO)" if self.substitute else title


def use_style(config: FigureParams) -> Style:
    """Set fonts, colours and margins of all figures, and return the style of the config's variants.

    fp32 is always dark grey; the others get the palette's colours in turn, and markers that repeat later than these.
    """
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        font_scale=config["font_scale"],
        rc={
            "svg.hashsalt": HASH_SALT,
            "grid.color": GRID,
            "axes.edgecolor": "#b5b5b5",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": mpl.rcParamsDefault["font.size"] * 1.2 * config["font_scale"],
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.08,
            "figure.constrained_layout.w_pad": 0.08,
        },
    )
    variants = tuple(config["variants"])
    others = [variant for variant in variants if variant != BASELINE]
    palette = sns.color_palette(config["palette"], len(others))
    return Style(
        variants=variants,
        colours={BASELINE: BASELINE_COLOUR, **dict(zip(others, palette, strict=True))},
        markers={variant: MARKERS[i % len(MARKERS)] for i, variant in enumerate([BASELINE, *others])},
        dpi=config["dpi"],
        batch_size=config["batch_size"],
        without_attention=config["without_attention"],
        without_patches=config["without_patches"],
        substitute=config["substitute"],
    )


def at_batch_size(table: pd.DataFrame, style: Style) -> pd.DataFrame:
    """Return the rows at ``figures.batch_size``, or at the smallest that was measured."""
    batch_size = table["batch_size"].min() if style.batch_size is None else style.batch_size
    return table[table["batch_size"] == batch_size]


def by_variant(table: pd.DataFrame, known: Sequence[str] = ()) -> Rows:
    """Return every variant's first row, by column, among those in which the columns ``known`` are not missing."""
    rows = table.dropna(subset=list(known)).drop_duplicates("variant")
    return {row["variant"]: row for row in rows.to_dict("records")}


def unsupported_notes(table: pd.DataFrame) -> list[str]:
    """Return a sentence per device and reason that names the variants which do not run there, or run wrong."""
    rows = table[table["status"] == "unsupported"].drop_duplicates(["device", "variant"])
    groups = rows.groupby(["device", "reason"])["variant"].agg(", ".join).reset_index()
    saturated = table[table["status"] == "saturates"].drop_duplicates(["device", "variant"])
    return [
        *(f"Not on {row['device']}: {row['variant']} ({row['reason']})" for row in groups.to_dict("records")),
        *(
            f"int8 sums overflow on {device}: {', '.join(names)}"
            for device, names in saturated.groupby("device")["variant"]
        ),
    ]


def flagged_notes(table: pd.DataFrame) -> list[str]:
    """Return a sentence per kind of doubt and device that names the variants whose timing is wide or disturbed."""
    rows = table[table["status"].isin(["wide", "disturbed"])].drop_duplicates(["device", "status", "variant"])
    groups = rows.groupby(["status", "device"])["variant"].agg(", ".join).reset_index()
    return [f"Timing {row['status']} on {row['device']}: {row['variant']}" for row in groups.to_dict("records")]


def deviations(value: float, low: float, high: float) -> list[list[float]]:
    """Return an interval as matplotlib wants it: distances below and above ``value``; NaN where there is none."""
    return [[value - low], [high - value]]


def variant_axis(ax: Axes, variants: Sequence[str]) -> None:
    """Label the rows of a horizontal chart with the variants, the first on top; no grid, as values stand beside."""
    ax.set_yticks(range(len(variants)), variants)
    ax.set_ylim(len(variants) - 0.4, -0.6)
    ax.grid(visible=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def empty_row(ax: Axes, row: float, text: str) -> None:
    """Say in the place of a bar or marker why there is none."""
    position = (0.01, row)
    ax.annotate(
        text, position, xycoords=ax.get_yaxis_transform(), va="center", color=MUTED, style="italic", size="small"
    )


def finish(figure: Figure, title: str, subtitle: str, notes: Iterable[str] = ()) -> Figure:
    """Add the title, the line that explains the marks, and the notes at the foot."""
    width = figure.get_figwidth()
    figure.suptitle(_wrapped(title.splitlines(), round(8.2 * width / font_scale())), x=0.012, ha="left", weight="bold")
    notes = _wrapped([subtitle, *notes], round(12.4 * width / font_scale()))
    figure.supxlabel(notes, x=0.012, ha="left", size="small", color=MUTED)
    return figure


def font_scale() -> float:
    """Return how much larger than usual the text is: the config's ``figures.font_scale``."""
    return float(mpl.rcParams["font.size"]) / 12  # seaborn's "notebook" size


def crowding(variants: int) -> float:
    """Return how much taller than usual a panel has to be for the names of its lines or points; 1 up to 16 variants."""
    return max(1.0, font_scale() * variants / 16)


def _wrapped(texts: Sequence[str], characters: int) -> str:
    """Return ``texts`` below one another, in lines of that many characters."""
    return "\n".join(line for text in texts for line in textwrap.wrap(text, characters))


def save(figure: Figure, paths: Iterable[str | Path], dpi: int) -> None:
    """Write the figure to ``paths`` in the formats of their suffixes; the same figure gives the same bytes."""
    for path in map(Path, paths):
        with atomic(path) as partial:
            figure.savefig(partial, dpi=dpi, metadata=METADATA[path.suffix])
