"""`results/report.html`, one page, complete in itself, that says what was found and how; and its short form."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dinoquant.files import read_json, read_rows
from dinoquant.report.recommend import BASELINE

CAPTIONS = {
    "distribution": "How long the single calls took: a median hides what happens to one call in a hundred.",
    "latency": "How long a call takes. The ratio to fp32, timed in alternation, is firmer than the milliseconds.",
    "throughput": "How many images per second, and what a larger batch changes.",
    "size": "What the model takes on disk.",
    "pareto": "What speed costs in fidelity. A variant off the line is beaten by one on it in both.",
    "fidelity": "How far features and predictions moved from fp32's. A loss with zero in its interval may be chance.",
    "scaling": "What more threads bring, each variant by itself.",
    "roofline": "How much of what this machine can do each variant gets, and what its precisions would allow.",
    "audit": "What each variant did to the modules, whatever it was asked to do.",
    "attention": "What the [CLS] token attends to in the last block: the maps by which DINO is known.",
    "sensitivity": "What each module alone does to the features as int8; int8-auto chooses its precisions by it.",
}
PHOTOGRAPHS = {"attention"}  # figures whose colours a dark page must leave alone
WORST_CLASSES = 10
SOURCES = Path(__file__).parent / "templates"
Row = Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A column of the page's table: where it comes from in the summary, its heading, and how to print it."""

    name: str
    heading: str
    form: str
    interval: tuple[str, str] | None = None
    always: bool = False  # or only where all columns are asked for


def _with_interval(name: str, heading: str, form: str, unit: str = "", always: bool = False) -> Column:
    stem = name.removesuffix(unit)
    return Column(name, heading, form, (f"{stem}_ci_low{unit}", f"{stem}_ci_high{unit}"), always)


COLUMNS = [
    _with_interval("speedup", "times as fast as fp32", ".2f", always=True),
    _with_interval("latency_p50_ms", "p50, ms", ".2f", "_ms", always=True),
    Column("size_mb", "size, MB", ".1f", always=True),
    Column("compression", "times smaller", ".2f"),
    _with_interval("cosine_mean", "cosine to fp32", ".4f", always=True),
    _with_interval("knn_top1_drop", "k-NN top-1 lost, points", ".2f", always=True),
    Column("runtime", "runtime", "s"),
    Column("threads", "threads", "s"),
    Column("latency_p90_ms", "p90, ms", ".2f"),
    Column("latency_p99_ms", "p99, ms", ".2f"),
    Column("throughput_ips", "images/s", ".1f"),
    Column("preprocess_p50_ms", "preprocessing, ms", ".2f"),
    Column("end_to_end_p50_ms", "with preprocessing, ms", ".2f"),
    Column("noise_floor", "noise floor", ".1%"),
    Column("limit_ms", "machine's limit, ms", ".2f"),
    Column("over_limit", "times the limit", ".2f"),
    Column("cosine_p5", "cosine, 5th percentile", ".4f"),
    _with_interval("knn_top1", "k-NN top-1, %", ".2f"),
    Column("knn_top5", "k-NN top-5, %", ".2f"),
    Column("knn_agreement", "same prediction, %", ".1f"),
    Column("mcnemar_p", "McNemar p", ".2g"),
    Column("probe_top1", "probe top-1, %", ".2f"),
    _with_interval("probe_top1_drop", "probe top-1 lost, points", ".2f"),
    Column("peak_rss_mb", "peak memory, MB", ".0f"),
    Column("gpu_memory_mb", "GPU memory, MB", ".0f"),
    Column("load_ms", "load, ms", ".0f"),
    Column("first_inference_ms", "first call, ms", ".0f"),
    Column("energy_mj_per_image", "mJ per image", ".1f"),
    Column("quantized_modules", "modules converted", "s"),
    Column("quantizable_modules", "of", "s"),
]


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
    config: Mapping[str, Any],
) -> tuple[str, str]:
    """Return the page as HTML, and its short form as GitHub's Markdown.

    ``variants`` gives their order, ``config`` is the resolved config; all else are files as the workflow's rules write
    them (seeded weights have no checkpoint): audits in folders named after their variants, figures as SVG named after
    what they show. The page needs no network; every text in both is escaped. The Markdown refers to the figures as
    PNG in the folder `figures` beside it.
    """
    rows = read_rows(summary)
    timings = [read_json(path) for path in latency]
    data, model = read_json(dataset), read_json(info)
    content = {
        "substitutes": [part["substitute"] for part in (data, model) if part["substitute"]],
        "recommendation": read_json(recommendation),
        "figures": [_figure(Path(path)) for path in figures],
        "rows": rows,
        "columns": [column for column in COLUMNS if column.always or any(row[column.name] for row in rows)],
        "cell": cell,
        "doubts": [row for row in rows if row["status"] in ("noisy", "unstable")],
        "nodes": Counter(f"{row['node']} ({row['cpu'] or 'processor not known'})" for row in rows if row["node"]),
        "floors": [row for row in rows if row["variant"] == BASELINE and row["noise_floor"]],
        "no_energy": sorted({(row["device"], row["energy_reason"]) for row in rows if row["energy_reason"]}),
        "audits": sorted(map(_audit, map(Path, audits)), key=lambda audit: variants.index(audit["variant"])),
        "classes": [_classes(found) for found in map(read_json, accuracy) if found["variant"] != BASELINE],
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
        "methods": methods(rows, data, config),
        **_inlined("css", "js"),
    }
    return _fill("report.html.j2", content, autoescape=True), _fill("report.md.j2", content, finalize=_markdown)


