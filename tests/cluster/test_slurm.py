"""The workflow on a real Slurm of one node: its jobs go through it, timings are alone there, failures are explained."""

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SLURM = Path(__file__).with_name("slurm.sh")
PROFILE = ROOT / "profiles" / "slurm"
SMALL = [ROOT / "config" / "demo.yaml", ROOT / "tests" / "small.yaml"]
SUBMITTED = {
    "pack_images",
    "export_fp32",
    "quantize",
    "extract_features",
    "evaluate_accuracy",
    "measure_latency",
    "measure_footprint",
    "measure_machine",
}
TIMED = {"measure_latency", "measure_footprint", "measure_machine"}
# With fp32, which is always there, the fewest jobs that a whole run can have.
VARIANT = "int8-dynamic-linear"
# First poll after so many seconds: about what a job takes. Every poll in vain, or of a failed job, makes the next wait
# 10 s longer, and a run ends only after the wait that has begun.
POLL_SECONDS = 8
FAILURE_POLL_SECONDS = 14

MISSING = [
    command
    for command in ("sbatch", "slurmctld", "slurmd", "munged")
    if not shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no Slurm here (apt-get install slurm-wlm munge): {MISSING}")


@dataclass(frozen=True)
class Job:
    """What Slurm's controller knows about a finished job; times in whole seconds."""

    rule: str
    state: str
    start: datetime
    end: datetime
    cpus: int
    exclusive: bool


@dataclass(frozen=True)
class Cluster:
    """A running cluster: the environment in which its commands come first on PATH."""

    env: Mapping[str, str]

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it says."""
        return subprocess.run(command, env=self.env, check=True, text=True, stdout=subprocess.PIPE, timeout=30).stdout

    def jobs(self) -> list[Job]:
        """Return the jobs that the controller has seen so far."""
        return [
            _job(line) for line in self.ask("scontrol", "show", "job", "--oneliner").splitlines() if "JobId=" in line
        ]

    def snakemake(self, directory: Path, poll: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the workflow in a directory with the cluster's profile, stdout and stderr together."""
        command = [
            Path(sys.executable).with_name("snakemake"),
            *("--workflow-profile", PROFILE),
            *("--directory", directory),
            *("--slurm-init-seconds-before-status-checks", str(poll)),
            *arguments,
        ]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500
        )


def _job(line: str) -> Job:
    fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
    return Job(
        rule=re.sub(r"^rule_|_wildcards_.*$", "", fields["Comment"]),
        state=fields["JobState"],
        start=datetime.fromisoformat(fields["StartTime"]),
        end=datetime.fromisoformat(fields["EndTime"]),
        cpus=int(fields["NumCPUs"]),
        exclusive=fields["OverSubscribe"] == "NO",
    )


