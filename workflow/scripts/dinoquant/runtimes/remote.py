"""Run a model of another runtime from the pipeline's process: as a call to be timed, or to get its features."""

import os
import subprocess
import tempfile
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from dinoquant.errors import UserError
from dinoquant.network.card import read_card
from dinoquant.runtimes import missing, python
from dinoquant.runtimes.worker import Array, Message, receive, send

SCRIPTS = Path(__file__).resolve().parents[2]


class Remote:
    """A process of a runtime (`dinoquant.runtimes.worker`); ends with the `with` block.

    While nothing is asked of it, it sleeps: no thread of it may spin while something else is timed.

    Raises:
        UserError: the runtime is not there, or says what the user can mend.
    """

    def __init__(self, runtime: str, threads: int, *, timed: bool = False) -> None:
        if reason := missing(runtime):
            raise UserError(f"{runtime}: {reason}")
        self.runtime = runtime
        self._connection, theirs = Pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed at the end of the `with` block
        # Snakemake sets OMP_NUM_THREADS to the number of cores that it was told of.
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": str(threads)}
        command = [python(runtime), "-m", "dinoquant.runtimes.worker"]
        self._process = subprocess.Popen(
            [*command, str(theirs.fileno()), runtime, str(threads), *(["timed"] if timed else [])],
            stdin=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        if kind:
            self._process.kill()
        self._process.wait()
        self._stderr.close()

    def ask(self, do: str, array: Array | None = None, **arguments: Any) -> tuple[Message, Array | None]:
        """Have a method of `Worker` done and return its answer; raises its error."""
        try:
            send(self._connection, {"do": do, **arguments}, array)
            answer, found = receive(self._connection)
        except (EOFError, ConnectionError):
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"{self.runtime}'s process ended with {self._process.wait()}:\n{said}") from None
        if "advice" in answer:
            raise UserError(answer["advice"])
        if "error" in answer:
            raise RuntimeError(f"in {self.runtime}'s process:\n{answer['error']}")
        return answer, found

    def about(self) -> dict[str, str]:
        """Return the versions of the runtime's libraries; and what was done about the allocator, if it is timed."""
        return self.ask("about")[0]


class RemoteModel(Remote):
    """A model in a process of its own, called like any other: float32 ``[B, 3, S, S]`` to ``[B, D]``, both on the CPU.

    Args:
        model: a file that a rule of this workflow made, with its card.
        batch_size: the most images of a call; with fewer the rest is computed for nothing.
        timed: give the process the allocator that timings have (`dinoquant.runtimes.allocator`).
    """

    def __init__(self, model: str | Path, *, batch_size: int, threads: int, timed: bool = False) -> None:
        card = read_card(Path(model))
        super().__init__(card["runtime"], threads, timed=timed)
        self.ask("load", model=str(model), card=card, batch_size=batch_size)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features."""
        found = self.ask("features", images.numpy())[1]
        return torch.from_numpy(found)

    def ready(self, images: Tensor) -> None:
        """Keep the input of `time`: float32 ``[batch_size, 3, S, S]``."""
        self.ask("ready", images.numpy())

    def time(self) -> float:
        """Run the model once on its ready input and return the milliseconds, taken inside its process."""
        return float(self.ask("time")[0]["ms"])


def footprint(model: str | Path, *, threads: int) -> dict[str, Any]:
    """Return what `dinoquant.runtimes.footprint.observe` does, from a fresh process that has imported the runtime."""
    card = read_card(Path(model))
    size = card["image_size"]
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with Remote(card["runtime"], threads) as process:
        answer, _ = process.ask("footprint", image.numpy(), model=str(model), card=card)
    return answer
