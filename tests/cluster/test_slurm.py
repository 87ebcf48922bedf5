"""The workflow on a real Slurm of two nodes: who runs where, what is alone, and what becomes of jobs in trouble."""

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from dinoquant.data.generate import generate
from dinoquant.machine import cuda_devices
from httpserver import serve

ROOT = Path(__file__).parents[2]
SLURM = Path(__file__).with_name("slurm.sh")
JOBS = Path(__file__).with_name("jobs.smk")
PROFILE = ROOT / "profiles" / "slurm"
SMALL = [ROOT / "config" / "demo.yaml", ROOT / "tests" / "small.yaml"]
SUBMITTED = {
    "pack_images",
    "export_fp32",
    "quantize",
    "extract_features",
    "extract_attention",
    "evaluate_probe",
    "measure_patches",
    "measure_latency",
    "measure_scaling",
    "measure_footprint",
    "measure_energy",
    "measure_machine",
}
GROUPED = "accuracy_evaluate_accuracy"  # the group, and the rule of its members
TIMED = {"measure_latency", "measure_scaling", "measure_footprint", "measure_energy", "measure_machine"}
# With fp32, which is always there, the fewest jobs that a whole run can have.
VARIANT = "int8-dynamic-linear"
# First poll after so many seconds: about what a job takes. Every poll in vain, or of a failed job, makes the next wait
# 10 s longer, and a run ends only after the wait that has begun.
POLL_SECONDS = 8
FAILURE_POLL_SECONDS = 14
WAIT_SECONDS = 60  # for a job to begin or to end

