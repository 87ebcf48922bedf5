"""Snakemake's console as one line that moves, then warnings, failures and the answer; all else is in the log files.

`make demo` and `make run` use it. snakemake-logger-plugin-rich was tried: it lists all jobs, shows a bar for each of
twenty rules, knows no time left, and leaves a failed job's own message in the middle of a page.
"""

import json
import os
import re
import select
import statistics
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from logging import WARNING, LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from tqdm import tqdm

JOB_STDERR = Path("logs/console.log")
PLAIN_STEPS = 25  # percent between lines of progress where the output is no terminal
CLEARLY_FASTER = 1.1
FEWEST_TIMES = 5  # of finished jobs, for a guess at the time left
# A job's log ends with its error (`dinoquant.job`), which may have several lines.
LAST_ERROR = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ ERROR (.*?)(?=^\d{4}-\d\d-\d\d |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Job:
    """A job that runs: its rule, what it works on, processors, files, and when it started (monotonic seconds)."""

    rule: str
    wildcards: str
    threads: int
    outputs: list[str]
    logs: list[str]
    started: float

    def __str__(self) -> str:
        return f"{self.rule.replace('_', ' ')}{': ' if self.wildcards else ''}{self.wildcards}"


class LogHandler(LogHandlerBase):
    """Shows progress and what matters of a run; what jobs write to stderr goes to a file, but for their messages."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.expected: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.threads: dict[str, int] = {}
        self.running: dict[int, Job] = {}
        self.failures: list[str] = []
        self.fastest = 1.0
        self.steps_shown = 0
        self.started = time.monotonic()
        # Jobs inherit this process's stderr. Behind a pipe they see no terminal, so that no bar of theirs moves too.
        self.terminal = os.fdopen(os.dup(2), "w", buffering=1)
        self.reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        self.closed = threading.Event()
        self.reader = threading.Thread(target=self._read_stderr, daemon=True)
        self.reader.start()
        self.bar = tqdm(file=self.terminal, bar_format="{desc}", leave=False, disable=not self.terminal.isatty())

    def emit(self, record: LogRecord) -> None:
        """Take one event of Snakemake's."""
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self.expected = Counter({rule: count for rule, count in record.stats.items() if rule != "total"})
            self.write(f"{self.expected.total()} jobs; the log of each is below logs/")
        elif event == LogEvent.JOB_INFO:
            wildcards = ", ".join(record.wildcards.values())
            files = (list(record.output), list(record.log))
            self.running[record.jobid] = Job(record.rule_name, wildcards, record.threads, *files, time.monotonic())
            self.threads[record.rule_name] = record.threads
        elif event == LogEvent.JOB_FINISHED:
            self._finish(self.running.pop(record.job_id, None))
        elif event == LogEvent.JOB_ERROR:
            self._fail(self.running.pop(record.jobid, None) or Job(record.rule_name, "", 1, [], list(record.log), 0))
        elif event == LogEvent.ERROR:
            self._show_error(record.getMessage())
        elif event is None and (record.levelno == WARNING or record.getMessage().startswith("Nothing to be done")):
            self.write(record.getMessage())
        self._refresh()

    def write(self, text: str) -> None:
        """Print lines above the one that moves."""
        tqdm.write(text, file=self.terminal)

    def close(self) -> None:
        """Say what failed, last; and give stderr back."""
        if self.closed.is_set():
            return
        os.dup2(self.terminal.fileno(), 2)  # the pipe's last writer is gone, and its reader ends
        self.closed.set()
        self.reader.join(timeout=5)
        self.bar.close()
        if self.failures:
            self.write("\n" + "\n\n".join(self.failures))
        super().close()

    def _finish(self, job: Job | None) -> None:
        if job is None:
            return
        self.done[job.rule] += 1
        self.seconds[job.rule].append(time.monotonic() - job.started)
        if job.rule == "measure_latency":
            self._show_speed(Path(job.outputs[0]))
        percent = 100 * self.done.total() // max(1, self.expected.total())
        if self.bar.disable and percent // PLAIN_STEPS > self.steps_shown and percent < 100:
            self.steps_shown = percent // PLAIN_STEPS
            self.write(self._progress())

    def _show_speed(self, path: Path) -> None:
        """Print a timing that is clearly the fastest so far: the first answer, minutes before the whole one."""
        timing = json.loads(path.read_text(encoding="utf-8"))
        if timing["variant"] != "fp32" and timing["speedup"] > CLEARLY_FASTER * self.fastest:
            self.fastest = timing["speedup"]
            self.write(
                f"so far: {timing['variant']} takes {timing['latency_p50_ms']:.1f} ms on {timing['device']} at batch "
                f"{timing['batch_size']}, {timing['speedup']:.1f} times as fast as fp32"
            )

    def _fail(self, job: Job) -> None:
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in map(Path, job.logs) if path.is_file()]
        errors = [error.strip() for text in texts for error in LAST_ERROR.findall(text)]
        silent = "It ended without a message: it was interrupted or killed. The same command goes on from here."
        message = errors[-1] if errors else silent
        self.failures.append(f"{job} failed. {message}\nLog: {', '.join(job.logs)}")
        self.write(f"{job} failed; jobs that do not need it go on")

    def _show_error(self, message: str) -> None:
        """Print an error that is no job's: of the config, say. Those of jobs come last, in their own words."""
        if not self.failures and not message.startswith("RuleException"):
            self.write("\n".join(line for line in message.splitlines() if not line.startswith('  File "')))

    def _progress(self) -> str:
        done, total = self.done.total(), self.expected.total()
        elapsed = time.monotonic() - self.started
        left = self._seconds_left(elapsed)
        parts = [f"{100 * done // max(1, total):2d} %", f"{done} of {total} jobs", _minutes(elapsed)]
        if left is not None:
            parts.append(f"about {_minutes(left)} left")
        return ", ".join(parts) + f"  {'; '.join(map(str, self.running.values()))}"

    def _seconds_left(self, elapsed: float) -> float | None:
        """Return the seconds that the remaining jobs take if they take as long as others of their rule did.

        Jobs count by the processors that they hold, which are as busy as they have been so far. A rule of which none
        has ended is as long as the median rule and holds one processor: timings, which hold all of them, come early.
        """
        if self.done.total() < FEWEST_TIMES:
            return None
        mean = {rule: statistics.fmean(seconds) for rule, seconds in self.seconds.items()}
        unseen = statistics.median(mean.values())
        ages = [(job, time.monotonic() - job.started) for job in self.running.values()]
        spent = sum(sum(seconds) * self.threads[rule] for rule, seconds in self.seconds.items())
        work = sum(
            (count - self.done[rule]) * mean.get(rule, unseen) * self.threads.get(rule, 1)
            for rule, count in self.expected.items()
        )
        work -= sum(min(age, mean.get(job.rule, unseen)) * job.threads for job, age in ages)
        return work * elapsed / (spent + sum(age * job.threads for job, age in ages))

    def _refresh(self) -> None:
        if self.expected and not self.bar.disable:
            if self.done.total() < self.expected.total():
                self.bar.set_description_str(self._progress()[: self.bar.ncols or 118])
            else:
                self.bar.clear()

    def _read_stderr(self) -> None:
        """Pass on the messages of jobs, which begin with the name of their rule, and keep the rest in a file."""
        rest, shown = "", False
        while True:
            if not select.select([self.reading], [], [], 1.0)[0]:
                self._refresh()
                continue
            chunk = os.read(self.reading, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            JOB_STDERR.parent.mkdir(exist_ok=True)  # in the working directory, into which Snakemake changes first
            with JOB_STDERR.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
            for line in lines:
                shown = line.partition(":")[0] in self.expected or (shown and line.startswith("  "))
                if shown:
                    self.write(line)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
