"""One model of one runtime in a process of its own, so that the threads of one runtime never disturb another.

`dinoquant.runtimes.remote` starts it, with the Python of the runtime's environment. Nothing but NumPy and this project
may be imported outside the runtimes' own modules.
"""

import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np

from dinoquant.errors import UserError
from dinoquant.job import end_with_parent
from dinoquant.machine import require_processors
from dinoquant.network.card import Card
from dinoquant.runtimes import RUNTIMES
from dinoquant.runtimes.allocator import keep_freed_memory
from dinoquant.runtimes.backend import Array, Converter, prepare

Message = dict[str, Any]  # a request's arguments or its answer, pickled


def send(connection: Connection, message: Message, array: Array | None = None) -> None:
    """Send a message, and a float32 array with it."""
    # Raw bytes: the NumPy of the two environments may differ, and with it the way in which arrays are pickled.
    connection.send(message if array is None else {**message, "shape": array.shape})
    if array is not None:
        connection.send_bytes(np.ascontiguousarray(array, dtype=np.float32).data.cast("B"))


def receive(connection: Connection) -> tuple[Message, Array | None]:
    """Wait for a message; raises EOFError when the other side has gone."""
    message: Message = connection.recv()
    if "shape" not in message:
        return message, None
    array = np.empty(message.pop("shape"), dtype=np.float32)
    connection.recv_bytes_into(array.data.cast("B"))
    return message, array


class Worker:
    """What can be asked of the process: a message `{"do": METHOD, **arguments}`, and an array where one is taken."""

    def __init__(self, name: str, threads: int, device: str, timed: bool) -> None:
        # As for what it is compared with, and before the runtime allocates anything.
        self._allocator = keep_freed_memory() if timed else None
        processors = require_processors(threads) or []
        self._threads = {"threads": str(threads), "processors": ", ".join(map(str, processors))}
        self._libraries, self._device = RUNTIMES[name].libraries, device
        self._backend = prepare(name, threads, device)

    def about(self, _: None) -> tuple[Message, None]:
        """Answer the versions of the runtime's libraries, its threads and the processors that these may run on.

        If this is timed, also what was done about the allocator.
        """
        versions = {library: version(library) for library in self._libraries}
        return self._threads | versions | ({"allocator": self._allocator} if self._allocator else {}), None

    def convert(self, images: Array | None, source: str, target: str, card: Card) -> tuple[Message, None]:
        """Make the model that ``card`` describes; ``images`` are for its calibration. Answers what the card adds."""
        return {"card": cast(Converter, self._backend).convert(Path(source), Path(target), card, images)}, None

    def load(self, _: None, model: str, card: Card, batch_size: int) -> tuple[Message, None]:
        """Load a model for batches of ``batch_size``; what a runtime does on garbage collections is not timed."""
        self._batch_size = batch_size
        self._run = self._backend.load(Path(model), card, batch_size)
        gc.collect()
        gc.disable()
        return {}, None

    def footprint(self, image: Array, model: str, card: Card) -> tuple[Message, None]:
        """Answer what loading a model and running it once takes, beyond a process that has imported the runtime."""

        def load() -> Callable[[], Array]:
            run = self._backend.load(Path(model), card, len(image))
            return lambda: run(image)

        # By name: whoever runs a model would depend on how footprints are taken if this file imported it.
        return importlib.import_module("dinoquant.runtimes.footprint").observe(Path(model), load, self._device), None

    def ready(self, images: Array) -> tuple[Message, None]:
        """Keep the input of `time`."""
        self._images = images
        return {}, None

    def time(self, _: None) -> tuple[Message, None]:
        """Run once on the input that is ready, and answer the milliseconds."""
        start = time.perf_counter_ns()
        self._run(self._images)
        return {"ms": (time.perf_counter_ns() - start) / 1e6}, None

    def features(self, images: Array) -> tuple[Message, Array]:
        """Answer the features of a batch; one that is too small is filled up by repeating itself."""
        # Not with zeros: where a scale is taken over the whole batch, these would count.
        full = np.resize(images, (self._batch_size, *images.shape[1:]))
        return {}, self._run(full)[: len(images)]

    def exact(self, images: Array, model: str, card: Card) -> tuple[Message, Array]:
        """Answer the features that an int8 model gives where nothing saturates (`Converter.exact`)."""
        return {}, cast(Converter, self._backend).exact(Path(model), card, images)


def serve(connection: Connection, name: str, threads: int, device: str, timed: bool) -> None:
    """Do what is asked until the other side is gone; answer errors too, and go on."""
    worker = None
    while True:
        try:
            message, array = receive(connection)
        except EOFError:
            return
        try:
            # Not before the first request, so that a runtime that cannot be imported is an answer as well.
            worker = worker or Worker(name, threads, device, timed)
            answer = getattr(worker, message.pop("do"))(array, **message)
        except UserError as error:
            answer = {"advice": str(error)}, None
        except Exception:
            answer = {"error": traceback.format_exc()}, None
        send(connection, *answer)


if __name__ == "__main__":
    end_with_parent()  # who may be killed while this one is compiling
    os.dup2(2, 1)  # what the libraries print is no result of this project's jobs
    serve(Connection(int(sys.argv[1])), sys.argv[2], int(sys.argv[3]), sys.argv[4], timed="timed" in sys.argv[5:])
