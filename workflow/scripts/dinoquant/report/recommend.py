"""What to deploy on each device, and why, in words: the content of `results/recommendation.json`.

`dinoquant.report.choice` chooses; the sentences are here. Light libraries only: the Snakefile imports it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from dinoquant.report.choice import (
    KNN,
    LIMITED,
    Budget,
    Choice,
    Miss,
    choose,
    distinguishable,
    front,
    known,
    merits,
    queries_short,
    without_accuracy,
    without_labels,
)
from dinoquant.report.columns import COLUMN, Row, number
from dinoquant.report.deployed import Deployed, linked, program
from dinoquant.runtimes import BASELINE, TORCHSCRIPT

RUN_THAT_TELLS = (
    "The run that tells is make run, with DINO's weights and photographs. It downloads 335 MB: Tiny ImageNet, "
    "248 MB, and the checkpoint, 87 MB. What it takes here, make estimate tells."
)
MEASURE = {  # key of the budget -> what it limits, in a sentence
    "cosine": "mean cosine to fp32",
    "patch_cosine": "mean cosine of patches to fp32's",
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
    artifacts: Mapping[str, Sequence[str]]  # by variant: the file that is loaded, and what belongs to it
    substitutes: Sequence[str]  # what stands in for real images or weights


class RunnerUp(TypedDict):
    """The second best on a device."""

    variant: str
    distinguishable: bool


class DeviceRecommendation(Deployed):
    """What to deploy on one device; lists of sentences are for people."""

    pick: str | None
    fastest: str | None  # what speed and size alone say, where the accuracy says nothing
    link: str | None
    answer: str
    reasons: Sequence[str]
    alternatives: Sequence[str]  # what was almost chosen, and what a little more of something would buy
    warnings: Sequence[str]
    runner_up: RunnerUp | None
    closest: str | None
    rejected: Mapping[str, str]  # the reason by variant
    fronts: Mapping[str, Sequence[str]]
    that_matter: Mapping[str, str]  # what each is, by variant


class Recommendation(TypedDict):
    """`results/recommendation.json`."""

    batch_size: int
    budget: Budget
    substitutes: Sequence[str]
    accuracy_judged: bool  # False with a substitute: then nothing is recommended, only timed
    next_step: str | None  # the run that would tell
    devices: Mapping[str, DeviceRecommendation]


def recommend(rows: Sequence[Row], config: RecommendConfig) -> Recommendation:
    """Return what to deploy, from the rows of the summary; with a substitute only what is fast, and how to learn it."""
    judged = not config["substitutes"]
    budget = config["budget"]
    if not judged:
        rows, budget = without_accuracy(rows, budget)
    return {
        "batch_size": config["batch_size"],
        "budget": config["budget"],
        "substitutes": config["substitutes"],
        "accuracy_judged": judged,
        "next_step": None if judged else RUN_THAT_TELLS,
        "devices": {
            device: _on_device([row for row in rows if row["device"] == device], device, budget, config)
            for device in config["devices"]
        },
    }


def _on_device(rows: Sequence[Row], device: str, budget: Budget, config: RecommendConfig) -> DeviceRecommendation:
    batch_size, judged = config["batch_size"], not config["substitutes"]
    choice = choose([row for row in rows if row["batch_size"] == str(batch_size)], budget)
    pick, runner_up = choice.pick, choice.runner_up
    rejected = {row["variant"]: reason for row in choice.rows if (reason := _against(row, choice))}
    artifacts = config["artifacts"][pick["variant"]] if pick else []
    files = linked(artifacts, device) if judged else artifacts
    link = files[0] if files and judged else None
    return {
        "pick": pick["variant"] if pick and judged else None,
        "fastest": pick["variant"] if pick and not judged else None,
        "artifacts": artifacts if judged else [],
        "link": link,
        "answer": _answer(choice, rows, f"On {device}, batch {batch_size}", config["substitutes"], rejected, link),
        "example": program("example", files, device),
        "example_cpp": program("example_cpp", files, device),
        "reasons": _reasons(pick, choice, budget, rejected) if pick else [],
        "alternatives": _alternatives(pick, choice, rejected) if pick else [],
        "warnings": [
            *_warnings([row for row in (pick, runner_up) if pick and row and row["status"] != "ok"]),
            *([text] if pick and judged and (text := _undecided(pick, choice, budget)) else []),
        ],
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
        "that_matter": choice.that_matter("recommended" if judged else "first by speed and size"),
    }


def _against(row: Row, choice: Choice) -> str | None:
    """Return why ``row`` was not picked; None if it was."""
    if row["status"] == "unsupported":
        return f"does not run here: {row['reason']}"
    if row["status"] == "saturates":
        return row["reason"]
    if row["variant"] in choice.misses:
        return _missed(choice.misses[row["variant"]][0])
    if choice.pick is None or row is choice.pick:
        return None
    if distinguishable(choice.pick, row):
        return f"slower, {_speed(row)}"
    objections = {
        "doubtful_timing": f"its timing is {row['status']}",
        "size": f"larger, {known(row, 'size_mb'):.1f} MB",
        "other_runtime": f"it needs {row['runtime']}",
        "distance": f"its mean cosine is {COLUMN['cosine_mean'].text(row)}",
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


def _answer(
    choice: Choice,
    rows: Sequence[Row],
    where: str,
    substitutes: Sequence[str],
    rejected: Mapping[str, str],
    link: str | None,
) -> str:
    """Return the answer for one device in a sentence or two; ``rows`` are those of all batch sizes."""
    pick, closest = choice.pick, choice.closest
    if substitutes:
        where = f"Speed and size only ({', '.join(substitutes)}). {where}"
    if not pick:
        nearest = f" {closest} comes closest: {rejected[closest]}." if closest else ""
        return f"{where}, nothing meets the budget.{nearest}"
    numbers = f"{_latency(pick)} per call, {_speed(pick)}, {_smaller(pick)}"
    if pick["variant"] == BASELINE:
        numbers = f"nothing within the budget is faster beyond the noise; {_latency(pick)} per call, {_smaller(pick)}"
    if pick["cosine_mean"]:
        numbers += f", cosine {COLUMN['cosine_mean'].text(pick)}"
    numbers += _best_throughput(pick, rows)
    runtime = f" (runs in {pick['runtime']})" if pick["runtime"] != TORCHSCRIPT else ""
    if substitutes:
        unknown = "Whether it keeps the features, this run cannot tell."
        place = "the fastest" if pick is choice.within[0] else "among the fastest, and the smallest of these"
        return f"{where}, {pick['variant']}{runtime} is {place}: {numbers}. {unknown}"
    return f"{where}, deploy {pick['variant']}{runtime}: {numbers}; {link}"


def _best_throughput(pick: Row, rows: Sequence[Row]) -> str:
    """Return the most images per second that the pick reaches, and at which batch size."""
    own = [row for row in rows if row["variant"] == pick["variant"] and number(row, "throughput_ips")]
    if not own:
        return ""
    best = max(own, key=lambda row: known(row, "throughput_ips"))
    return f"; {known(best, 'throughput_ips'):.0f} images/s at batch {best['batch_size']}"


def _smaller(pick: Row) -> str:
    compression = known(pick, "compression")
    return f"{compression:.1f}x smaller" if compression >= 1.05 else f"{known(pick, 'size_mb'):.1f} MB"


def _latency(row: Row) -> str:
    return _with_interval(row, "latency_p50_ms", " ms")


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
    limits = " within the budget" if any(budget.values()) else ""
    reasons = [f"Of {count}{limits} it is {fastest}: {_speed(pick)}, {_latency(pick)} per call."]
    for key, what in (("cosine", "features"), ("patch_cosine", "patches")):
        name = LIMITED[key].name
        if pick[name] and budget[key] is not None:
            asked = f"{budget[key]:g} was asked for"
            reasons.append(f"Its {what} have a mean cosine of {_with_interval(pick, name, '')} to fp32's; {asked}.")
    drop, low, high = (number(pick, f"{KNN}{end}") for end in ("", "_ci_low", "_ci_high"))
    if drop is not None and low is not None and high is not None and pick["variant"] != BASELINE:
        meaning = "no loss that these queries would show" if low <= 0 <= high else "a loss" if drop > 0 else "a gain"
        allowed = "" if budget[KNN] is None else f"; {budget[KNN]:g} allowed"
        reasons.append(f"k-NN top-1 lost: {_with_interval(pick, KNN, ' points')}, {meaning}{allowed}.")
    reasons.append(f"Its file has {known(pick, 'size_mb'):.1f} MB, fp32's {known(pick, 'compression'):.2f} times that.")
    floor = number(pick, "noise_floor")
    if floor is not None:
        reasons.append(f"In this run fp32 differed from itself by at most {100 * floor:.1f} %.")
    return reasons


def _alternatives(pick: Row, choice: Choice, rejected: Mapping[str, str]) -> list[str]:
    """Return what was almost chosen, and what a looser budget or a longer call would buy, in sentences."""
    sentences = []
    if choice.runner_up:
        name = choice.runner_up["variant"]
        sentences.append(f"The runner-up is {name}: {rejected[name]}.")
    if almost := choice.almost:
        name, misses = almost["variant"], choice.misses[almost["variant"]]
        saved = known(pick, "latency_p50_ms") - known(almost, "latency_p50_ms")
        sentence = f"{name} saves {saved:.2f} ms per call, {_speed(almost)}, but {rejected[name]}"
        if all(math.isfinite(miss.end) for miss in misses):
            wanted = " and ".join(f"{miss.key} {_loosened(miss)}" for miss in misses)
            sentence += f"; a budget of {wanted} would take it"
        sentences.append(f"{sentence}.")
    if better := choice.more_faithful:
        cost = known(better, "latency_p50_ms") - known(pick, "latency_p50_ms")
        cosines = [COLUMN["cosine_mean"].text(row) for row in (better, pick)]
        sentences.append(
            f"For {cost:.2f} ms more per call {better['variant']} has a cosine of {' instead of '.join(cosines)}."
        )
    return sentences


def _loosened(miss: Miss) -> str:
    """Return a limit that the row would keep, rounded to the side on which it does."""
    if miss.column.better == "higher":
        return f"{math.floor(miss.end * 1e4) / 1e4:g}"
    return f"{math.ceil(miss.end * 100) / 100:g}"


def _undecided(pick: Row, choice: Choice, budget: Budget) -> str | None:
    """Return why it is not known whether the pick keeps within the k-NN loss allowed; None if that is known."""
    if budget[KNN] is not None and without_labels(choice.measured):
        return "The images have no labels: the cosine was judged, and what k-NN top-1 loses is not known."
    times = queries_short(pick, budget)
    if times is None:
        return None
    enough = f"; about {max(2, math.ceil(times))} times as many would" if math.isfinite(times) else ""
    return (
        f"Whether {pick['variant']} keeps within the {budget[KNN]:g} points of k-NN top-1 that it may lose, these "
        f"queries are too few to say: {_with_interval(pick, KNN, ' points')}{enough}."
    )


def _warnings(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence for each doubt about these timings, and how to repeat what no key of the config repeats."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((row["status"], row["reason"]), []).append(row)
    for (status, reason), same in alike.items():
        doubt = f"The timing of {' and '.join(row['variant'] for row in same)} is {status}: {reason}."
        files = [f"results/latency/{row['device']}/{row['variant']}/batch{row['batch_size']}.json" for row in same]
        repeat = f" To repeat it, delete {' and '.join(files)} and run again."
        yield doubt + (repeat if status == "disturbed" else "")


def _points(rows: Sequence[Row], name: str, sign: int) -> dict[str, tuple[float, float]]:
    rows = [row for row in rows if row[name] and row["cosine_mean"]]
    return {row["variant"]: (sign * known(row, name), known(row, "cosine_mean")) for row in rows}


def conclusion(recommendation: Recommendation) -> str:
    """Return the answers for the terminal, a line for each device, and what goes with them."""
    lines = []
    for recommended in recommendation["devices"].values():
        lines += [recommended["answer"], *(f"  {text}" for text in recommended["warnings"])]
        lines += [f"  {text}" for text in recommended["alternatives"]]
    return "\n".join([*lines, *([recommendation["next_step"]] if recommendation["next_step"] else [])])
