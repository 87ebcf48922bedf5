"""Kill jobs and schedulers of a small real run at random moments, finish it, and compare with an undisturbed run.

PYTHONPATH=workflow/scripts:tests .venv/bin/python tests/faults/kill.py
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dinoquant.files import sha256
from samples import copy_workflow

# What the images, the weights and the seed decide: everything but timings, and the pages and figures that show them.
DETERMINED = (
    "resources/datasets/*.zip",
    "results/data/*",
    "results/models/*/*",
    "results/features/*.npz",
    "results/accuracy/*.json",
    "results/probe/*.json",
    "results/attention/*.npz",
    "results/patches/*",
)
# Who is killed: a job's script, the scheduler alone (its jobs live on), or all at once, as by a power cut.
VICTIMS = ("job", "job", "scheduler", "everything")
WAIT_SECONDS = (0.2, 10.0)  # from one kill to the next
MOST_WRITES = 8  # or so many files begun, at most
PATIENCE_SECONDS = 60
PARTIAL = re.compile(r"\.partial\b")
LOCKED = "Directory cannot be locked"


def command(*arguments: str) -> list[str]:
    """Return the call of Snakemake on the small config."""
    configs = ["--configfile", "config/demo.yaml", "tests/small.yaml"]
    return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, *configs]


def finish(folder: Path, *targets: str) -> None:
    """Run to the end, undisturbed; free the folder first if a killed scheduler has left it locked."""
    for attempt in (1, 2):
        done = subprocess.run(command(*targets), cwd=folder, text=True, capture_output=True)
        if attempt == 1 and LOCKED in done.stderr:
            subprocess.run(command("--unlock"), cwd=folder, check=True, capture_output=True)
        else:
            break
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file whose content is determined, under its final name."""
    found = {}
    for name in names(folder):
        if not PARTIAL.search(name) and any(Path(name).match(pattern) for pattern in DETERMINED):
            # A scheduler that is still at work may remove it at any moment.
            with suppress(FileNotFoundError):
                found[name] = sha256(folder / name)
    return found


def partials(folder: Path) -> list[str]:
    """Return the half-written files that lie about."""
    return [name for name in names(folder) if PARTIAL.search(name)]


def names(folder: Path) -> list[str]:
    """Return all that the run has left for people and for later jobs."""
    # Unlike Path.rglob, os.walk does not mind folders that vanish.
    walks = (os.walk(folder / part) for part in ("resources", "results"))
    return sorted(
        str((Path(parent) / file).relative_to(folder)) for walk in walks for parent, _, files in walk for file in files
    )


