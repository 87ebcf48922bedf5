"""Time a variant beside fp32 in processes that have run nothing else, as `python -m dinoquant.measure.process`.

A fresh Python, not a fork: some processes that shared memory with their parent ran int8-static much slower than others.
"""

import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

from tqdm import tqdm

from dinoquant.errors import UserError
from dinoquant.files import read_json, read_through, write_json
from dinoquant.job import end_with_parent
from dinoquant.machine import Machine, describe, given_processors, require_device
from dinoquant.measure.intervals import stopped
from dinoquant.measure.rounds import Call, Counts, ProcessRounds, TimingProtocol, measure
from dinoquant.runtimes import files

SCRIPTS = Path(__file__).resolve().parents[2]
log = logging.getLogger("dinoquant")
Part = TypeVar("Part", bound=ProcessRounds)


@dataclass(frozen=True)
class Request:
    """What to time, and how; ``model`` and ``fp32`` are files that rules of this workflow made."""

    model: str
    fp32: str
    device: str
    threads: int
    batch_size: int
    protocol: TimingProtocol


class Fixed(TypedDict):
    """What was the same for everything that a process timed itself."""

    allocator: str
    processors: list[int] | None
    interop_threads: int
    flush_denormal: bool
    tf32: bool


class ProcessTiming(ProcessRounds):
    """The rounds of one process, with what they were taken with, and when (Unix time in s, from the loading on)."""

    started: float
    finished: float
    engine: str | None
    runtime: dict[str, str]
    fixed: Fixed
    machine: Machine


def repeat(start: Callable[[int, Counts | None], Part], protocol: TimingProtocol) -> list[Part]:
    """Return what the processes of a timing made of it, one after the other, until that is enough.

    ``start`` runs a process, given its number and how many calls its blocks have: as many as those of the first.
    """
    parts: list[Part] = []
    for process in tqdm(range(protocol.processes), desc="processes", disable=None):
        parts.append(start(process, parts[0]["calls_per_block"] if parts else None))
        if stopped(parts, protocol):
            break
    return parts


def in_process(request: Request, process: int, counts: Counts | None) -> ProcessTiming:
    """Return what `time_once` does, from a process of its own; raises its UserError."""
    with tempfile.TemporaryDirectory() as folder, given_processors():
        result = Path(folder, "result.json")
        done = subprocess.run(
            [sys.executable, "-m", "dinoquant.measure.process", result],
            input=json.dumps({"request": asdict(request), "process": process, "counts": counts}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            check=False,
        )
        log.debug("%s", done.stderr)
        if done.returncode:
            raise RuntimeError(f"a process of the timing ended with {done.returncode}:\n{done.stderr[-4000:]}")
        answer = read_json(result)
    if "advice" in answer:
        raise UserError(answer["advice"])
    timing: ProcessTiming = answer
    return timing


def time_once(request: Request, process: int, counts: Counts | None) -> ProcessTiming:
    """Return the rounds of process number ``process`` (`dinoquant.measure.rounds.measure`), taken in this one."""
    from dinoquant.runtimes.allocator import keep_freed_memory

    allocator = keep_freed_memory()  # before PyTorch allocates anything
    from dinoquant.runtimes.opened import open_model
    from dinoquant.runtimes.torchscript import as_device_call, preparation, random_images, set_up

    started = time.time()
    device, threads, batch_size, protocol = request.device, request.threads, request.batch_size, request.protocol
    require_device(device)
    fixed: Fixed = {"allocator": allocator, **set_up(threads)}
    for file in (*files(request.model), Path(request.fp32)):
        read_through(file)  # so that no page of it has to come from the disk
    with (
        open_model(request.model, device, threads=threads, batch_size=batch_size, timed=True) as variant,
        open_model(request.fp32, device, threads=threads, batch_size=batch_size, timed=True) as fp32,
    ):
        card = variant.card
        images = random_images(batch_size, card["image_size"], device, protocol.seed)
        variant.ready(images)
        fp32.ready(images)
        prepare = preparation(batch_size, card, device)
        passes: dict[str, Call] = {"preprocess": prepare, "end_to_end": lambda: prepare() + variant.time()}
        if device == "cuda":
            passes["device"] = as_device_call(lambda: variant(images))
        rounds = measure(
            {"variant": variant.time, "fp32": fp32.time},
            protocol=protocol,
            process=process,
            counts=counts,
            passes=passes,
            probe=preparation(1, card, device),
        )
    return {
        **rounds,
        "started": started,
        "finished": time.time(),
        "engine": card["engine"],
        "runtime": variant.runtime,
        "fixed": fixed,
        "machine": describe(),
    }


def main() -> None:
    """Read the arguments of `time_once` as JSON from standard input, and write what it returns to the named file."""
    end_with_parent()
    gc.disable()  # which makes PyTorch's import a fifth faster
    message = json.load(sys.stdin)
    protocol = TimingProtocol(**message["request"].pop("protocol"))
    try:
        answer: object = time_once(
            Request(**message["request"], protocol=protocol), message["process"], message["counts"]
        )
    except UserError as error:
        answer = {"advice": str(error)}
    write_json(sys.argv[1], answer)
    gc.freeze()  # and the exit


if __name__ == "__main__":
    main()
