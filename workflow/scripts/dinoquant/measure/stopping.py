"""When the speed-up of a timing is known: its 95 % interval, and the rule that stops measuring on it.

Two processes of one model may differ by some percent, however long each is timed. So the rounds are shared by several,
and the interval is Student's, of the means of the processes; with one process it is that of a trimmed mean of its
rounds: K. Yuen, "The two-sample trimmed t for unequal population variances", Biometrika 61 (1974). Who looks again
after every process or round stops too early on rounds that agree by chance; what that takes from the coverage,
``NOMINAL`` gives back. `tests/bench/stopping.py` tries the rule on recorded rounds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95  # what the intervals cover under the rule
NOMINAL = 0.96
MIN_ROUNDS = 6
MIN_PROCESSES = 3
SLOWER = 0.95  # a variant is clearly slower than fp32 if its whole interval lies below
SECOND_RUNS = 0.9  # the share of them that `second_run` speaks of

Values = NDArray[np.float64]


def interquartile_mean(values: Values) -> float:
    """Return the mean of the middle half.

    No single round can spoil it, and of rounds that scatter normally it makes more than their median does. After
    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021).
    """
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def center(values: Values, process: Sequence[int]) -> float:
    """Return the mean over processes of the interquartile mean of each one's rounds."""
    return float(np.mean([interquartile_mean(group) for group in _groups(values, process)]))


def half_width(values: Values, process: Sequence[int], nominal: float = NOMINAL) -> float | None:
    """Return half the width of the interval around `center`; None with fewer than 6 rounds.

    ``values`` [rounds] are logarithms, so that the result is a fraction of what they are logarithms of, and ``process``
    is the number of the process that made each. Processes that agree by chance cannot make the interval narrower than
    their rounds allow.
    """
    if len(values) < MIN_ROUNDS:
        return None
    groups = _groups(values, process)
    within = _student(len(values) - 2 * (len(values) // 4), nominal) * _standard_error(
        np.concatenate([group - interquartile_mean(group) for group in groups])
    )
    if len(groups) == 1:
        return within
    means = np.array([interquartile_mean(group) for group in groups])
    return max(within, _student(len(groups), nominal) * float(means.std(ddof=1) / np.sqrt(len(groups))))


def interval(values: Values, process: Sequence[int], around: float) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of ``around``, a statistic of what ``values`` are logarithms of; see `half_width`."""
    half = half_width(values, process)
    return (None, None) if half is None else (around * float(np.exp(-half)), around * float(np.exp(half)))


def second_run(values: Values, process: Sequence[int]) -> float | None:
    """Return by how much nine second runs in ten differ from this one at most; None where `half_width` is.

    The prediction interval of as many rounds of as many other processes, as a fraction: two runs vary by the square
    root of two as much as either.
    """
    half = half_width(values, process, SECOND_RUNS)
    return None if half is None else float(np.sqrt(2)) * half


def stop_reason(log_ratios: Values, process: Sequence[int], processes: int, precision: float) -> str | None:
    """Return why these rounds are enough: "precise" or "slower" than fp32; None as long as they are not.

    Args:
        log_ratios: logarithms of the speed-up, by round.
        process: the number of the process that made each round.
        processes: how many the timing may take; not fewer than three of them are, if there are so many.
        precision: the interval's half width that is enough, as a fraction of the speed-up.
    """
    half = half_width(log_ratios, process)
    if half is None or len(set(process)) < min(MIN_PROCESSES, processes):
        return None
    if half <= precision:
        return "precise"
    return "slower" if center(log_ratios, process) + half < np.log(SLOWER) else None


def _groups(values: Values, process: Sequence[int]) -> list[Values]:
    return [values[np.equal(process, number)] for number in np.unique(process)]


def _student(count: int, nominal: float) -> float:
    """Return by how many standard errors the mean of ``count`` values may be off."""
    return -float(stdtrit(count - 1, (1 - nominal) / 2))


def _standard_error(values: Values) -> float:
    """Return that of the interquartile mean, from the values with their tails pulled in to the quartiles."""
    n, cut = len(values), len(values) // 4
    ordered = np.sort(values)
    winsorized = ordered.clip(ordered[cut], ordered[n - cut - 1])
    kept = n - 2 * cut
    return float(winsorized.std(ddof=1)) * float(np.sqrt((n - 1) / (kept * (kept - 1))))
