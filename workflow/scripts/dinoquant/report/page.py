"""`results/report.html`, one page, complete in itself, that says what was measured and how; and its short form."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dinoquant.files import read_json, read_rows
from dinoquant.report.choice import ABOUT_ACCURACY
from dinoquant.report.columns import COLUMNS, Row
from dinoquant.report.figures.catalogue import CATALOGUE
from dinoquant.report.recommend import Recommendation
from dinoquant.report.records import Accuracy, ClassAccuracy, Facts, Timing, read_timings
from dinoquant.report.table import machine_lines
from dinoquant.runtimes import BASELINE

WORST_CLASSES = 10
TEMPLATES = Path(__file__).parent / "templates"


class Picture(TypedDict):
    """A figure for the page."""

    name: str
    caption: str
    uri: str
    photographs: bool


class Audit(TypedDict):
    """What one variant did to its modules; sizes in MB."""

    variant: str
    rows: Sequence[Row]
    before: float
    after: float


class Classes(TypedDict):
    """The classes that lose most by one variant, and how many lose or gain by more than their intervals."""

    variant: str
    worst: Sequence[ClassAccuracy]
    all: int
    lost: int
    gained: int


def render_report(
    *,
    summary: str | Path,
    recommendation: str | Path,
    audits: Iterable[str | Path],
    accuracy: Iterable[str | Path],
    figures: Iterable[str | Path],
    archive: str | Path,
    dataset: str | Path,
    checkpoint: str | Path | None,
    info: str | Path,
    latency: Iterable[str | Path],
    variants: Sequence[str],
    config: Mapping[str, Mapping[str, object]],
) -> tuple[str, str]:
    """Return the page as HTML, and its short form as GitHub's Markdown.

    ``variants`` gives their order, ``config`` is the resolved config; all else are files as the workflow's rules write
    them (seeded weights have no checkpoint): audits in folders named after their variants, figures as SVG named after
    what they show. The page needs no network; every text in both is escaped. The Markdown refers to the figures as
    PNG in the folder `figures` beside it.
    """
    rows = read_rows(summary)
    timings = read_timings(latency)
    accuracies: list[Accuracy] = [read_json(path) for path in accuracy]
    data, model = read_json(dataset), read_json(info)
    known = {name for row in rows for name, value in row.items() if value}
    answers: Recommendation = read_json(recommendation)
    columns = sorted(
        (column for column in COLUMNS if column.heading and (column.rank or column.name in known)),
        key=lambda column: column.rank or len(COLUMNS),
    )
    unjudged = [] if answers["accuracy_judged"] else ABOUT_ACCURACY
    content = {
        "substitutes": [source["substitute"] for source in (data, model) if source["substitute"]],
        "recommendation": answers,
        "chosen": {device: answer["pick"] or answer["fastest"] for device, answer in answers["devices"].items()},
        "matter": _rows_that_matter(rows, answers),
        "figures": [_picture(Path(path)) for path in figures],
        "rows": rows,
        "columns": columns,
        "leading": [column for column in columns if column.rank and column not in unjudged],
        "all_columns": COLUMNS,
        "doubts": [row for row in rows if row["status"] in ("wide", "disturbed")],
        "machine_lines": machine_lines(rows),
        "nodes": Counter(f"{row['node']} ({row['cpu'] or 'processor not known'})" for row in rows if row["node"]),
        "floors": [row for row in rows if row["variant"] == BASELINE and row["noise_floor"]],
        "no_energy": sorted({(row["device"], row["energy_reason"]) for row in rows if row["energy_reason"]}),
        "audits": sorted(map(_audit, map(Path, audits)), key=lambda audit: variants.index(audit["variant"])),
        "classes": [_classes(record) for record in accuracies if record["variant"] != BASELINE and record["per_class"]],
        "machines": machines(timings),
        "timed": _period(timings),
        "receipts": {
            title: read_json(path)
            for title, path in [("Data set archive", archive), ("Checkpoint", checkpoint)]
            if path
        },
        "data": data,
        "model": model,
        "config": config,
        "config_text": yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True),
        "methods": methods(
            {
                "timing": config["latency"],
                "accuracy": config["accuracy"],
                "splits": data["splits"],
                "limits": any(row["limit_ms"] for row in rows),
            }
        ),
        **_inlined("css", "js"),
    }
    html = _environment(autoescape=True).get_template("report.html.j2").render(content)
    return html, _environment(finalize=_markdown).get_template("report.md.j2").render(content)


def _rows_that_matter(rows: Sequence[Row], answers: Recommendation) -> Mapping[str, Sequence[Row]]:
    """Return the few rows that lead the page, by device, in the order of the recommendation."""
    shown = {(row["device"], row["variant"]): row for row in rows if row["batch_size"] == str(answers["batch_size"])}
    return {
        device: [shown[device, variant] for variant in answer["that_matter"]]
        for device, answer in answers["devices"].items()
    }


def methods(content: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return how the numbers of this run were made, in plain words: headings and paragraphs."""
    text = _environment().get_template("report.methods.j2").render(content)
    sections = [section.partition("\n") for section in re.split(r"^# ", text, flags=re.MULTILINE)[1:]]
    return [(heading, " ".join(paragraph.split())) for heading, _, paragraph in sections]


