"""The one table of the workflow: a row per variant, device and batch size, with everything measured about it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TypedDict, TypeVar

import pandas as pd

from dinoquant.errors import UserError
from dinoquant.files import read_json, read_rows
from dinoquant.measure.watch import slower
from dinoquant.report.columns import COLUMNS, NAMES, Source
from dinoquant.report.records import Refusal, Saturation, Timing
from dinoquant.runtimes import BASELINE

Paths = Iterable[str | Path]
Record = Mapping[str, object]  # what is known of a row from one source, by column
Cell = tuple[str, str, int]  # variant, device, batch size
Machine = tuple[str, object, int]  # device, node, threads: timings that agree in these can be compared
Key = TypeVar("Key", bound=tuple[object, ...])
Result = TypeVar("Result")


class SummaryConfig(TypedDict):
    """The part of the config that the summary depends on."""

    variants: Sequence[str]
    runtimes: Mapping[str, str]  # by variant
    devices: Sequence[str]
    batch_sizes: Sequence[int]
    unsupported: Mapping[str, Mapping[str, str]]  # the reason by variant and device


def summarise(
    latency: Paths,
    footprint: Paths,
    accuracy: Paths,
    audits: Paths,
    models: Paths,
    config: SummaryConfig,
    *,
    probe: Paths = (),
    energy: Paths = (),
    limits: str | Path | None = None,
) -> pd.DataFrame:
    """Return the table with the columns ``NAMES``, in the config's order of variants, devices and batch sizes.

    ``audits`` and ``models`` lie in folders named after their variants. ``status`` is ``unsupported``; ``saturates``,
    where int8 sums spoil the features; or the verdict on the timing: ``ok``, ``noisy``, ``unstable``; ``reason`` says
    why where it is not ``ok``; a timing on a machine that was slow all the time is ``noisy`` too, which shows only
    beside the others (see `dinoquant.measure.watch.slower`). ``node`` and ``cpu`` say where the row was timed, beside
    fp32 there. ``noise_floor`` is that of fp32 against itself on the row's device, at its batch size; missing where
    that was another machine. What was not measured is missing, never 0: all measurements where a variant is
    unsupported, the accuracy of a variant that cannot run on ``accuracy.device``.

    Raises:
        UserError: a supported variant has no latency or footprint file.
    """
    timings: dict[Cell, Timing] = {}
    refusals: dict[Cell, Refusal] = {}
    for timing in map(read_json, latency):
        results = refusals if "unsupported" in timing else timings
        results[timing["variant"], timing["device"], timing["batch_size"]] = timing
    footprints, energies = (
        {(record["variant"], record["device"]): record for record in map(read_json, paths)}
        for paths in (footprint, energy)
    )
    accuracies, probes = (
        {record["variant"]: record for record in map(read_json, paths)} for paths in (accuracy, probe)
    )
    fastest = fastest_probes(timings.values())
    shortest = _limits(limits)
    sizes, counts = _sizes(models), _module_counts(audits)
    rows = []
    for variant, device, batch_size in product(config["variants"], config["devices"], config["batch_sizes"]):
        cell = (variant, device, batch_size)
        about = {"variant": variant, "runtime": config["runtimes"][variant], "device": device, "batch_size": batch_size}
        records: dict[Source, Record] = {Source.MODEL: sizes.get(variant, {}), Source.AUDIT: counts.get(variant, {})}
        reason = config["unsupported"].get(variant, {}).get(device)
        if cell in refusals:
            reason = refusals[cell]["unsupported"]
        if reason:
            records[Source.SUMMARY] = {**about, "status": "unsupported", "reason": reason}
        else:
            timing = _required(timings, cell, "latency")
            limit = shortest.get(cell)
            records |= {
                Source.SUMMARY: {**about, **verdict(timing, fastest, accuracies.get(variant, {}).get("saturation"))},
                Source.LATENCY: {**timing, **_processor(timing)},
                Source.BASELINE_LATENCY: _noise_floor(timing, timings.get((BASELINE, device, batch_size))),
                Source.LIMITS: {"limit_ms": limit, "over_limit": limit and timing["latency_p50_ms"] / limit},
                Source.FOOTPRINT: _required(footprints, (variant, device), "footprint"),
                Source.ENERGY: energies.get((variant, device), {}),
                Source.ACCURACY: accuracies.get(variant, {}),
                Source.PROBE: probes.get(variant, {}),
            }
        rows.append({name: records.get(column.source, {}).get(name) for column in COLUMNS for name in column.names})
    return pd.DataFrame(rows, columns=NAMES)


def write_summary(table: pd.DataFrame, path: str | Path) -> None:
    """Write the table as CSV with six significant digits; missing values are empty."""
    # `path` is the partial file that `dinoquant.files.atomic` gives: the caller renames it.
    table.to_csv(path, index=False, float_format="%.6g")


def _required(results: Mapping[Key, Result], key: Key, stage: str) -> Result:
    if key not in results:
        raise UserError(
            f"no {stage} result for {' '.join(map(str, key))}, and it is not listed as unsupported. "
            "Run `snakemake` again: it makes what is missing."
        )
    return results[key]


def _processor(timing: Timing) -> Record:
    """Return on which machine and processor a timing was made."""
    return {name: timing["machine"].get(name) for name in ("node", "cpu")}


def _noise_floor(timing: Timing, baseline: Timing | None) -> Record:
    """Return fp32's distance from itself, if that was timed where ``timing`` was."""
    same = baseline is not None and _processor(baseline) == _processor(timing)
    return {"noise_floor": baseline.get("noise_floor")} if baseline is not None and same else {}