def processes(folder: Path) -> list[psutil.Process]:
    """Return what runs in the folder, whoever its parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()) == folder:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def scripts(folder: Path) -> list[psutil.Process]:
    """Return the processes in which jobs do their work, also those whose scheduler is dead."""
    found = []
    for process in processes(folder):
        try:
            if any(".snakemake/scripts/" in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@dataclass
class Log:
    """What was killed, and what was found wrong right after."""

    kills: Counter[str] = field(default_factory=Counter)
    partials: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def disturb(folder: Path, reference: dict[str, str], kills: int, seed: int, *targets: str) -> Log:
    """Run the workflow in ``folder`` until so many kills have hit, again after each end; return what happened.

    A run that gets to its end before is wiped out and begun anew. The last one is left unfinished. ``reference`` has
    the `digests` of an undisturbed run: what carries one of these names has to have that content always.
    """
    draw = random.Random(seed)
    log = Log()
    while log.kills.total() < kills:
        before = log.kills.total()
        output = folder / "output.txt"
        with output.open("w") as stream:
            scheduler = subprocess.Popen(command(*targets), cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
        while scheduler.poll() is None and log.kills.total() < kills:
            victim, moment = draw.choice(VICTIMS), time.monotonic() + draw.uniform(*WAIT_SECONDS)
            # A write takes milliseconds, which hardly any random moment hits: every other time, wait for one.
            writes, seen = draw.choice((0, draw.randint(1, MOST_WRITES))), set(partials(folder))
            enough = len(seen) + writes
            while scheduler.poll() is None:
                seen.update(partials(folder))
                # In the midst of some job: a start, or a pause between two jobs, is not what is tried here.
                if len(seen) >= enough if writes else time.monotonic() > moment and scripts(folder):
                    break
                time.sleep(0.005)
            if scheduler.poll() is None and (killed := kill(folder, scheduler, victim, draw)):
                log.kills[victim] += 1
                half = partials(folder)
                log.partials |= set(half)
                found = digests(folder)
                wrong = [name for name, digest in found.items() if digest != reference[name]]
                log.wrong += wrong
                print(
                    f"{log.kills.total():3} {victim:10} {killed:38} "
                    f"{len(found):3} files finished, {len(half)} half-written, {len(wrong)} wrong",
                    flush=True,
                )
        if log.kills.total() >= kills:
            break
        scheduler.wait(timeout=PATIENCE_SECONDS * 5)
        said = output.read_text()
        if LOCKED in said:
            assert "--unlock" in said, said
            subprocess.run(command("--unlock"), cwd=folder, check=True, capture_output=True)
        elif scheduler.returncode == 0:
            yield_to_orphans(folder)
            shutil.rmtree(folder / "results")
            shutil.rmtree(folder / "resources")
        elif log.kills.total() == before:
            raise RuntimeError(f"a run that nobody disturbed has failed ({scheduler.returncode}):\n{said}")
    scheduler.kill()
    scheduler.wait()
    for process in processes(folder):
        kill_one(process)
    return log


def kill(folder: Path, scheduler: subprocess.Popen[bytes], victim: str, draw: random.Random) -> str:
    """Kill; return what was at work, nothing if there was nothing to kill."""
    jobs = {process: rule(process) for process in sorted(scripts(folder), key=lambda process: process.pid)}
    if victim == "job":
        jobs = dict([draw.choice(list(jobs.items()))] if jobs else [])
        return ", ".join(name for process, name in jobs.items() if kill_one(process))
    scheduler.kill()
    scheduler.wait()
    if victim == "everything":
        for process in processes(folder):
            kill_one(process)
    return ", ".join(jobs.values()) or "-"


def rule(process: psutil.Process) -> str:
    """Return the name of the script that a job runs."""
    try:
        return Path(process.cmdline()[-1]).stem.partition(".")[2]
    except (psutil.NoSuchProcess, IndexError):
        return "-"


def kill_one(process: psutil.Process) -> bool:
    """Kill; return whether it was still there."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def yield_to_orphans(folder: Path) -> None:
    """Wait until nothing runs in the folder."""
    end = time.monotonic() + PATIENCE_SECONDS
    while processes(folder):
        if time.monotonic() > end:
            raise RuntimeError(f"still running after {PATIENCE_SECONDS} s: {processes(folder)}")
        time.sleep(0.2)


def main() -> None:
    """Print the log; the folders are kept if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("targets", nargs="*", help="files to make; everything by default")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp()).resolve()
    reference, disturbed = root / "reference", root / "disturbed"
    for checkout in (reference, disturbed):
        copy_workflow(checkout)
    finish(reference, *arguments.targets)
    expected = digests(reference)
    log = disturb(disturbed, expected, arguments.kills, arguments.seed, *arguments.targets)
    finish(disturbed, *arguments.targets)
    yield_to_orphans(disturbed)
    found = digests(disturbed)
    different = [name for name in expected if found.get(name) != expected[name]]
    odd = set(names(disturbed)) ^ set(names(reference))
    left = partials(disturbed)
    counted = ", ".join(f"{count} {victim}" for victim, count in sorted(log.kills.items()))
    print(f"kills survived: {log.kills.total()} ({counted})")
    print(f"half-written files seen right after them: {len(log.partials)}; under a final name: {len(log.wrong)}")
    print(f"half-written files after the last run: {len(left)}")
    print(f"files of an undisturbed run: {len(names(reference))}; missing or more: {len(odd)}")
    print(f"of these with contents that are no timings: {len(expected)}; different: {len(different)}")
    for name in [*different, *log.wrong, *odd]:
        print(f"  {name}")
    if different or log.wrong or odd:
        sys.exit(f"kept: {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
