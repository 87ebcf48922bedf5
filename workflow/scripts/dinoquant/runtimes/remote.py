"""Start a process of a runtime (`dinoquant.runtimes.worker`) from the pipeline's, and ask it for things."""

import os
import subprocess
import tempfile
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Self

from dinoquant.errors import UserError
from dinoquant.machine import given_processors
from dinoquant.runtimes import missing, python
from dinoquant.runtimes.backend import Array
from dinoquant.runtimes.worker import Message, receive, send

SCRIPTS = Path(__file__).resolve().parents[2]


class Remote:
    """A process of a runtime; ends with the `with` block.

    While nothing is asked of it, it sleeps: no thread of it may spin while something else is timed.

    Raises:
        UserError: the runtime is not there, or says what the user can mend.
    """

    def __init__(self, runtime: str, threads: int, *, device: str = "cpu", timed: bool = False) -> None:
        if reason := missing(runtime):
            raise UserError(f"{runtime}: {reason}")
        self._name = runtime
        self._connection, theirs = Pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed at the end of the `with` block
        # Snakemake sets OMP_NUM_THREADS to the number of cores that it was told of.
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": str(threads)}
        command = [python(runtime), "-m", "dinoquant.runtimes.worker", str(theirs.fileno()), runtime, str(threads)]
        with given_processors():
            self._process = subprocess.Popen(
                [*command, device, *(["timed"] if timed else [])],
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

    def ask(self, do: str, array: Array | None = None, **arguments: object) -> tuple[Message, Array | None]:
        """Have a method of `Worker` done and return its answer; raises its error."""
        try:
            send(self._connection, {"do": do, **arguments}, array)
            answer, answered_array = receive(self._connection)
        except (EOFError, ConnectionError):
            self._stderr.seek(0)
            printed = self._stderr.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"{self._name}'s process ended with {self._process.wait()}:\n{printed}") from None
        if "advice" in answer:
            raise UserError(answer["advice"])
        if "error" in answer:
            raise RuntimeError(f"in {self._name}'s process:\n{answer['error']}")
        return answer, answered_array

    def about(self) -> dict[str, str]:
        """Return what `Worker.about` does."""
        return self.ask("about")[0]