def _probe(timing: Timing) -> tuple[Machine, float | None]:
    """Return with which other timings one can be compared, and the median ms of its probe, if it had one."""
    return (timing["device"], timing["machine"]["node"], timing["threads"]), timing.get("probe_ms")


def fastest_probes(timings: Iterable[Timing]) -> dict[Machine, float]:
    """Return the shortest median probe in ms on each machine of the timings, which are as read from their files."""
    fastest: dict[Machine, float] = {}
    for machine, probe in map(_probe, timings):
        if probe is not None:
            fastest[machine] = min(probe, fastest.get(machine, probe))
    return fastest


def verdict(
    timing: Timing, fastest: Mapping[Machine, float], saturation: Saturation | None = None
) -> dict[str, str | None]:
    """Return ``status`` and ``reason``: the timing's own, and what shows beside the others of the same machine.

    Features that the processor has spoilt outweigh what may be wrong with the timing.
    """
    machine, probe = _probe(timing)
    status, reason = timing["verdict"], timing["verdict_reason"] or None
    if slow := probe and slower(probe, fastest[machine]):
        status, reason = "noisy", f"{slow}; {reason}" if reason else slow
    if saturation and saturation["saturates"]:
        spoilt = f"int8 sums overflow on this processor: cosine {saturation['cosine']:.4f} to exact ones"
        status, reason = "saturates", f"{spoilt}; {reason}" if reason else spoilt
    return {"status": status, "reason": reason}


def _limits(path: str | Path | None) -> dict[tuple[str, str, int], float]:
    """Return the shortest possible time in ms by variant, device and batch size, where it is known."""
    if path is None:
        return {}
    rows = (row for row in read_rows(path) if row["limit_ms"])
    return {(row["variant"], row["device"], int(row["batch_size"])): float(row["limit_ms"]) for row in rows}


def _sizes(models: Paths) -> dict[str, Record]:
    """Return the size of every variant's model, and how many times smaller than fp32's that is."""
    megabytes: dict[str, float] = defaultdict(float)
    for path in map(Path, models):  # some models are more than one file
        megabytes[path.parent.name] += path.stat().st_size / 1e6
    return {
        variant: {"size_mb": size, "compression": megabytes[BASELINE] / size} for variant, size in megabytes.items()
    }


def _module_counts(audits: Paths) -> dict[str, Record]:
    """Return how many modules every variant with an audit converted, and could have."""
    counts: dict[str, Record] = {}
    for path in map(Path, audits):
        audit = pd.read_csv(path, keep_default_na=False)
        converted = audit["quantizable"] & (audit["became"] != BASELINE)
        counts[path.parent.name] = {
            "quantized_modules": int(converted.sum()),
            "quantizable_modules": int(audit["quantizable"].sum()),
        }
    return counts