MISSING = [
    command
    for command in ("sbatch", "slurmctld", "slurmd", "munged")
    if not shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no Slurm here (apt-get install slurm-wlm munge): {MISSING}")


@dataclass(frozen=True)
class Job:
    """What Slurm's controller knows about a job that has ended; times in whole seconds."""

    rule: str
    name: str
    comment: str
    state: str
    folder: Path
    node: str
    start: datetime
    end: datetime
    memory_mb: int
    minutes: int
    exclusive: bool


class Cluster:
    """A running cluster."""

    def __init__(self, folder: Path) -> None:
        # Its commands come first on PATH.
        self.env: Mapping[str, str] = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it says."""
        return subprocess.run(command, env=self.env, check=True, text=True, stdout=subprocess.PIPE, timeout=30).stdout

    def jobs(self, folder: Path | None = None) -> list[Job]:
        """Return the ended jobs, all of them or those of the runs in a folder, first come first."""
        command = ("scontrol", "show", "job", "--oneliner")
        _wait(lambda: "JobState=COMPLETING" not in self.ask(*command), "end of the jobs whose processes are ending")
        lines = self.ask(*command).splitlines()
        jobs = [_job(line) for line in lines if "JobId=" in line and not re.search("JobState=(PENDING|RUNNING)", line)]
        return sorted((job for job in jobs if folder in (None, job.folder)), key=lambda job: job.start)

    def start(self, folder: Path, poll: int, *arguments: str | Path) -> "Run":
        """Begin a run of the workflow, or of the one named by --snakefile, in a folder with the cluster's profile."""
        command = [
            Path(sys.executable).with_name("snakemake"),
            *("--workflow-profile", PROFILE),
            *("--directory", folder),
            *("--slurm-init-seconds-before-status-checks", str(poll)),
            *arguments,
        ]
        output = folder / "output.txt"
        with output.open("w") as stream:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                # A shell has what it starts in the background ignore Ctrl-C, and so all that comes of it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return Run(process, folder, output)


@dataclass(frozen=True)
class Run:
    """A run of Snakemake that has begun, its stdout and stderr together in a file."""

    process: subprocess.Popen[bytes]
    folder: Path
    output: Path

    def end(self) -> tuple[int, str]:
        """Wait for it; return its exit status and what it printed."""
        return self.process.wait(timeout=400), self.output.read_text()


def _job(line: str) -> Job:
    fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
    days, clock = re.fullmatch(r"(?:(\d+)-)?(.*)", fields["TimeLimit"]).groups()
    hours, minutes, _ = map(int, clock.split(":"))
    number, unit = re.fullmatch(r"([\d.]+)([MG])", fields["MinMemoryNode"]).groups()
    return Job(
        rule=re.sub(r"^(rule|group)_|_wildcards_.*$", "", fields["Comment"]),
        name=fields["JobName"],
        comment=fields["Comment"],
        state=fields["JobState"],
        folder=Path(fields["WorkDir"]),
        node=fields["NodeList"],
        start=datetime.fromisoformat(fields["StartTime"]),
        end=datetime.fromisoformat(fields["EndTime"]),
        memory_mb=round(float(number) * {"M": 1, "G": 1024}[unit]),
        minutes=(int(days or 0) * 24 + hours) * 60 + minutes,
        exclusive=fields["OverSubscribe"] == "NO",
    )


def _wait(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"after {WAIT_SECONDS} s there is no {what}"
        time.sleep(0.2)


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
    yield Cluster(path)
    stopped = _slurm("stop", path)
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert _slurm("status", path).stdout.count("not running") == 4
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def troubles(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of jobs in trouble. It takes as long as Slurm's shortest time limit, so the real run goes on beside it."""
    folder = tmp_path_factory.mktemp("troubles")
    return cluster.start(folder, FAILURE_POLL_SECONDS, "--snakefile", JOBS)


@pytest.fixture(scope="module")
def directory(cluster: Cluster, troubles: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a small run on the cluster that has ended well."""
    directory = tmp_path_factory.mktemp("run")
    overlay = directory / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"presets": ["fp32", VARIANT], "latency": {"thread_scaling": [1]}}))
    status, output = cluster.start(directory, POLL_SECONDS, "--configfile", *SMALL, overlay).end()
    assert status == 0, output
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
    jobs = cluster.jobs(directory)

    assert {job.rule for job in jobs} == SUBMITTED | {GROUPED}
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert {job.node for job in jobs} <= {"cpu1", "gpu1"}


def test_small_jobs_share_a_place_in_the_queue(cluster: Cluster, directory: Path) -> None:
    assert [job.rule for job in cluster.jobs(directory)].count(GROUPED) == 1
    assert len(list((directory / "results" / "accuracy").iterdir())) == 2


def test_timings_are_alone_on_their_node(cluster: Cluster, directory: Path, troubles: Run) -> None:
    troubles.end()
    jobs = cluster.jobs()
    timings = [job for job in jobs if job.folder == directory and job.rule in TIMED]

    assert {job.rule for job in timings} == TIMED
    for timing in timings:
        assert timing.exclusive
        others = [job for job in jobs if job is not timing and job.node == timing.node]
        assert not [job for job in others if job.start < timing.end and timing.start < job.end]


def test_timings_use_all_processors_of_their_node(cluster: Cluster, directory: Path) -> None:
    processors = set(cluster.ask("sinfo", "--Node", "--noheader", "--format=%c").split())

    assert {row["threads"] for row in _summary(directory)} == processors


def test_jobs_have_names_that_a_person_can_find(cluster: Cluster, directory: Path) -> None:
    jobs = cluster.jobs(directory)

    assert len({job.name for job in jobs}) == 1
    assert jobs[0].name.startswith("dinoquant_")
    assert {job.comment for job in jobs if job.rule == "quantize"} == {f"rule_quantize_wildcards_{VARIANT}"}


def test_downloads_stay_on_the_head_node(cluster: Cluster, tmp_path: Path) -> None:
    archive, overlay = tmp_path / "archive.zip", tmp_path / "overlay.yaml"
    generate(archive, classes=2, train_per_class=1, val_per_class=1, seed=0)
    with serve(archive.read_bytes()) as server:
        overlay.write_text(yaml.safe_dump({"dataset": {"source": server.url}}))
        status, output = cluster.start(tmp_path, 1, "download", "--configfile", *SMALL, overlay).end()

    assert status == 0, output
    (downloaded,) = (tmp_path / "resources" / "datasets").glob("data-*.zip")
    assert downloaded.read_bytes() == archive.read_bytes()
    assert cluster.jobs(tmp_path) == []


def test_gpu_jobs_go_to_the_node_with_a_gpu(cluster: Cluster, troubles: Run) -> None:
    status, output = troubles.end()

    assert status == 0, output
    assert (troubles.folder / "gpu.txt").read_text() == "gpu1 0\n"  # 0: CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("rule", "state", "words"),
    # OUT_OF_MEMORY where cgroups see to it.
    [("over_its_memory", "FAILED", "exceeded memory limit"), ("over_its_time", "TIMEOUT", "DUE TO TIME LIMIT")],
)
def test_a_job_over_its_limit_is_named_and_tried_again_with_more(
    rule: str, state: str, words: str, cluster: Cluster, troubles: Run
) -> None:
    _, output = troubles.end()
    first, second = [job for job in cluster.jobs(troubles.folder) if job.rule == rule]

    assert (first.state, second.state) == (state, "COMPLETED")
    assert (second.memory_mb, second.minutes) > (first.memory_mb, first.minutes)
    assert f"Error in rule {rule}" in output
    assert f"SLURM status is: '{state}'" in output
    assert words in output.partition(f"Error in rule {rule}")[2]
    assert (troubles.folder / f"{rule.rpartition('_')[2]}.txt").read_text() == "done\n"


@dataclass(frozen=True)
class Failures:
    """What three runs that met with failures printed: exit status and output."""

    gpu: tuple[int, str]
    node: tuple[int, str]
    interrupted: tuple[int, str]
    orphan: int
    """The process id that the interrupted run's job had."""


@pytest.fixture(scope="module")
def failures(cluster: Cluster, directory: Path, troubles: Run, tmp_path_factory: pytest.TempPathFactory) -> Failures:
    """Three runs side by side: one wants a GPU that PyTorch cannot use, one loses its node, one is interrupted."""
    troubles.end()
    overlay = directory / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(yaml.safe_load(overlay.read_text()) | {"devices": ["cpu", "cuda"]}))
    target = "results/latency/cuda/fp32/batch1.json"
    gpu = cluster.start(directory, FAILURE_POLL_SECONDS, target, "--configfile", *SMALL, overlay)
    interrupted = cluster.start(tmp_path_factory.mktemp("endless"), 8, "--snakefile", JOBS, "endless")
    node = cluster.start(tmp_path_factory.mktemp("node"), FAILURE_POLL_SECONDS, "--snakefile", JOBS, "loses_its_node")
    pid = interrupted.folder / "endless.pid"
    _wait(lambda: pid.exists() and pid.read_text(), "job that is to be interrupted")
    _wait((node.folder / "node.txt").exists, "job that is to lose its node")
    interrupted.process.send_signal(signal.SIGINT)
    ended = interrupted.end()
    _wait(  # a job that was cancelled stays in the queue, as completing, until its processes have ended
        lambda: "rule_endless" not in cluster.ask("squeue", "--noheader", "--format=%k").splitlines(), "end of that job"
    )
    cluster.ask("scontrol", "update", "NodeName=cpu1", "State=DOWN", "Reason=test")
    try:
        return Failures(gpu.end(), node.end(), ended, int(pid.read_text()))
    finally:
        cluster.ask("scontrol", "update", "NodeName=cpu1", "State=RESUME")
        # Without cgroups Slurm does not see that the steps of these jobs outlive them; they would stay behind here.
        subprocess.run(["pkill", "-KILL", "-f", f"{JOBS} --target-jobs (loses_its_node|endless)"], check=False)


@pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU: the job would not fail")
def test_failure_shows_its_message_and_its_logs(cluster: Cluster, directory: Path, failures: Failures) -> None:
    status, output = failures.gpu

    assert status != 0
    report = output.partition("Error in rule measure_latency")[2]
    assert "SLURM status is: 'FAILED'" in report
    logs = re.findall(r"\S+\.log", report)
    assert logs
    assert all((directory / log).exists() for log in logs)
    assert "devices lists cuda, but PyTorch" in report
    jobs = [job for job in cluster.jobs(directory) if job.state == "FAILED"]
    assert [(job.rule, job.node, job.exclusive) for job in jobs] == [("measure_latency", "gpu1", True)] * 2
    assert [(job.memory_mb, job.minutes) for job in jobs] == [(4000, 60), (8000, 120)]  # as the profile says


def test_a_job_that_loses_its_node_is_made_again_elsewhere(cluster: Cluster, failures: Failures) -> None:
    status, output = failures.node
    first, second = [job for job in cluster.jobs() if job.rule == "loses_its_node"]

    assert status == 0, output
    assert [(job.state, job.node) for job in (first, second)] == [("NODE_FAIL", "cpu1"), ("COMPLETED", "gpu1")]
    assert "failed due to a node failure" in output
    assert (first.folder / "node.txt").read_text() == "gpu1\n"


def test_interrupting_leaves_no_job_behind(cluster: Cluster, failures: Failures) -> None:
    status, output = failures.interrupted

    assert status != 0
    assert "Terminating processes on user request" in output
    assert not Path(f"/proc/{failures.orphan}/exe").exists()


def test_start_takes_the_next_port_when_one_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = _slurm("start", folder, SLURM_TEST_PORT=str(port))

    assert started.returncode == 0, started.stdout
    assert f"one of the ports {port} to {port + 2} is taken" in started.stdout
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
    assert _slurm("status", folder).stdout.count("not running") == 4


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
