"""Timing two models side by side: order, warm-up, and whole timings of calls whose times are known."""

import gc
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from dinoquant.measure import rounds
from dinoquant.measure.intervals import combine
from dinoquant.measure.process import repeat
from dinoquant.measure.rounds import Counts, ProcessRounds, TimingProtocol, interleave, overtime, warm_up


def scripted(times_ms: list[float], monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Return a call that takes these times on a clock of its own; the last one for ever after."""
    clock = [0.0]
    remaining = iter(times_ms)
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])

    def call() -> float:
        taken = next(remaining, times_ms[-1])
        clock[0] += taken / 1e3
        return taken

    return call


class Machine:
    """Calls that last so long on a clock of their own, give or take 1 %; each second on it, longer by `drift`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, drift: float = 0.0) -> None:
        self.seconds, self.drift, self.noise = 0.0, drift, random.Random(0)
        monkeypatch.setattr(rounds.time, "perf_counter", lambda: self.seconds)

    def call(self, milliseconds: float) -> Callable[[], float]:
        def call() -> float:
            assert not gc.isenabled()
            taken = milliseconds * (1 + self.drift * self.seconds) * self.noise.gauss(1, 0.01)
            self.seconds += taken / 1e3
            return taken

        return call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_warm_up_ends_when_two_groups_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = [50.0, 90.0] + [20.0 * 0.93**i for i in range(15)] + [6.0] * 100
    result = warm_up(scripted(ramp, monkeypatch), 10.0)
    assert result.steady
    assert result.call_seconds == pytest.approx(0.006)
    # Two that specialise; groups of 5, as many 20 ms calls as last 0.1 s; three groups fall, the next two are flat.
    assert result.calls == 2 + 5 * 5
    assert result.seconds < 1.0


def test_warm_up_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    result = warm_up(scripted([100.0 * 1.2**i for i in range(40)], monkeypatch), 5.0)
    assert not result.steady
    assert 5.0 <= result.seconds < 7.0


def test_slow_calls_still_get_past_the_specialising_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    result = warm_up(scripted([9000.0, 8000.0, 4000.0], monkeypatch), 1.0)
    assert (result.calls, result.steady, result.call_seconds) == (3, False, 4.0)


@pytest.mark.parametrize(
    ("call", "block", "expected"), [(0.015, 0.3, 20), (0.16, 0.3, 2), (4.0, 0.3, 1), (0.3, 0.3, 1)]
)
def test_calls_per_block(call: float, block: float, expected: int) -> None:
    assert rounds.calls_per_block(call, block) == expected


def test_blocks_alternate_in_a_seeded_random_order() -> None:
    log: list[str] = []

    def record(arm: str, value: float) -> Callable[[], float]:
        def call() -> float:
            log.append(arm)
            return value

        return call

    calls = {"variant": record("variant", 1.0), "fp32": record("fp32", 2.0)}
    counts = {"variant": 10, "fp32": 2}
    observations: list[int] = []
    samples, first = interleave(calls, counts, 20, [0, 0], lambda: observations.append(len(log)))
    assert samples == {"variant": [[1.0] * 10] * 20, "fp32": [[2.0] * 2] * 20}
    assert set(first) == {"variant", "fp32"}
    expected: list[str] = []
    for arm in first:  # one untimed call before the ten, none before the two
        expected += ["variant"] * 11 + ["fp32"] * 2 if arm == "variant" else ["fp32"] * 2 + ["variant"] * 11
    assert log == expected
    assert observations == list(range(0, len(log) + 1, 13)), "the machine is observed before and after each round only"
    assert interleave(calls, counts, 20, [0, 0], lambda: None)[1] == first
    assert interleave(calls, counts, 20, [1, 0], lambda: None)[1] != first
    assert interleave(calls, counts, 20, [0, 1], lambda: None)[1] != first, "each process has its own order"


def test_blocks_end_when_the_samples_are_enough() -> None:
    calls = {"variant": lambda: 1.0, "fp32": lambda: 2.0}
    one_each = {"variant": 1, "fp32": 1}
    samples, first = interleave(calls, one_each, 20, [0, 0], lambda: None, lambda so_far: len(so_far["fp32"]) == 7)
    assert (len(samples["variant"]), len(samples["fp32"]), len(first)) == (7, 7, 7)


