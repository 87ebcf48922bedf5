"""The one table of the workflow: a row per variant, device and batch size, with everything measured about it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from dinoquant.errors import UserError
from dinoquant.files import read_json, read_rows
from dinoquant.measure.watch import slower

LATENCY = [
    "threads",
    "latency_p50_ms",
    "latency_p50_ci_low_ms",
    "latency_p50_ci_high_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "throughput_ips",
    "speedup",
    "speedup_ci_low",
    "speedup_ci_high",
    "preprocess_p50_ms",
    "end_to_end_p50_ms",
]
LIMIT = ["limit_ms", "over_limit"]
FOOTPRINT = ["peak_rss_mb", "gpu_memory_mb", "load_ms", "first_inference_ms"]
ENERGY = ["energy_mj_per_image", "energy_reason"]
ACCURACY = [
    "knn_top1",
    "knn_top1_ci_low",
    "knn_top1_ci_high",
    "knn_top5",
    "knn_top1_drop",
    "knn_top1_drop_ci_low",
    "knn_top1_drop_ci_high",
    "cosine_mean",
    "cosine_mean_ci_low",
    "cosine_mean_ci_high",
    "cosine_p5",
    "knn_agreement",
    "mcnemar_p",
    "probe_top1",
    "probe_top1_drop",
    "probe_top1_drop_ci_low",
    "probe_top1_drop_ci_high",
]
MACHINE = ["node", "cpu"]
COLUMNS = [
    *[
        "variant",
        "runtime",
        "device",
        "batch_size",
        "threads",
        *MACHINE,
        "status",
        "reason",
        *LATENCY[1:],
        "noise_floor",
        *LIMIT,
    ],
    *["size_mb", "compression", *FOOTPRINT, *ENERGY, *ACCURACY, "quantized_modules", "quantizable_modules"],
]
BASELINE = "fp32"


def summarise(
    latency: Iterable[str | Path],
    footprint: Iterable[str | Path],
    accuracy: Iterable[str | Path],
    audits: Iterable[str | Path],
    models: Iterable[str | Path],
    config: Mapping[str, Any],
    *,
    probe: Iterable[str | Path] = (),
    energy: Iterable[str | Path] = (),
    limits: str | Path | None = None,
) -> pd.DataFrame:
    """Return the table with ``COLUMNS``, in the config's order of variants, devices and batch sizes.

    ``audits`` and ``models`` lie in folders named after their variants. ``config`` has ``variants``, ``runtimes``
    (variant -> runtime), ``devices``, ``batch_sizes`` and ``unsupported`` (variant -> device -> reason). ``status`` is
    ``unsupported``, or the verdict on the timing: ``ok``, ``noisy``, ``unstable``; ``reason`` says why where it is not
    ``ok``; a timing on a machine that was slow all the time is ``noisy`` too, which shows only beside the others (see
    `dinoquant.measure.watch.slower`). ``node`` and ``cpu`` say where the row was timed, beside fp32 there.
    ``noise_floor`` is that of fp32 against itself on the row's device, at its batch size; missing where that was
    another machine. What was not measured is missing, never 0: all measurements where a variant is
    unsupported, the accuracy of a variant that cannot run on ``accuracy.device``.

    Raises:
        UserError: a supported variant has no latency or footprint file.
    """
    latencies = {(row["variant"], row["device"], row["batch_size"]): row for row in map(read_json, latency)}
    footprints = {(row["variant"], row["device"]): row for row in map(read_json, footprint)}
    accuracies = {row["variant"]: row for row in map(read_json, accuracy)}
    probes = {row["variant"]: row for row in map(read_json, probe)}
    energies = {(row["variant"], row["device"]): row for row in map(read_json, energy)}
    fastest = fastest_probes(latencies.values())
    limit_of = _limits(limits)
    models_of = _model_columns(audits, models)
    rows = []
    for variant, device, batch_size in product(config["variants"], config["devices"], config["batch_sizes"]):
        cell = (variant, device, batch_size)
        row = {"variant": variant, "runtime": config["runtimes"][variant], "device": device, "batch_size": batch_size}
        row |= models_of.get(variant, {})
        reason = config["unsupported"].get(variant, {}).get(device)
        if reason:
            row |= {"status": "unsupported", "reason": reason}
        else:
            timing = _found(latencies, cell, "latency")
            row |= verdict(timing, fastest)
            row |= _pick(timing, LATENCY)
            row |= _pick(timing["machine"], MACHINE)
            control = latencies.get((BASELINE, device, batch_size), {"machine": {}})
            same = _pick(control["machine"], MACHINE) == _pick(timing["machine"], MACHINE)
            row["noise_floor"] = control.get("noise_floor") if same else None
            limit = limit_of.get(cell)
            row |= {"limit_ms": limit, "over_limit": limit and timing["latency_p50_ms"] / limit}
            row |= _pick(_found(footprints, (variant, device), "footprint"), FOOTPRINT)
            row |= _pick(energies.get((variant, device), {}), ENERGY)
            row |= _pick(accuracies.get(variant, {}) | probes.get(variant, {}), ACCURACY)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def write_summary(table: pd.DataFrame, path: str | Path) -> None:
    """Write the table as CSV with six significant digits; missing values are empty."""
    # `path` is the partial file that `dinoquant.files.atomic` gives: the caller renames it.
    table.to_csv(path, index=False, float_format="%.6g")


def _pick(row: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    return {key: row.get(key) for key in keys}


def _found(rows: Mapping[Any, dict[str, Any]], key: tuple[Any, ...], what: str) -> dict[str, Any]:
    if key not in rows:
        raise UserError(
            f"no {what} result for {' '.join(map(str, key))}, and it is not listed as unsupported. "
            "Run `snakemake` again: it makes what is missing."
        )
    return rows[key]


def _probe(timing: Mapping[str, Any]) -> tuple[tuple[Any, ...], float | None]:
    """Return with which other timings one can be compared, and the median ms of its probe, if it had one."""
    return (timing["device"], timing["machine"]["node"], timing["threads"]), timing.get("probe_ms")


def fastest_probes(timings: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Return the shortest median probe in ms on each machine of the timings, which are as read from their files."""
    fastest: dict[tuple[Any, ...], float] = {}
    for place, probe in map(_probe, timings):
        if probe is not None:
            fastest[place] = min(probe, fastest.get(place, probe))
    return fastest


