"""Time a variant beside fp32 in a process that has run nothing else, as `python -m dinoquant.measure.process`.

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
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from dinoquant.errors import UserError
from dinoquant.files import read_json, read_through, write_json
from dinoquant.job import end_with_parent
from dinoquant.machine import describe, require_device
from dinoquant.measure.rounds import Call, Part, Protocol, measure
from dinoquant.network.card import read_card
from dinoquant.runtimes import TORCHSCRIPT, files

SCRIPTS = Path(__file__).resolve().parents[2]
log = logging.getLogger("dinoquant")


def in_process(**request: Any) -> Part:
    """Return what `time_once` does, given all of its arguments, from a process of its own; raises its UserError."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        done = subprocess.run(
            [sys.executable, "-m", "dinoquant.measure.process", result],
            input=json.dumps(request),
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
        part: Part = read_json(result)
    if "advice" in part:
        raise UserError(part["advice"])
    return part


def time_once(
    *,
    model: str,
    fp32: str,
    device: str,
    threads: int,
    batch_size: int,
    protocol: dict[str, Any],
    process: int,
    counts: dict[str, int] | None,
) -> Part:
    """Return this process's part of a timing (`dinoquant.measure.rounds.measure`), with what it was taken with.

    That is the engine, the runtime, what was fixed and the machine; and when it was ``started`` and ``finished`` (Unix
    time, seconds), from the loading of the models on. ``model`` and ``fp32`` are files that rules of this workflow
    made, ``protocol`` has the fields of `Protocol`.
    """
    from dinoquant.runtimes.allocator import keep_freed_memory

    allocator = keep_freed_memory()  # before PyTorch allocates anything
    from dinoquant.recipes.base import engine
    from dinoquant.runtimes.pytorch import as_call, as_device_call, load, preparation, random_images, set_up
    from dinoquant.runtimes.remote import RemoteModel

    started = time.time()
    require_device(device)
    card, how = read_card(Path(model)), Protocol(**protocol)
    fixed = {"allocator": allocator, **set_up(threads)}
    for file in (*files(model), Path(fp32)):
        read_through(file)  # so that no page of it has to come from the disk
    images = random_images(batch_size, card["image_size"], device, how.seed)
    prepare = preparation(batch_size, card, device)
    passes: dict[str, Call] = {"preprocess": prepare, "end_to_end": lambda: prepare() + call()}
    runtime = {"name": card["runtime"]}
    # Loading packs quantized weights for the engine in force, and PyTorch's default need not be the variant's.
    with engine(card["engine"]) if card["engine"] else nullcontext(), ExitStack() as stack:
        if card["runtime"] == TORCHSCRIPT:
            run = partial(load(Path(model), device), images)
            call: Call = as_call(run, device)
            if device == "cuda":
                passes["device"] = as_device_call(run)
        else:
            remote = RemoteModel(model, batch_size=batch_size, threads=threads, timed=True)
            runtime |= stack.enter_context(remote).about()
            remote.ready(images)
            call = remote.time
        calls = {"variant": call, "fp32": as_call(partial(load(Path(fp32), device), images), device)}
        probe = preparation(1, card, device)
        part = measure(calls, protocol=how, process=process, counts=counts, passes=passes, probe=probe)
    part |= {"started": started, "finished": time.time()}
    return part | {"engine": card["engine"], "runtime": runtime, "fixed": fixed, "machine": describe()}


def main() -> None:
    """Read the arguments of `time_once` as JSON from standard input, and write what it returns to the named file."""
    end_with_parent()
    gc.disable()  # which makes PyTorch's import a fifth faster
    try:
        part = time_once(**json.load(sys.stdin))
    except UserError as error:
        part = {"advice": str(error)}
    write_json(sys.argv[1], part)
    gc.freeze()  # and the exit


if __name__ == "__main__":
    main()
