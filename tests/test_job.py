"""What a person sees of a job that fails, and what its log keeps."""

import errno
import gc
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dinoquant.errors import UserError
from dinoquant.job import job, log, span


@pytest.fixture
def snakemake(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A stand-in for Snakemake's object; what `job` sets for the whole process is put back afterwards."""
    before = gc.get_threshold(), list(log.handlers), log.level, log.propagate
    yield SimpleNamespace(log=[str(tmp_path / "job.log")], rule="quantize", output=[str(tmp_path / "model.pt")])
    gc.set_threshold(*before[0])
    gc.unfreeze()
    log.handlers, log.level, log.propagate = before[1:]
    logging.captureWarnings(False)
    logging.getLogger("py.warnings").handlers.clear()


def fail(snakemake: SimpleNamespace, error: Exception) -> str:
    """Let a job end with an error and return its log."""
    with pytest.raises(SystemExit) as end, job(snakemake):
        raise error
    assert end.value.code == 1
    return Path(snakemake.log[0]).read_text()


def test_user_error_is_a_message_without_a_traceback(
    snakemake: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fail(snakemake, UserError("dataset.source: there is no such file"))
    assert capsys.readouterr().err == "error in quantize: dataset.source: there is no such file\n"
    assert "dataset.source" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "--directory"), (errno.EIO, "")]
)
def test_system_error_comes_with_advice(
    snakemake: SimpleNamespace, capsys: pytest.CaptureFixture[str], number: int, advice: str
) -> None:
    text = fail(snakemake, OSError(number, os.strerror(number)))
    shown = capsys.readouterr().err
    assert os.strerror(number) in shown
    assert advice in shown
    assert "Traceback" not in shown
    assert "Traceback" in text


def test_what_a_killed_job_left_is_removed(snakemake: SimpleNamespace, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    names = (f".model.{dead.pid}.partial.pt", f".model.{os.getppid()}.partial.pt", f".info.{dead.pid}.partial.json")
    mine, of_one_alive, others = (tmp_path / name for name in names)
    for file in (mine, of_one_alive, others):
        file.touch()
    with job(snakemake):
        pass
    assert not mine.exists()
    assert of_one_alive.exists()
    assert others.exists()


JOB = """
import time, types
from dinoquant.job import job
with job(types.SimpleNamespace(log=["job.log"], rule="sleeper", output=[])):
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_job_ends_with_its_scheduler(tmp_path: Path) -> None:
    scheduler = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "workflow/scripts")}
    command = [sys.executable, "-c", scheduler, JOB]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        start = time.monotonic()
        process.kill()
        assert process.stdout.read() == ""  # ends when nobody has it open any more: not before the job has ended
    assert time.monotonic() - start < 30


def test_unexpected_error_keeps_its_traceback(snakemake: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ZeroDivisionError" in fail(snakemake, ZeroDivisionError("by zero"))
    assert "Traceback" in capsys.readouterr().err


def test_warnings_and_spans_go_to_the_file_only(snakemake: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with job(snakemake), span("measure"):
        warnings.warn("deprecated", stacklevel=1)
        log.info("digest")
    text = Path(snakemake.log[0]).read_text()
    assert "deprecated" in text
    assert "DEBUG span measure " in text
    assert capsys.readouterr().err == "quantize: digest\n"
