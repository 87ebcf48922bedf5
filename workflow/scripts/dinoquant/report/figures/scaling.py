"""Figure: images per second over the number of threads."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dinoquant.report.figures.labels import name_lines
from dinoquant.report.figures.style import WIDTH, Style, crowding, finish
from dinoquant.report.records import Timing


def draw(timings: Iterable[Timing], style: Style) -> Figure:
    """Return a line per variant, named at its right end with how much faster the most threads are than the fewest.

    ``timings`` are the contents of `results/scaling/cpu/{variant}/threads{t}.json`, all at one batch size.
    """
    table = pd.DataFrame(list(timings)).sort_values("threads")
    threads = sorted(table["threads"].unique())
    figure, ax = plt.subplots(figsize=(WIDTH, 1.0 + 4.2 * crowding(len(style.variants))))
    ends, names = {}, {}
    for variant in [variant for variant in style.variants if (table["variant"] == variant).any()]:
        line = table[table["variant"] == variant]
        ax.plot(
            line["threads"],
            line["throughput_ips"],
            color=style.colours[variant],
            marker=style.markers[variant],
            markersize=8,
            linewidth=2,
        )
        ends[variant] = (float(line["threads"].iloc[-1]), float(line["throughput_ips"].iloc[-1]))
        names[variant] = f"{variant} {ends[variant][1] / line['throughput_ips'].iloc[0]:.2f}x"
    ax.set_xscale("log", base=2)
    ax.set_xticks(threads, [str(count) for count in threads])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 1.08 * table["throughput_ips"].max())
    ax.set_xlabel("threads")
    ax.set_ylabel("images per second")
    name_lines(ax, ends, names, style)
    flagged = table[table["verdict"] != "ok"].sort_values(["verdict", "variant", "threads"])
    notes = [
        f"Timing {verdict}: {variant} with {', '.join(map(str, rows['threads']))} threads"
        for (verdict, variant), rows in flagged.groupby(["verdict", "variant"])
    ]
    return finish(
        figure,
        f"Thread scaling on cpu at batch size {table['batch_size'].iloc[0]}",
        f"Behind the names: how many times as fast with {threads[-1]} threads as with {threads[0]}.",
        notes,
    )