def verdict(timing: Mapping[str, Any], fastest: Mapping[tuple[Any, ...], float]) -> dict[str, str | None]:
    """Return ``status`` and ``reason``: the timing's own, and what shows beside the others of the same machine."""
    place, probe = _probe(timing)
    status, reason = timing.get("verdict", "ok"), timing.get("verdict_reason") or None
    if slow := probe and slower(probe, fastest[place]):
        status, reason = "noisy", f"{slow}; {reason}" if reason else slow
    return {"status": status, "reason": reason}


def _limits(path: str | Path | None) -> dict[tuple[str, str, int], float]:
    """Return the shortest possible time in ms by variant, device and batch size, where it is known."""
    if path is None:
        return {}
    rows = (row for row in read_rows(path) if row["limit_ms"])
    return {(row["variant"], row["device"], int(row["batch_size"])): float(row["limit_ms"]) for row in rows}


def _model_columns(audits: Iterable[str | Path], models: Iterable[str | Path]) -> dict[str, dict[str, float]]:
    """Return, per variant, what is known of its model without running it; some have no audit."""
    sizes: dict[str, float] = defaultdict(float)
    for path in map(Path, models):  # some models are more than one file
        sizes[path.parent.name] += path.stat().st_size / 1e6
    columns: dict[str, dict[str, float]] = {
        variant: {"size_mb": size, "compression": sizes[BASELINE] / size} for variant, size in sizes.items()
    }
    for path in map(Path, audits):
        audit = pd.read_csv(path, keep_default_na=False)
        quantizable = audit["quantizable"]
        columns[path.parent.name] |= {
            "quantized_modules": int((quantizable & (audit["became"] != "fp32")).sum()),
            "quantizable_modules": int(quantizable.sum()),
        }
    return columns
