"""What a results folder holds and what it was made from, by digest; and whether it still does. Needs no PyTorch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from dinoquant.files import read_json, sha256
from dinoquant.machine import describe

Facts = Mapping[str, object]
NO_COMMIT = {
    "commit": None,
    "dirty": None,
    "reason": "the workflow is not in a git checkout with a commit, or git is missing",
}


class Receipt(TypedDict):
    """Which file an input was, as far as it is compared."""

    file: str
    sha256: str


class Record(TypedDict):
    """`results/provenance.json`; digests are SHA-256, by path."""

    inputs: Mapping[str, Receipt]
    config: Facts
    locks: Mapping[str, str]
    snakemake: str
    git: Facts
    recorded_on: Facts
    measured_on: Sequence[Facts]
    deterministic: Mapping[str, str]
    varying: Mapping[str, str]


def record(
    *,
    deterministic: Iterable[str],
    varying: Iterable[str],
    receipts: Mapping[str, str | Path],
    locks: Iterable[str | Path],
    config: Facts,
    snakemake: str,
) -> Record:
    """Return the record of a finished run, ready for JSON.

    Args:
        deterministic: the files that another clean run on the same kind of machine gives again, byte for byte.
        varying: the files that it does not: those with times in them, and the models of other runtimes. Where such a
            file says on which machine it was measured, the record says so too.
        receipts: of the inputs, by what they are.
        locks: the versions of the libraries.
        config: the resolved config, without what only figures and the recommendation depend on.
        snakemake: its version.
    """
    varying = sorted(varying)
    recorded_on = describe()
    measured = [read_json(path) for path in varying if path.endswith(".json")]
    machines = [content["machine"] for content in measured if "machine" in content]
    nodes = {machine["node"] for machine in machines}
    extracting = [machine for content in measured for machine in content.get("machines", [])]
    return {
        "inputs": {name: read_json(path) for name, path in receipts.items()},
        "config": dict(config),
        "locks": {Path(path).name: sha256(path) for path in locks},
        "snakemake": snakemake,
        "git": recorded_on["git"] or NO_COMMIT,
        "recorded_on": {key: value for key, value in recorded_on.items() if key != "git"},
        "measured_on": _distinct([*machines, *(other for other in extracting if other["node"] not in nodes)]),
        "deterministic": {path: sha256(path) for path in sorted(deterministic)},
        "varying": {path: sha256(path) for path in varying},
    }


def differences(recorded: Record) -> dict[str, str]:
    """Return what became of the files of a record that are not as they were: "changed" or "missing", by path.

    Inputs are compared where they are there: they need not have travelled with the results.
    """
    inputs = {receipt["file"]: receipt["sha256"] for receipt in recorded["inputs"].values()}
    results: dict[str, str] = {**recorded["deterministic"], **recorded["varying"]}
    missing = {path: "missing" for path in results if not Path(path).is_file()}
    here = {path: digest for path, digest in (inputs | results).items() if Path(path).is_file()}
    return missing | {path: "changed" for path, digest in here.items() if sha256(path) != digest}


def _distinct(values: Iterable[Facts]) -> list[Facts]:
    return [json.loads(text) for text in dict.fromkeys(json.dumps(value, sort_keys=True) for value in values)]
