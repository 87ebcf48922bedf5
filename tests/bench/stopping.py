"""Print how often intervals cover the truth where measuring stops as soon as they are narrow, and what that saves.

Beside it, the share of rows that are `ok`, and of those the share that a second row, simulated alike, confirms.

Rows are simulated from recorded rounds: every process of a row is as far from the others as two of one cell were, and
its rounds are stretches of those of some processes, in their order, so that noise, outliers and drift are as they were.
The truth is the mean of all processes; for a row of one process it is that process's own, for it cannot know others.
`--record` reads the rounds from results folders of finished runs, and writes the file that the simulation draws from.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinoquant.files import read_json, write_json
from dinoquant.measure.rounds import log_ratios
from dinoquant.measure.stopping import center, half_width, interquartile_mean, second_run, stop_reason
from dinoquant.measure.verdict import CONFIRMED, Contention, judge

RECORDED = Path(__file__).with_name("recorded.json")
LEAST, MOST = 0.93, 0.98  # coverage
NINE_IN_TEN = 0.9
NOBODY = Contention(0.0, [], 0)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """A rule by its name: most processes, rounds of each, and the half width that is enough (0: never)."""

    name: str
    processes: int
    rounds_each: int
    precision: float


RULES = [
    Rule("config: at most 12 processes of 4 rounds", 12, 4, 0.035),
    Rule("    all of them", 12, 4, 0.0),
    Rule("demo: one process, at most 12 rounds", 1, 12, 0.05),
    Rule("    all of them", 1, 12, 0.0),
]


def record(folders: Sequence[Path]) -> None:
    """Write the logarithms of the rounds' speed-ups, in their order, by cell and process; one process is one run's."""
    cells: dict[str, list[list[float]]] = {}
    for path in sorted(path for folder in folders for path in folder.glob("latency/*/*/batch*.json")):
        timing = read_json(path)
        if "unsupported" in timing:
            continue
        ratios, process = log_ratios(timing["samples_ms"]), np.array(timing["process"])
        by_process = [np.round(ratios[process == number], 5).tolist() for number in np.unique(process)]
        cells.setdefault("/".join([*path.parts[-3:-1], path.stem]), []).extend(by_process)
    if not any(len(processes) > 1 for processes in cells.values()):
        sys.exit("No cell was timed by two processes or more: set latency.processes above 1, or record several runs.")
    write_json(RECORDED, cells)


def pools(cells: Sequence[Sequence[Sequence[float]]]) -> tuple[Values, list[Values]]:
    """Return how far processes are from their cell's mean, and the rounds of each process around its own."""
    effects, residuals = [], []
    for cell in cells:
        rounds = [np.array(values) for values in cell]
        centers = np.array([interquartile_mean(values) for values in rounds])
        residuals += [values - own for values, own in zip(rounds, centers, strict=True)]
        if len(cell) > 1:  # the mean of a few is nearer to each of them than that of all would be
            effects.append((centers - centers.mean()) * np.sqrt(len(cell) / (len(cell) - 1)))
    return np.concatenate(effects), residuals


def stretches(residuals: Sequence[Values], count: int, rng: np.random.Generator) -> Values:
    """Return so many rounds, of one process from some round on, then of another."""
    pieces: list[Values] = []
    while sum(map(len, pieces)) < count:
        series = residuals[rng.integers(len(residuals))]
        pieces.append(series[rng.integers(len(series)) :])
    return np.concatenate(pieces)[:count]


@dataclass(frozen=True)
class Row:
    """A simulated row: its speed-up's logarithm, whether its interval covers the truth, its rounds, and if it is ok."""

    center: float
    covered: bool
    rounds: int
    ok: bool


def row(rule: Rule, effects: Values, residuals: Sequence[Values], rng: np.random.Generator) -> Row:
    """Simulate a row."""
    ratios, process, truth = np.empty(0), [], 0.0
    for number in range(rule.processes):
        effect = rng.choice(effects) * rng.choice([-1, 1])
        truth = effect if rule.processes == 1 else 0.0
        rounds = effect + stretches(residuals, rule.rounds_each, rng)
        step = 1 if rule.processes == 1 else rule.rounds_each
        for begin in range(0, rule.rounds_each, step):
            ratios = np.append(ratios, rounds[begin : begin + step])
            process += [number] * step
            if stop_reason(ratios, process, rule.processes, rule.precision):
                break
        else:
            continue
        break
    middle, half = center(ratios, process), half_width(ratios, process)
    word, _ = judge(ratios, second_run(ratios, process), rule.processes, NOBODY)
    return Row(middle, half is not None and abs(middle - truth) <= half, len(ratios), word == "ok")


def main() -> None:
    """Print the table; fail where a coverage is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, nargs="+", metavar="RESULTS", help="read rounds from these folders")
    parser.add_argument("--rows", type=int, default=2000, help="rows to simulate for each rule")
    options = parser.parse_args()
    if options.record:
        record(options.record)
    cells = read_json(RECORDED)
    effects, residuals = pools(list(cells.values()))
    scatter = np.median([np.std(values) for values in residuals])
    print(f"{len(cells)} recorded cells, {len(residuals)} processes, {sum(map(len, residuals))} rounds")
    print(f"standard deviations: processes of a cell {effects.std():.2%}, rounds of a process {scatter:.2%}\n")
    print(f"{'rule':42}{'covered':>9}{'rounds':>9}{'saved':>8}{'ok':>8}{'confirmed':>11}")
    failed = []
    for rule in RULES:
        rng = np.random.default_rng(0)
        rows, seconds = ([row(rule, effects, residuals, rng) for _ in range(options.rows)] for _ in range(2))
        covered, rounds = np.mean([each.covered for each in rows]), np.mean([each.rounds for each in rows])
        saved = 1 - rounds / (rule.processes * rule.rounds_each)
        off = [abs(np.expm1(a.center - b.center)) for a, b in zip(rows, seconds, strict=True) if a.ok]
        confirmed = np.mean(np.array(off) <= CONFIRMED) if off else None
        shown = "-" if confirmed is None else f"{confirmed:.0%}"
        print(f"{rule.name:42}{covered:9.1%}{rounds:9.1f}{saved:8.0%}{len(off) / len(rows):8.0%}{shown:>11}")
        if rule.precision > 0 and not LEAST <= covered <= MOST:
            failed.append(f"{rule.name}: intervals cover less than {LEAST:.0%} or more than {MOST:.0%}")
        if confirmed is not None and confirmed < NINE_IN_TEN:
            failed.append(f"{rule.name}: second rows confirm less than {NINE_IN_TEN:.0%} of those that are ok")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
