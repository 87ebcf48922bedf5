"""The processes of a timing: what one answers, what it says when it cannot, and that none outlives the job."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dinoquant.errors import UserError
from dinoquant.machine import PROCESSORS
from dinoquant.measure import process
from dinoquant.measure.intervals import combine
from dinoquant.measure.process import Request, in_process, repeat
from dinoquant.measure.rounds import TimingProtocol
from dinoquant.network import architecture
from dinoquant.network.export import export
from dinoquant.recipes.base import Quantized

PROTOCOL = TimingProtocol(rounds=6, processes=2, precision=0.0, block_seconds=0.02, warmup_seconds=0.2, seed=0)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """What is asked of a process: a small fp32 model beside itself."""
    path, name = tmp_path_factory.mktemp("fp32") / "model.pt", "test_vit.r160_in1k"
    network = architecture.seeded(name, None, 0)
    info = architecture.info(network, name, "imagenet", substitute="seeded weights")
    export(Quantized(network, asked=(), became={}), path, "fp32", {"recipe": "fp32"}, info)
    return Request(str(path), str(path), "cpu", threads=1, batch_size=2, protocol=PROTOCOL)


def test_processes_share_the_rounds_of_a_timing(asked: Request) -> None:
    before = time.time()
    parts = repeat(lambda number, counts: in_process(asked, number, counts), PROTOCOL)
    assert (
        before < parts[0]["started"] < parts[0]["finished"] < parts[1]["started"] < parts[1]["finished"] < time.time()
    )
    assert parts[0]["fixed"]["interop_threads"] == 1
    assert parts[0]["runtime"] == {"name": "torchscript"}
    assert parts[0]["machine"]["torch"]
    assert parts[0]["calls_per_block"] == parts[1]["calls_per_block"]
    assert [len(part["watch"]["probe_ms"]) for part in parts] == [4, 4]
    result = combine(parts, batch_size=2, protocol=PROTOCOL)
    assert result["speedup"] == pytest.approx(1, abs=0.5)
    assert 0 < result["preprocess_p50_ms"] < result["end_to_end_p50_ms"]


def test_what_the_user_can_mend_is_said_in_its_words(asked: Request, tmp_path: Path) -> None:
    broken = tmp_path / "model.pt"
    broken.write_text("not a model")
    with pytest.raises(UserError, match=r"model\.pt is not a model of this workflow: expected a TorchScript file"):
        in_process(replace(asked, model=str(broken)), 0, None)


def test_what_nobody_expected_comes_with_its_traceback(asked: Request) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1:(.|\n)*ZeroDivisionError"):
        in_process(replace(asked, protocol=replace(PROTOCOL, processes=0)), 0, None)


@pytest.mark.skipif(len(PROCESSORS or ()) < 2, reason="takes two processors")
def test_what_binds_threads_leaves_a_peer_all_processors(asked: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by a process that PyTorch has bound to one processor, a runtime was once timed on that one."""
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    part = in_process(replace(asked, threads=2), 0, None)
    given = sorted(PROCESSORS or ())
    assert part["fixed"]["processors"] == given
    program = """
import json, os
from dinoquant import machine  # before PyTorch, as in the workflow's scripts
from dinoquant.runtimes import torchscript  # brings PyTorch
from dinoquant.runtimes.remote import Remote
with Remote("torchscript", 2, timed=True) as peer:
    print(json.dumps([sorted(os.sched_getaffinity(0)), peer.about()]))
"""
    environment = {**os.environ, "PYTHONPATH": str(process.SCRIPTS)}
    own, peer = json.loads(subprocess.check_output([sys.executable, "-c", program], env=environment))
    assert len(own) == 1, "nothing was bound: the test tests nothing"
    assert (peer["threads"], peer["processors"]) == ("2", ", ".join(map(str, given)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_no_process_outlives_the_job(asked: Request) -> None:
    """A job that is killed leaves nothing that disturbs the timings of the next run."""
    forever = replace(asked, protocol=replace(PROTOCOL, block_seconds=60.0))
    names = "Request, TimingProtocol, in_process"
    program = f"from dinoquant.measure.process import {names}; in_process({forever!r}, 0, None)"
    job = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(process.SCRIPTS)})
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    deadline = time.monotonic() + 60
    while not (child := children.read_text().split()) or not _measures(child[0]):
        assert time.monotonic() < deadline, "it never began"
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    while Path("/proc", child[0]).exists():
        assert time.monotonic() < deadline, "it went on"
        time.sleep(0.05)


def _measures(pid: str) -> bool:
    """Say whether the process has come as far as PyTorch."""
    return "libtorch" in Path("/proc", pid, "maps").read_text()
