"""What to deploy on each device, and why, in words: the content of `results/recommendation.json`.

`dinoquant.report.choice` chooses; the sentences are here. Light libraries only: the Snakefile imports it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from dinoquant.report.choice import Budget, Choice, Miss, choose, distinguishable, front, known, merits
from dinoquant.report.columns import COLUMN, Row, number
from dinoquant.runtimes import BASELINE, TORCHSCRIPT

LINKS = "results/recommended"
MEASURE = {  # key of the budget -> what it limits, in a sentence
    "cosine": "mean cosine to fp32",
    "knn_top1_drop": "loss of k-NN top-1",
    "latency_ms": "median latency",
    "size_mb": "size",
    "peak_rss_mb": "peak memory",
}


class RecommendConfig(TypedDict):
    """The part of the config that the recommendation depends on."""

    budget: Budget
    devices: Sequence[str]
    batch_size: int  # of the rows that count
    artifacts: Mapping[str, Sequence[str]]  # the files by variant, that which is loaded first
    substitutes: Sequence[str]  # what stands in for real images or weights


class RunnerUp(TypedDict):
    """The second best on a device."""

    variant: str
    distinguishable: bool


class DeviceRecommendation(TypedDict):
    """What to deploy on one device; lists of sentences are for people."""

    pick: str | None
    artifacts: Sequence[str]
    link: str | None
    answer: str
    reasons: Sequence[str]
    warnings: Sequence[str]
    runner_up: RunnerUp | None
    closest: str | None
    rejected: Mapping[str, str]  # the reason by variant
    fronts: Mapping[str, Sequence[str]]


class Recommendation(TypedDict):
    """`results/recommendation.json`."""

    batch_size: int
    budget: Budget
    substitutes: Sequence[str]
    devices: Mapping[str, DeviceRecommendation]


def recommend(rows: Sequence[Row], config: RecommendConfig) -> Recommendation:
    """Return what to deploy, from the rows of the summary."""
    shown = [row for row in rows if row["batch_size"] == str(config["batch_size"])]
    return {
        "batch_size": config["batch_size"],
        "budget": config["budget"],
        "substitutes": config["substitutes"],
        "devices": {
            device: _on_device([row for row in shown if row["device"] == device], device, config)
            for device in config["devices"]
        },
    }


def _on_device(rows: Sequence[Row], device: str, config: RecommendConfig) -> DeviceRecommendation:
    choice = choose(rows, config["budget"])
    pick, runner_up = choice.pick, choice.runner_up
    rejected = {row["variant"]: reason for row in rows if (reason := _against(row, choice))}
    artifacts = config["artifacts"][pick["variant"]] if pick else []
    link = f"{LINKS}/{device}{Path(artifacts[0]).suffix}" if artifacts else None
    if pick:
        answer = f"deploy {_deploy(pick)}; {link}"
    else:
        closest = choice.closest
        nearest = f" {closest} comes closest: {rejected[closest]}." if closest else ""
        answer = f"nothing meets the budget.{nearest}"
    return {
        "pick": pick["variant"] if pick else None,
        "artifacts": artifacts,
        "link": link,
        "answer": f"On {device}, batch {config['batch_size']}, {answer}",
        "reasons": _reasons(pick, choice, config["budget"], rejected) if pick else [],
        "warnings": [_warning(row) for row in (pick, runner_up) if pick and row and row["status"] != "ok"],
        "runner_up": (
            {"variant": runner_up["variant"], "distinguishable": distinguishable(pick, runner_up)}
            if pick and runner_up
            else None
        ),
        "closest": choice.closest,
        "rejected": rejected,
        "fronts": {
            "speed": front(_points(choice.measured, "speedup", -1)),
            "size": front(_points(choice.measured, "size_mb", 1)),
        },
    }


def _against(row: Row, choice: Choice) -> str | None:
    """Return why ``row`` was not picked; None if it was."""
    if row["status"] == "unsupported":
        return f"does not run here: {row['reason']}"
    if row["status"] == "saturates":
        return row["reason"]
    if row["variant"] in choice.misses:
        return _missed(choice.misses[row["variant"]])
    if choice.pick is None or row is choice.pick:
        return None
    if distinguishable(choice.pick, row):
        return f"slower, {_speed(row)}"
    objections = {
        "doubtful_timing": f"its timing is {row['status']}",
        "size": f"larger, {known(row, 'size_mb'):.1f} MB",
        "other_runtime": f"it needs {row['runtime']}",
        "distance": f"its mean cosine is {known(row, 'cosine_mean'):.4f}",
    }
    own, picked = merits(row)._asdict(), merits(choice.pick)._asdict()
    decisive = next((name for name in own if own[name] != picked[name]), None)
    if decisive and own[decisive] > picked[decisive]:
        return f"not distinguishable in speed, {_speed(row)}; {objections[decisive]}"
    return f"slower, {_speed(row)}, though not beyond noise"


def _missed(miss: Miss) -> str:
    """Return by how much a variant misses a limit of the budget."""
    measure, column = MEASURE[miss.key], miss.column
    if miss.value is None:
        return f"its {measure} was not measured"
    at_least, unit = column.better == "higher", f" {column.unit}" if column.unit else ""
    sentence = f"its {measure} is {miss.value:{column.format}}{unit}"
    if miss.value >= miss.limit if at_least else miss.value <= miss.limit:
        sentence += f", and may be {miss.end:{column.format}}{unit}: too few samples to show that it keeps within"
    else:
        distance = abs(miss.value - miss.limit)
        sentence += f", {distance:{column.format}}{unit} {'short of' if at_least else 'over'}"
    return f"{sentence} the {miss.limit:g}{unit} {'asked for' if at_least else 'allowed'}"


def _deploy(pick: Row) -> str:
    size, compression = known(pick, "size_mb"), known(pick, "compression")
    smaller = f"{compression:.1f}x smaller" if compression >= 1.05 else f"{size:.1f} MB"
    if pick["variant"] == BASELINE:
        return f"{BASELINE}: nothing within the budget is faster beyond the noise; {size:.1f} MB"
    runtime = f" (runs in {pick['runtime']})" if pick["runtime"] != TORCHSCRIPT else ""
    return f"{pick['variant']}{runtime}: {_speed(pick)}, {smaller}, cosine {known(pick, 'cosine_mean'):.4f}"


def _with_interval(row: Row, name: str, unit: str) -> str:
    """Return a value with its unit, and its interval if that is known."""
    column = COLUMN[name]
    interval = column.interval_text(row)
    return f"{column.text(row)}{unit}" + (f" ({' to '.join(interval)})" if interval else "")


def _speed(row: Row) -> str:
    return _with_interval(row, "speedup", "x as fast as fp32")


def _reasons(pick: Row, choice: Choice, budget: Budget, rejected: Mapping[str, str]) -> list[str]:
    """Return why this one, how it stands to the budget, and what stands beside it, in sentences."""
    within = choice.within
    count = f"the {len(within)} variants" if len(within) > 1 else "the one variant"
    fastest = "the fastest" if pick is within[0] else "among the fastest"
    reasons = [
        f"Of {count} within the budget it is {fastest}: {_speed(pick)}, "
        f"{known(pick, 'latency_p50_ms'):.2f} ms per call.",
        f"Its features have a mean cosine of {_with_interval(pick, 'cosine_mean', '')} to fp32's; "
        f"{budget['cosine']:g} was asked for.",
    ]
    drop, low, high = (number(pick, f"knn_top1_drop{end}") for end in ("", "_ci_low", "_ci_high"))
    if drop is not None and low is not None and high is not None and pick["variant"] != BASELINE:
        meaning = "no loss that these queries would show" if low <= 0 <= high else "a loss" if drop > 0 else "a gain"
        allowed = "" if budget["knn_top1_drop"] is None else f"; {budget['knn_top1_drop']:g} allowed"
        reasons.append(f"k-NN top-1 lost: {_with_interval(pick, 'knn_top1_drop', ' points')}, {meaning}{allowed}.")
    reasons.append(f"Its file has {known(pick, 'size_mb'):.1f} MB, fp32's {known(pick, 'compression'):.2f} times that.")
    floor = number(pick, "noise_floor")
    if floor is not None:
        reasons.append(f"In this run fp32 differed from itself by at most {100 * floor:.1f} %.")
    if choice.runner_up:
        name = choice.runner_up["variant"]
        reasons.append(f"The runner-up is {name}: {rejected[name]}.")
    if choice.fastest_missed:
        name = choice.fastest_missed["variant"]
        reasons.append(f"{name} is faster, {_speed(choice.fastest_missed)}, but {rejected[name]}.")
    return reasons


def _warning(row: Row) -> str:
    return (
        f"The timing of {row['variant']} is {row['status']}: {row['reason']}. To repeat it, delete "
        f"results/latency/{row['device']}/{row['variant']}/batch{row['batch_size']}.json and run again."
    )


def _points(rows: Sequence[Row], name: str, sign: int) -> dict[str, tuple[float, float]]:
    rows = [row for row in rows if row[name] and row["cosine_mean"]]
    return {row["variant"]: (sign * known(row, name), known(row, "cosine_mean")) for row in rows}


def link(recommendation: Recommendation, folder: str | Path) -> None:
    """Make ``folder`` with a relative link to each file of each device's pick."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for device, recommended in recommendation["devices"].items():
        for artifact in map(Path, recommended["artifacts"]):
            Path(folder, device + artifact.suffix).symlink_to(os.path.relpath(artifact, folder))


def conclusion(recommendation: Recommendation) -> str:
    """Return the answers for the terminal, a line for each device, and the warnings that go with them."""
    lines = []
    for recommended in recommendation["devices"].values():
        lines += [recommended["answer"], *(f"  {warning}" for warning in recommended["warnings"])]
    if recommendation["substitutes"]:
        lines.append(
            f"  Made with a substitute ({', '.join(recommendation['substitutes'])}): only speed and size are real."
        )
    return "\n".join(lines)