def _fill(template: str, content: Mapping[str, Any], **options: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(SOURCES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options
    )
    return environment.get_template(template).render(content)


def _inlined(*suffixes: str) -> dict[str, str]:
    """Return the page's style and script, and the digests by which its content security policy lets just them in."""
    texts = {suffix: (SOURCES / f"report.{suffix}").read_text(encoding="utf-8") for suffix in suffixes}
    digests = {
        f"{suffix}_digest": "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for suffix, text in texts.items()
    }
    return texts | digests


def _markdown(value: Any) -> str:
    """Return text in which nothing has a meaning in GitHub's Markdown, and that stays within a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#~$&@])", r"\\\1", re.sub(r"\s+", " ", str(value)))


def _processes(count: int) -> str:
    """Return what the intervals of timings by so many processes know, in words."""
    if count == 1:
        return (
            "All rounds are made by one process: the 95 % interval comes from resampling them, and does not know that "
            "another process of the same model may be some percent faster or slower."
        )
    return (
        f"The rounds are shared by {count} fresh processes, which differ by where their memory lies; the 95 % interval "
        "comes from resampling processes, and whole rounds within them."
    )


def methods(rows: Sequence[Row], data: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the numbers of this run were made, in plain words: titles and paragraphs."""
    timing, accuracy = config["latency"], config["accuracy"]
    confidence = f"{100 * accuracy['confidence']:g} %"
    told = [
        (
            "Speed",
            f"A call is timed by itself, one at a time, on images that are ready. A variant and fp32 take turns on the "
            f"same input, in {timing['rounds']} rounds of two blocks of about {timing['block_seconds']:g} s in random "
            f"order, after a warm-up of at most {timing['warmup_seconds']:g} s. What disturbs the machine disturbs "
            "both and cancels in the ratio: cite the speed-up rather than the milliseconds. It is the interquartile "
            f"mean over rounds. {_processes(timing['processes'])} Nothing else of the run works meanwhile.",
        ),
        (
            "Noise",
            "fp32 against itself is timed in the same way. How far from 1 its speed-up reaches, interval included, is "
            "the noise floor: smaller differences mean nothing. Rounds before or after which a fixed piece of work "
            "took longer than it does on this machine at its best are set aside. A row is noisy if these were most of "
            "them, or if other work, stolen time or a falling clock was seen while it was timed; unstable if its calls "
            "became faster or slower throughout. Such rows keep their numbers and say what was seen.",
        ),
        (
            "Fixed and recorded",
            "The number of threads and the processors they may use; one thread between operators; denormals computed "
            "in full; freed memory kept by the allocator; model files read once before they are loaded.",
        ),
        (
            "Size and memory",
            "A process of its own imports the runtime, loads the model and runs it once. Peak memory is what that adds "
            "to the process; size is that of the files.",
        ),
    ]
    if any(row["limit_ms"] for row in rows):
        told.append(
            (
                "The machine's limit",
                "The largest products in each precision, and the fastest reading of memory, are measured on this "
                "machine. From them and the model's operations and bytes follows the shortest time that a variant "
                "could take; the roofline shows how near it comes.",
            )
        )
    told.append(
        (
            "Accuracy",
            f"Measured once per variant, on {accuracy['device']} where that can run it, and repeated in its rows for "
            f"every device. Features are L2-normalised. k-NN is DINO's weighted vote (k = {accuracy['k']}, temperature "
            f"{accuracy['temperature']}) of {data['splits']['query']:,} query images against a bank of "
            f"{data['splits']['bank']:,}; bank and queries are the variant's own. The linear probe is trained on the "
            f"same bank. Intervals are {confidence}: Wilson's for percentages; Tango's for a loss, from the queries of "
            "which one model was right and the other wrong; for the cosine a bootstrap over queries "
            f"({accuracy['resamples']} resamples). McNemar's test asks whether lost and gained predictions are uneven "
            "beyond chance. A loss that these images do not show can still be as large as its interval.",
        )
    )
    told.append(
        (
            "The recommendation",
            "The fastest variant whose intervals lie within the budget. Of variants that cannot be told apart in speed "
            "(intervals that overlap, or a difference below the noise floor) the one whose timing is not in doubt, "
            "then the smallest, then one that needs no other runtime, then the closest to fp32.",
        )
    )
    return told


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


def _figure(path: Path) -> dict[str, Any]:
    """Return a figure for the page; as a data URI, so that the ids inside several SVGs cannot clash."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return {
        "name": path.stem,
        "caption": CAPTIONS[path.stem],
        "uri": f"data:image/svg+xml;base64,{content}",
        "photographs": path.stem in PHOTOGRAPHS,
    }


def _audit(path: Path) -> dict[str, Any]:
    rows = read_rows(path)
    before, after = (sum(float(row[column] or 0) for row in rows) / 1e6 for column in ("bytes_before", "bytes_after"))
    return {"variant": path.parent.name, "rows": rows, "before": before, "after": after}


def _classes(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes that lose most, and how many lose or gain by more than their intervals, of one variant."""
    rows = accuracy["per_class"]
    return {
        "variant": accuracy["variant"],
        "worst": rows[:WORST_CLASSES],
        "all": len(rows),
        "lost": sum(row["drop_ci_low"] > 0 for row in rows),
        "gained": sum(row["drop_ci_high"] < 0 for row in rows),
    }


def _plain(value: Any) -> Any:
    """Return ``value`` made of plain dicts and lists, which is all that YAML's safe writer accepts."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