def test_a_timing_of_one_process_ends_when_its_speedup_is_known(machine: Machine) -> None:
    protocol = TimingProtocol(rounds=40, processes=1, precision=0.5, block_seconds=0.01, warmup_seconds=0.1, seed=0)
    result = timed({"variant": machine.call(2), "fp32": machine.call(2)}, protocol)
    assert result["stopped"] == "precise"
    assert 6 <= result["rounds"] < 40


def test_rounds_that_take_much_longer_than_they_should_are_not_all_made() -> None:
    """Blocks of 20 ms: beside something else two calls of 10 ms took 100 ms, and one of 30 ms is as long as it is."""
    slow, slower = [[10.0, 90.0]] * 6, [[10.0, 190.0]] * 6
    assert overtime({"variant": slow, "fp32": slower}, 0.02)
    assert not overtime({"variant": slow[:5], "fp32": slower[:5]}, 0.02), "too few for an interval"
    assert not overtime({"variant": [[10.0, 11.0]] * 6, "fp32": [[10.0, 40.0]] * 6}, 0.02)
    assert not overtime({"variant": [[300.0]] * 6, "fp32": [[310.0]] * 6}, 0.02)


def test_no_more_processes_than_it_takes(machine: Machine) -> None:
    protocol = TimingProtocol(rounds=40, processes=8, precision=0.5, block_seconds=0.01, warmup_seconds=0.1, seed=0)
    result = timed({"variant": machine.call(2), "fp32": machine.call(2)}, protocol)
    assert result["stopped"] == "precise"
    assert 3 <= len(set(result["process"])) < 8


def test_the_garbage_collector_waits() -> None:
    with rounds._no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def timed(
    calls: dict[str, Callable[[], float]], protocol: TimingProtocol, batch_size: int = 1, **more: Any
) -> dict[str, Any]:
    """Return the whole timing of calls, all of whose processes are this one."""

    def start(process: int, counts: Counts | None) -> ProcessRounds:
        return rounds.measure(calls, protocol=protocol, process=process, counts=counts, **more)

    return combine(repeat(start, protocol), batch_size=batch_size, protocol=protocol)


def test_calls_are_measured_whatever_they_run(machine: Machine) -> None:
    protocol = TimingProtocol(rounds=8, processes=3, precision=0.0, block_seconds=0.02, warmup_seconds=0.5, seed=3)
    result = timed({"variant": machine.call(1), "fp32": machine.call(5)}, protocol, batch_size=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["speedup"] == pytest.approx(5, rel=0.01)
    assert result["latency_p50_ms"] < result["fp32_p50_ms"]
    assert result["throughput_ips"] == pytest.approx(2000 / result["latency_p50_ms"])
    counts = result["protocol"]["calls_per_block"]
    assert counts["variant"] > counts["fp32"]
    assert result["process"] == [0, 0, 0, 1, 1, 1, 2, 2, 2], "three processes share eight rounds, rounded up"
    for arm in ("variant", "fp32"):
        assert [len(block) for block in result["samples_ms"][arm]] == [counts[arm]] * 9
        assert result["set_aside"][arm] == []
        assert all(warmup[arm]["calls"] >= 3 for warmup in result["warmup"])
    assert len(result["first"]) == 9
    assert len(result["warmup"]) == 3
    assert result["samples"] == 9 * counts["variant"]


def test_passes_are_timed_by_themselves(machine: Machine) -> None:
    protocol = TimingProtocol(rounds=6, processes=2, precision=0.0, block_seconds=0.01, warmup_seconds=0.1, seed=0)
    calls = {"variant": machine.call(1), "fp32": machine.call(1)}
    result = timed(calls, protocol, passes={"end_to_end": machine.call(6)})
    assert result["end_to_end_p50_ms"] == pytest.approx(6, rel=0.02)
    assert result["latency_p50_ms"] == pytest.approx(1, rel=0.01)


def test_the_control_of_a_call_against_itself_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that gets slower all the time: twice as slow within two seconds."""
    machine = Machine(monkeypatch, drift=0.5)
    protocol = TimingProtocol(rounds=40, processes=1, precision=0.0, block_seconds=0.02, warmup_seconds=0.1, seed=0)
    result = timed({"variant": machine.call(2), "fp32": machine.call(2)}, protocol)
    assert machine.seconds > 2
    assert result["speedup"] == pytest.approx(1.0, abs=0.005)
    assert result["speedup_ci_low"] < 1 < result["speedup_ci_high"]