def _slurm(action: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    # To a file, not a pipe: the daemons that `start` leaves behind would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [SLURM, action, folder], env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT, timeout=120
        )
        output.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, output.read())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets; afterwards, whatever happened, nothing runs in it any more."""
    path = Path(tempfile.mkdtemp(prefix="slurm-"))
    yield path
    _slurm("stop", path)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster for all tests of this file; stopping it must leave no daemon behind."""
    path = Path(tempfile.mkdtemp(prefix="slurm-"))
    started = _slurm("start", path)
    assert started.returncode == 0, started.stdout
    yield Cluster({**os.environ, "PATH": f"{path}/bin:{os.environ['PATH']}"})
    stopped = _slurm("stop", path)
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert _slurm("status", path).stdout.count("not running") == 3
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def directory(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a small run on the cluster that has ended well."""
    directory = tmp_path_factory.mktemp("run")
    presets = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["variants"]
    overlay = directory / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"variants": dict.fromkeys(presets.keys() - {"fp32", VARIANT})}))
    run = cluster.snakemake(directory, POLL_SECONDS, "--configfile", *SMALL, overlay)
    assert run.returncode == 0, run.stdout
    return directory


def _summary(directory: Path) -> list[dict[str, str]]:
    with (directory / "results" / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_results_are_complete(directory: Path) -> None:
    assert (directory / "results" / "report.html").exists()
    rows = _summary(directory)

    assert [row["variant"] for row in rows] == ["fp32", VARIANT]
    for column in (
        "latency_p50_ms",
        "speedup",
        "size_mb",
        "peak_rss_mb",
        "knn_top1",
        "cosine_mean",
        "quantized_modules",
    ):
        assert all(row[column] for row in rows), column


def test_large_jobs_go_through_slurm_and_small_ones_do_not(cluster: Cluster, directory: Path) -> None:
    jobs = cluster.jobs()

    assert {job.rule for job in jobs} == SUBMITTED
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert cluster.ask("squeue", "--noheader") == ""


def test_timings_are_alone_on_their_node(cluster: Cluster, directory: Path) -> None:
    jobs = cluster.jobs()
    timings = [job for job in jobs if job.rule in TIMED]

    assert {job.rule for job in timings} == TIMED
    for timing in timings:
        assert timing.exclusive
        others = [job for job in jobs if job is not timing]
        assert not [job for job in others if job.start < timing.end and timing.start < job.end]


def test_timings_use_all_processors_of_their_node(cluster: Cluster, directory: Path) -> None:
    processors = int(cluster.ask("sinfo", "--noheader", "--format=%c"))

    assert {row["threads"] for row in _summary(directory)} == {str(processors)}


def test_failure_shows_its_message_and_its_logs(cluster: Cluster, tmp_path: Path) -> None:
    checkpoint = tmp_path / "broken.pth"
    checkpoint.write_bytes(b"not a checkpoint")
    overlay = tmp_path / "broken.yaml"
    overlay.write_text(yaml.safe_dump({"model": {"checkpoint": str(checkpoint)}}))

    arguments: list[str | Path] = ["--retries", "0", "--until", "export_fp32", "--configfile", *SMALL, overlay]
    run = cluster.snakemake(tmp_path, FAILURE_POLL_SECONDS, *arguments)

    assert run.returncode != 0
    assert "Error in rule export_fp32" in run.stdout
    assert "SLURM status is: 'FAILED'" in run.stdout
    logs = re.findall(r"\S+\.log", run.stdout.partition("Error in rule export_fp32")[2])
    assert logs
    assert all((tmp_path / log).exists() for log in logs)
    assert "broken.pth" in run.stdout.partition("Error in rule export_fp32")[2]
    assert cluster.ask("squeue", "--noheader") == ""


def test_start_takes_the_next_port_when_one_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = _slurm("start", folder, SLURM_TEST_PORT=str(port))

    assert started.returncode == 0, started.stdout
    assert f"port {port} or {port + 1} is taken" in started.stdout
    assert _slurm("status", folder).returncode == 0


def test_stop_ends_running_jobs_and_daemons(folder: Path) -> None:
    assert _slurm("start", folder).returncode == 0
    process = folder / "process"
    subprocess.run([folder / "bin" / "sbatch", f"--wrap=echo $$ >{process}; exec sleep 600"], check=True, cwd=folder)
    for _ in range(100):
        if process.exists() and process.read_text():
            break
        time.sleep(0.1)
    pid = int(process.read_text())

    assert _slurm("stop", folder).returncode == 0

    assert not Path(f"/proc/{pid}/exe").exists()
    assert _slurm("status", folder).stdout.count("not running") == 3


def test_start_refuses_a_host_name_that_is_not_loopback(folder: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"192.0.2.1 {socket.gethostname()}\n")
    # A mount that only the command inside sees.
    inside: list[str | Path] = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        'mount --bind "$0" /etc/hosts && "$@"',
        hosts,
    ]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here: /etc/hosts cannot be replaced for one command")

    started = subprocess.run([*inside, SLURM, "start", folder], capture_output=True, text=True)

    assert started.returncode == 1
    assert "192.0.2.1" in started.stderr
    assert "/etc/hosts" in started.stderr


def test_start_refuses_a_folder_of_other_things(folder: Path) -> None:
    other = folder / "state" / "precious"
    other.parent.mkdir()
    other.touch()

    started = _slurm("start", folder)

    assert started.returncode == 1
    assert "not empty" in started.stdout
    assert other.exists()
