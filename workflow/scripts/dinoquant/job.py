"""What every script of the workflow shares: its log, its errors, and the record of when it did its real work."""

import ctypes
import errno
import gc
import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dinoquant.errors import UserError
from dinoquant.files import remove_partials

log = logging.getLogger("dinoquant")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Snakemake(Protocol):
    """What this module takes of the object that Snakemake hands to a script."""

    log: Sequence[str]
    rule: str
    output: Iterable[str]


@contextmanager
def job(snakemake: Snakemake) -> Iterator[None]:
    """Run a script's body with logging to its ``log:`` file and to stderr; end with status 1 and a readable error.

    The file gets everything, with time stamps, library warnings and tracebacks; stderr gets the messages only.
    """
    _set_up_logging(Path(snakemake.log[0]), snakemake.rule)
    # A job is a short process that imports a great many objects and keeps them. Collecting garbage among them, again
    # and again and once more at exit, takes about a fifth of PyTorch's import and half of its exit: so scripts import
    # what needs PyTorch in the body.
    gc.set_threshold(100_000)
    end_with_parent()
    try:
        for path in snakemake.output:
            remove_partials(path)
        yield
    except UserError as error:
        log.error("%s", error)
        sys.exit(1)
    except OSError as error:
        log.debug("traceback", exc_info=True)
        log.error("%s%s", error, _advice(error))
        sys.exit(1)
    except Exception:
        log.exception("unexpected error: please report it with this log")
        sys.exit(1)
    finally:
        end_with_parent(0)
        if "triton" not in sys.modules:  # which timm brings along, and which reports all that is left as leaked
            gc.freeze()


@contextmanager
def span(name: str) -> Iterator[None]:
    """Record in the log when the work called ``name`` began and ended (Unix time, seconds).

    `tests/bench/overhead.py` adds these up: wall time outside all spans is what the machinery costs.
    """
    start = time.time()
    try:
        yield
    finally:
        record_span(name, start, time.time())


def record_span(name: str, start: float, end: float) -> None:
    """Record in the log when work that another process did began and ended."""
    log.debug("span %s %.6f %.6f", name, start, end)


def end_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal once its parent has died, or no longer if the number is 0.

    Snakemake that is killed cannot tell its jobs. They would go on beside those of the next run, and write what they
    were once asked for over the results of a config that has changed since. Only Linux can do this: prctl(2).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


class _StderrFormatter(logging.Formatter):
    """Messages behind the rule's name, further lines indented: workflow/console tells by this which lines are one."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, and the traceback of an error that nobody expected."""
        start = "error in " if record.levelno >= logging.ERROR else ""
        return f"{start}{self.rule}: {super().format(record)}".replace("\n", "\n  ")


def _set_up_logging(path: Path, rule: str) -> None:
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.INFO)
    to_stderr.setFormatter(_StderrFormatter(rule))
    log.handlers = [to_file, to_stderr]
    log.setLevel(logging.DEBUG)
    log.propagate = False
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(to_file)


def _advice(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "\nThe disk is full. Free some space and run the same command again: finished results are kept."
    if error.errno in (errno.EROFS, errno.EACCES):
        return "\nThe folder cannot be written to. Make it writable, or run with --directory DIR, and try again."
    return ""
