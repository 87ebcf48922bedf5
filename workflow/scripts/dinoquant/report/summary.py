"""The one table of the workflow: a row per variant, device and batch size, with everything measured about it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import pandas as pd

from dinoquant.errors import UserError
from dinoquant.files import read_json, read_rows
from dinoquant.measure.verdict import widened
from dinoquant.measure.watch import SLOW
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
    patches: Paths = (),
    energy: Paths = (),
    cards: Paths = (),
    limits: str | Path | None = None,
) -> pd.DataFrame:
    """Return the table with the columns ``NAMES``, in the config's order of variants, devices and batch sizes.

    ``audits``, ``models`` and ``cards`` lie in folders named after their variants. ``status`` is ``unsupported``;
    ``saturates``, where int8 sums spoil the features; or the verdict on the timing: ``ok``, ``wide``, ``disturbed``
    (see `verdict`); ``reason`` says why where it is not ``ok``. ``node`` and ``cpu`` say where the row was timed,
    beside fp32 there, and the columns behind them what else was done there. ``noise_floor`` is that of fp32 against
    itself on the row's device, at its batch size; missing where that was another machine. What was not measured is
    missing, never 0: all measurements where a variant is unsupported, the accuracy of a variant that cannot run on
    ``accuracy.device``.

    Raises:
        UserError: a supported variant has no latency or footprint file.
    """
    timings: dict[Cell, Timing] = {}
    refusals: dict[Cell, Refusal] = {}
    for timing in map(read_json, latency):
        results = refusals if "unsupported" in timing else timings
        results[timing["variant"], timing["device"], timing["batch_size"]] = timing
    footprints = {(record["variant"], record["device"]): record for record in map(read_json, footprint)}
    energies = {(each["variant"], each["device"], each["batch_size"]): each for each in map(read_json, energy)}
    accuracies, probes, patch_tokens = (
        {record["variant"]: record for record in map(read_json, paths)} for paths in (accuracy, probe, patches)
    )
    states = machine_states(timings.values())
    shortest = _limits(limits)
    sizes, counts = _sizes(models), _module_counts(audits)
    described: dict[str, Record] = {path.parent.name: read_json(path) for path in map(Path, cards)}
    rows = []
    for variant, device, batch_size in product(config["variants"], config["devices"], config["batch_sizes"]):
        cell = (variant, device, batch_size)
        about = {"variant": variant, "runtime": config["runtimes"][variant], "device": device, "batch_size": batch_size}
        records: dict[Source, Record] = {
            Source.MODEL: {**described.get(variant, {}), **sizes.get(variant, {})},
            Source.AUDIT: counts.get(variant, {}),
        }
        reason = config["unsupported"].get(variant, {}).get(device)
        if cell in refusals:
            reason = refusals[cell]["unsupported"]
        if reason:
            records[Source.SUMMARY] = {**about, "status": "unsupported", "reason": reason}
        else:
            timing = _required(timings, cell, "latency")
            limit = shortest.get(cell)
            records |= {
                Source.SUMMARY: {**about, **verdict(timing, states, accuracies.get(variant, {}).get("saturation"))},
                Source.LATENCY: {**timing, **_processor(timing), **_others(timing)},
                Source.BASELINE_LATENCY: _noise_floor(timing, timings.get((BASELINE, device, batch_size))),
                Source.LIMITS: {"limit_ms": limit, "over_limit": limit and timing["latency_p50_ms"] / limit},
                Source.FOOTPRINT: _required(footprints, (variant, device), "footprint"),
                Source.ENERGY: energies.get(cell, {}),
                Source.ACCURACY: accuracies.get(variant, {}),
                Source.PROBE: probes.get(variant, {}),
                Source.PATCHES: patch_tokens.get(variant, {}),
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


def _others(timing: Timing) -> Record:
    """Return what else the machine did meanwhile: processors that others had, and the share of rounds set aside."""
    watch = timing.get("watch", {})
    rounds, set_aside = timing.get("rounds"), len(timing["set_aside"]["fp32"]) if "set_aside" in timing else None
    return {
        "foreign_processors": watch.get("foreign"),
        "stolen_processors": watch.get("steal"),
        "rounds_set_aside": rounds and set_aside is not None and set_aside / rounds,
    }


@dataclass
class MachineStates:
    """What the timings of one machine tell of it together.

    ``probe_ms`` is the shortest median probe; ``miss`` how far the interval of a control (fp32 beside itself) is from
    1, and ``slow_shift`` how far a speed-up was from itself while the machine was slow: both the largest that was seen,
    as fractions.
    """

    probe_ms: float | None = None
    miss: float = 0.0
    slow_shift: float | None = None


def _machine(timing: Timing) -> Machine:
    """Return with which other timings one can be compared."""
    return timing["device"], timing["machine"]["node"], timing["threads"]


def machine_states(timings: Iterable[Timing]) -> dict[Machine, MachineStates]:
    """Return what is known of each machine of the timings, which are as read from their files."""
    states: dict[Machine, MachineStates] = defaultdict(MachineStates)
    for timing in timings:
        state, ends = states[_machine(timing)], (timing["speedup_ci_low"], timing["speedup_ci_high"])
        if timing["variant"] == BASELINE and ends[0] and ends[1]:
            state.miss = max(state.miss, np.log(ends[0]), -np.log(ends[1]))
        if probe := timing.get("probe_ms"):
            state.probe_ms = min(probe, state.probe_ms or probe)
        if (shift := timing.get("slow_shift")) is not None:
            state.slow_shift = max(shift, state.slow_shift or 0.0)
    return states


def verdict(
    timing: Timing, states: Mapping[Machine, MachineStates], saturation: Saturation | None = None
) -> dict[str, str | None]:
    """Return ``status`` and ``reason``: the timing's own verdict, unless what the others show of the machine widens it.

    Features that the processor has spoilt outweigh what may be wrong with the timing. A control that is not 1 says by
    how much speed-ups of this run may be wrong; rounds that were set aside say what slow ones do to them, which
    concerns a timing that was slow from end to end: it looks well by itself.
    """
    if saturation and saturation["saturates"]:
        spoilt = f"int8 sums overflow on this processor: cosine {saturation['cosine']:.4f} to exact ones"
        return {"status": "saturates", "reason": spoilt}
    state, status, reason = states[_machine(timing)], timing["verdict"], timing["verdict_reason"]
    if status == "ok" and (differs := timing["second_run"]) is not None:
        probe, more = timing.get("probe_ms"), state.miss
        if probe and state.probe_ms and probe > SLOW * state.probe_ms:
            if state.slow_shift is None:
                slow = f"the same piece of work took {probe:.2f} ms, not {state.probe_ms:.2f} as beside other rows"
                return {"status": "disturbed", "reason": slow}
            more = max(more, state.slow_shift)
        status, reason = widened(differs, more)
    return {"status": status, "reason": reason or None}


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
