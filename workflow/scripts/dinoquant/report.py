"""`results/report.html`: one page, complete in itself, that says what was found, how, and on what."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dinoquant.files import read_json, read_rows

CAPTIONS = {
    "latency": "How long a call takes. The ratio to fp32, timed in alternation, is firmer than the milliseconds.",
    "throughput": "How many images per second, and what a larger batch changes.",
    "size": "What the model takes on disk.",
    "pareto": "What speed costs in fidelity. A variant off the line is beaten by one on it in both.",
    "fidelity": "How far features and predictions moved from fp32's. A loss whose interval includes zero is not shown.",
    "roofline": "How much of what this machine can do each variant gets, and what its precisions would allow.",
    "audit": "What each variant did to the modules, whatever it was asked to do.",
    "sensitivity": "What each module alone does to the features as int8; int8-auto chooses its precisions by it.",
}
Row = Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A column of the page's table: where it comes from in the summary, its heading, and how to print it."""

    name: str
    heading: str
    form: str
    interval: tuple[str, str] | None = None


# Where a variant does not run, the reason takes the place of what is measured; the rest is known of every model.
MEASURED_COLUMNS = [
    Column("latency_p50_ms", "p50, ms", ".2f", ("latency_p50_ci_low_ms", "latency_p50_ci_high_ms")),
    Column("latency_p90_ms", "p90, ms", ".2f"),
    Column("latency_p99_ms", "p99, ms", ".2f"),
    Column("speedup", "times as fast", ".2f", ("speedup_ci_low", "speedup_ci_high")),
    Column("throughput_ips", "images/s", ".1f"),
    Column("cosine_mean", "cosine", ".4f", ("cosine_mean_ci_low", "cosine_mean_ci_high")),
    Column("cosine_p5", "cosine, 5th pct.", ".4f"),
    Column("knn_top1", "k-NN top-1, %", ".2f", ("knn_top1_ci_low", "knn_top1_ci_high")),
    Column("knn_top1_drop", "top-1 lost, points", ".2f", ("knn_top1_drop_ci_low", "knn_top1_drop_ci_high")),
    Column("knn_top5", "k-NN top-5, %", ".2f"),
    Column("knn_agreement", "same prediction, %", ".1f"),
    Column("peak_rss_mb", "peak memory, MB", ".0f"),
    Column("load_ms", "load, ms", ".0f"),
    Column("first_inference_ms", "first call, ms", ".0f"),
    Column("threads", "threads", "s"),
]
MODEL_COLUMNS = [
    Column("size_mb", "size, MB", ".1f"),
    Column("compression", "times smaller", ".2f"),
    Column("quantized_modules", "modules converted", "s"),
    Column("quantizable_modules", "of", "s"),
]


def render_report(
    *,
    summary: str | Path,
    recommendation: str | Path,
    audits: Iterable[str | Path],
    figures: Iterable[str | Path],
    archive: str | Path,
    dataset: str | Path,
    checkpoint: str | Path | None,
    info: str | Path,
    latency: Iterable[str | Path],
    variants: Sequence[str],
    config: Mapping[str, Any],
) -> str:
    """Return the page as HTML.

    ``variants`` gives their order, ``config`` is the resolved config; all else are files as the workflow's rules write
    them (seeded weights have no checkpoint): audits in folders named after their variants, figures as SVG named after
    what they show. The page needs no network; every text in it is escaped.
    """
    rows = read_rows(summary)
    timings = [read_json(path) for path in latency]
    data, model = read_json(dataset), read_json(info)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        substitutes=[part["substitute"] for part in (data, model) if part["substitute"]],
        recommendation=read_json(recommendation),
        figures=[_figure(Path(path)) for path in figures],
        rows=rows,
        model_columns=MODEL_COLUMNS,
        measured_columns=MEASURED_COLUMNS,
        cell=cell,
        audits=sorted(map(_audit, map(Path, audits)), key=lambda audit: variants.index(audit["variant"])),
        unsteady=[
            _row_name(timing) for timing in timings if not all(arm["steady"] for arm in timing["warmup"].values())
        ],
        machines=machines(timings),
        timed=_period(timings),
        receipts={
            title: read_json(path)
            for title, path in [("Data set archive", archive), ("Checkpoint", checkpoint)]
            if path
        },
        data=data,
        model=model,
        config=config,
        config_text=yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True),
    )


def cell(row: Row, column: Column) -> tuple[str, str]:
    """Return a value and its interval as text; empty where they are missing."""
    if column.form == "s" or not row[column.name]:
        return row[column.name], ""
    low, high = (row[name] for name in column.interval) if column.interval else ("", "")
    interval = f"{float(low):{column.form}} to {float(high):{column.form}}" if low and high else ""
    return f"{float(row[column.name]):{column.form}}", interval


def machines(timings: Iterable[Mapping[str, Any]]) -> list[tuple[dict[str, Any], list[str]]]:
    """Return every distinct machine as printable entries (None: not known), with the rows that were timed on it."""
    rows_of: dict[str, list[str]] = {}
    for timing in timings:
        rows_of.setdefault(json.dumps(timing["machine"]), []).append(_row_name(timing))
    return [(_printable(json.loads(machine)), names) for machine, names in rows_of.items()]


def _printable(machine: dict[str, Any]) -> dict[str, Any]:
    git = machine.pop("git")
    commit = git and git["commit"] + (", with uncommitted changes" if git["dirty"] else "")
    entries = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in machine.items()}
    return {**entries, "commit": commit}


def _row_name(timing: Mapping[str, Any]) -> str:
    return f"{timing['variant']} on {timing['device']}, batch size {timing['batch_size']}"


def _period(timings: Sequence[Mapping[str, Any]]) -> str:
    first, last = min(timing["started"] for timing in timings), max(timing["finished"] for timing in timings)
    return " to ".join(f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}" for moment in (first, last)) + " UTC"


def _figure(path: Path) -> dict[str, str]:
    """Return a figure for the page; as a data URI, so that the ids inside several SVGs cannot clash."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"name": path.stem, "caption": CAPTIONS[path.stem], "uri": f"data:image/svg+xml;base64,{content}"}


def _audit(path: Path) -> dict[str, Any]:
    rows = read_rows(path)
    before, after = (sum(float(row[column] or 0) for row in rows) / 1e6 for column in ("bytes_before", "bytes_after"))
    return {"variant": path.parent.name, "rows": rows, "before": before, "after": after}


def _plain(value: Any) -> Any:
    """Return ``value`` made of plain dicts and lists, which is all that YAML's safe writer accepts."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