def _environment(**options: Any) -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


def _inlined(*suffixes: str) -> dict[str, str]:
    """Return the page's style and script, and the digests by which its content security policy lets just them in."""
    texts = {suffix: (TEMPLATES / f"report.{suffix}").read_text(encoding="utf-8") for suffix in suffixes}
    digests = {
        f"{suffix}_digest": "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for suffix, text in texts.items()
    }
    return texts | digests


def _markdown(value: object) -> str:
    """Return text in which nothing has a meaning in GitHub's Markdown, and that stays within a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#~$&@])", r"\\\1", re.sub(r"\s+", " ", str(value)))


def machines(timings: Iterable[Timing]) -> list[tuple[Facts, list[str]]]:
    """Return every distinct machine as printable entries (None: not known), with the rows that were timed on it."""
    rows_of: dict[str, list[str]] = {}
    for timing in timings:
        rows_of.setdefault(json.dumps(timing["machine"]), []).append(_row_name(timing))
    return [(_printable(json.loads(machine)), names) for machine, names in rows_of.items()]


def _printable(machine: dict[str, object]) -> Facts:
    git = machine.pop("git")
    commit = git["commit"] + ", with uncommitted changes" * git["dirty"] if isinstance(git, dict) else None
    entries = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in machine.items()}
    return {**entries, "commit": commit}


def _row_name(timing: Timing) -> str:
    return f"{timing['variant']} on {timing['device']}, batch size {timing['batch_size']}"


def _period(timings: Sequence[Timing]) -> str:
    first, last = min(timing["started"] for timing in timings), max(timing["finished"] for timing in timings)
    return " to ".join(f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}" for moment in (first, last)) + " UTC"


def _picture(path: Path) -> Picture:
    """Return a figure for the page; as a data URI, so that the ids inside several SVGs cannot clash."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return {
        "name": path.stem,
        "caption": CATALOGUE[path.stem].caption,
        "uri": f"data:image/svg+xml;base64,{content}",
        "photographs": CATALOGUE[path.stem].photographs,
    }


def _audit(path: Path) -> Audit:
    rows = read_rows(path)
    before, after = (sum(float(row[column] or 0) for row in rows) / 1e6 for column in ("bytes_before", "bytes_after"))
    return {"variant": path.parent.name, "rows": rows, "before": before, "after": after}


def _classes(accuracy: Accuracy) -> Classes:
    """Return the classes that lose most, and how many lose or gain by more than their intervals, of one variant."""
    rows = accuracy["per_class"]
    return {
        "variant": accuracy["variant"],
        "worst": rows[:WORST_CLASSES],
        "all": len(rows),
        "lost": sum(row["drop_ci_low"] > 0 for row in rows),
        "gained": sum(row["drop_ci_high"] < 0 for row in rows),
    }


def _plain(value: object) -> object:
    """Return ``value`` made of plain dicts and lists, which is all that YAML's safe writer accepts."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
