"""The console of `make demo`: what it shows of a run, and in which words it ends."""

import json
import subprocess
import sys
from pathlib import Path

from dinoquant.job import _StderrFormatter

CONSOLE = Path(__file__).parents[1] / "workflow/console"
# The plugin takes over its process's stderr, so it gets a process.
PROGRAM = """
import json, logging, os, sys, time
clock = 0.0
time.monotonic = lambda: clock
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_logger_plugin_dinoquant import LogHandler
handler = LogHandler(None, None)
for fields in json.loads(sys.argv[1]):
    if "stderr" in fields:
        os.write(2, fields["stderr"].encode())
        continue
    clock += fields.pop("after", 0)
    level, message = fields.pop("level", logging.INFO), fields.pop("message", "")
    record = logging.LogRecord("snakemake", level, "", 0, message, (), None)
    if "event" in fields:
        record.event = LogEvent(fields.pop("event"))
    record.__dict__.update(fields)
    handler.emit(record)
handler.close()
os.write(2, b"stderr is back")
"""


def shown(folder: Path, *events: dict) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(events)],
        cwd=folder,
        env={"PYTHONPATH": str(CONSOLE)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr.endswith("stderr is back")
    return done.stderr.removesuffix("stderr is back")


def started(number: int, rule: str, **fields: object) -> dict:
    defaults = {"event": "job_info", "jobid": number, "rule_name": rule, "wildcards": {}, "output": [], "log": []}
    return defaults | {"threads": 1} | fields


def finished(number: int, after: float = 1.0) -> dict:
    return {"event": "job_finished", "job_id": number, "after": after}


STATS = {"event": "run_info", "stats": {"quantize": 20, "total": 20}}


def test_progress_is_a_line_for_each_quarter_where_there_is_no_terminal(tmp_path: Path) -> None:
    events = [event for number in range(16) for event in (started(number, "quantize"), finished(number))]
    lines = shown(tmp_path, {"event": "run_info", "stats": {"quantize": 16, "total": 16}}, *events).splitlines()
    assert lines[0].startswith("16 jobs")
    assert [line.split(",")[0].strip() for line in lines[1:]] == [f"{percent} %" for percent in range(25, 100, 25)]
    assert "left" not in lines[1]  # after four jobs nothing is known
    assert "0:12, about 0:04 left" in lines[-1]


def test_the_time_left_counts_processors_and_takes_jobs_of_other_rules_for_short(tmp_path: Path) -> None:
    # After five of six timings of 10 s on two processors: one more, and twelve jobs of about 10 s, two at a time.
    expected = {"event": "run_info", "stats": {"measure_machine": 6, "extract_features": 12}}
    timings = [(started(n, "measure_machine", threads=2), finished(n, after=10.0)) for n in range(6)]
    lines = shown(tmp_path, expected, *(event for timing in timings for event in timing)).splitlines()
    assert "0:50, about 1:10 left" in lines[-1]


def test_messages_of_jobs_are_shown_and_the_noise_of_libraries_is_kept_in_a_file(tmp_path: Path) -> None:
    message = "quantize: first line\n  second line\n[W1125] Warning: deprecated\nerror in quantize: comes at the end\n"
    text = shown(tmp_path, STATS, {"stderr": message})
    assert text.splitlines()[1:] == ["quantize: first line", "  second line"]
    assert (tmp_path / "logs/console.log").read_text() == message


def test_a_failure_comes_last_and_in_the_job_s_own_words(tmp_path: Path) -> None:
    (tmp_path / "pack.log").write_text(
        "2026-11-25 20:40:00,123 INFO hello\n2026-11-25 20:40:01,123 ERROR x.zip is no zip file.\nFetch it again.\n"
    )
    failed = {"event": "job_error", "jobid": 1, "rule_name": "quantize", "log": ["pack.log"]}
    text = shown(
        tmp_path,
        STATS,
        started(1, "quantize", log=["pack.log"], wildcards={"variant": "int8-smooth"}),
        failed,
        {"event": "error", "level": 40, "message": "RuleException:\nCalledProcessError in file /a/b.smk"},
        {"event": "error", "level": 40, "message": "WorkflowError:\nAt least one job did not complete."},
        started(2, "quantize"),
        finished(2),
    )
    assert text.endswith("\nquantize: int8-smooth failed. x.zip is no zip file.\nFetch it again.\nLog: pack.log\n")
    assert "CalledProcessError" not in text
    assert "At least one job" not in text


def test_an_error_of_the_config_is_shown_without_python_s_lines(tmp_path: Path) -> None:
    message = 'WorkflowError in file "Snakefile", line 27:\n  - latency: unknown key\n  File "Snakefile", line 27'
    assert "unknown key" in (text := shown(tmp_path, {"event": "error", "level": 40, "message": message}))
    assert '  File "' not in text


def test_the_fastest_variant_so_far_is_shown_before_the_end(tmp_path: Path) -> None:
    events = []
    for number, (variant, speedup) in enumerate([("fp32", 9.0), ("bf16", 3.0), ("int8", 2.0), ("smooth", 5.0)]):
        path = tmp_path / f"{variant}.json"
        timing = {"variant": variant, "device": "cpu", "batch_size": 1, "latency_p50_ms": 4.0, "speedup": speedup}
        path.write_text(json.dumps(timing))
        events += [started(number, "measure_latency", output=[path.name]), finished(number)]
    lines = [line for line in shown(tmp_path, STATS, *events).splitlines() if line.startswith("so far")]
    assert lines == [
        "so far: bf16 takes 4.0 ms on cpu at batch 1, 3.0 times as fast as fp32",
        "so far: smooth takes 4.0 ms on cpu at batch 1, 5.0 times as fast as fp32",
    ]


def test_further_lines_of_a_job_s_message_are_indented() -> None:
    import logging

    record = logging.LogRecord("dinoquant", logging.ERROR, "", 0, "one\ntwo", (), None)
    assert _StderrFormatter("quantize").format(record) == "error in quantize: one\n  two"
