"""What goes wrong in practice: each ends with a message and nothing that looks finished, and the next run goes on."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from checkout import Checkout

from dinoquant.data.generate import generate
from dinoquant.files import sha256
from dinoquant.machine import cuda_devices
from faults.kill import LOCKED, command, digests, disturb, finish, partials
from httpserver import serve, unused_url

# Two files that take no PyTorch to be made.
RECEIPT = "results/data/archive.json"
IMAGES = "results/data/images.npy"
CUT = 65536  # bytes; a multiple of what the download writes at a time


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small archive in Tiny ImageNet's layout."""
    path = tmp_path_factory.mktemp("archive") / "data.zip"
    generate(path, classes=4, train_per_class=6, val_per_class=3, seed=0)
    return path.read_bytes()


def place(url: str) -> Path:
    """Return where what comes from a URL lies."""
    return Path(f"resources/datasets/data-{hashlib.sha256(url.encode()).hexdigest()[:8]}.zip")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"latncy": {"rounds": 7}}, ["unknown key `latncy`", "did you mean `latency`"]),
        ({"dataset": {"source": "nowhere.zip"}}, ["dataset.source: there is no file or folder nowhere.zip"]),
        ({"model": {"checkpoint": "ftp://example.org/x.pth"}}, ["model.checkpoint", "not an http(s) URL"]),
        ({"dataset": {"source": "http://example.org/.."}}, ["dataset.source", "that ends in a file's name"]),
        ({"dataset": {"source": "$(touch ran).zip"}}, ["dataset.source", "'$' in its name", "Rename the file"]),
        ({"model": {"checkpoint": "{variant}.pth"}}, ["model.checkpoint", "'{' '}' in its name"]),
        ({"variants": {"fp32": None}}, ["there is none called fp32"]),
        pytest.param(
            {"devices": ["cuda"]},
            ["devices: cuda was asked for", "It has: cpu"],
            marks=pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU"),
        ),
    ],
)
def test_mistake_in_the_config_stops_before_the_first_job(fresh: Checkout, overlay: dict, words: list[str]) -> None:
    done = fresh.snakemake(overlay=overlay)
    assert done.returncode != 0
    for word in words:
        assert word in done.stdout
    assert "Traceback" not in done.stdout
    assert not (fresh.folder / "results").exists()


def test_unknown_architecture_names_the_nearest(fresh: Checkout) -> None:
    done = fresh.snakemake("results/models/fp32/model.pt", overlay={"model": {"architecture": "vit_smal_patch16_224"}})
    assert done.returncode != 0
    assert "vit_small_patch16_224" in done.stdout
    assert not list((fresh.folder / "results").rglob("*.pt"))


def test_download_then_pinned_checksum_runs_nothing_again(fresh: Checkout, archive: bytes) -> None:
    with serve(archive, cuts=[CUT]) as server:
        source = {"dataset": {"source": server.url}}
        done = fresh.snakemake("results/data/manifest.csv", overlay=source)
    assert done.returncode == 0, done.stdout
    assert [request.headers.get("Range") for request in server.requests] == [None, f"bytes={CUT}-"]
    digest = hashlib.sha256(archive).hexdigest()
    assert digest in done.stdout  # recorded and printed, as nobody knows it
    pinned = {"dataset": {"source": server.url, "checksum": f"sha256:{digest}"}}
    assert not fresh.stale("results/data/manifest.csv", overlay=pinned)
    wrong = {"dataset": {"source": server.url, "checksum": "sha256:" + "0" * 64}}
    done = fresh.snakemake("-n", overlay=wrong)
    assert done.returncode != 0
    assert digest in done.stdout


def test_wrong_checksum_leaves_nothing(fresh: Checkout, archive: bytes) -> None:
    with serve(archive) as server:
        wrong = {"dataset": {"source": server.url, "checksum": "md5:" + "0" * 32}}
        done = fresh.snakemake("download", overlay=wrong)
        assert done.returncode != 0
        assert hashlib.md5(archive).hexdigest() in done.stdout
        assert files(fresh.folder / "resources") == []
        right = {"dataset": {"source": server.url, "checksum": f"md5:{hashlib.md5(archive).hexdigest()}"}}
        assert fresh.snakemake("download", overlay=right).returncode == 0


def test_missing_source_says_where_to_put_the_file(fresh: Checkout, archive: bytes) -> None:
    with serve(archive, status=[404] * 9) as server:
        missing = {"dataset": {"source": server.url}}
        done = fresh.snakemake("download", overlay=missing)
    assert done.returncode != 0
    assert "404" in done.stdout
    target = fresh.folder / place(server.url)
    assert str(place(server.url)) in done.stdout
    assert files(fresh.folder / "resources") == []
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(archive)
    done = fresh.snakemake("download", overlay=missing)
    assert done.returncode == 0, done.stdout


def test_no_network_with_the_file_in_place(fresh: Checkout, archive: bytes) -> None:
    url = unused_url()
    target = fresh.folder / place(url)
    target.parent.mkdir(parents=True)
    target.write_bytes(archive)
    overlay = {"dataset": {"source": url, "checksum": f"md5:{hashlib.md5(archive).hexdigest()}"}}
    assert fresh.snakemake("results/data/manifest.csv", overlay=overlay).returncode == 0
    target.write_bytes(b"not that file")
    done = fresh.snakemake("results/data/manifest.csv", overlay=overlay)
    assert done.returncode != 0
    assert str(place(url)) in done.stdout


def test_killed_job(fresh: Checkout) -> None:
    with subprocess.Popen(
        command(IMAGES), cwd=fresh.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        _job_of(process.pid, "pack_images.py").kill()
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Error in rule pack_images" in output
    assert files(fresh.folder / "results/data") == ["archive.json", "listing.json"]
    done = fresh.snakemake(IMAGES)
    assert done.returncode == 0, done.stdout


def _job_of(pid: int, script: str) -> psutil.Process:
    """Wait until a descendant of a process runs a script, and return it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for child in psutil.Process(pid).children(recursive=True):
            try:
                if child.name().startswith("python") and any(part.endswith(script) for part in child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    raise AssertionError(f"no job ran {script}")


@pytest.fixture
def small_disk(fresh: Checkout) -> Iterator[Path]:
    """`results/data` of the checkout on a file system that is too small for the packed images."""
    folder = fresh.folder / "results" / "data"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("only root can make a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(fresh: Checkout, small_disk: Path) -> None:
    done = fresh.snakemake(IMAGES)
    assert done.returncode != 0
    assert "The disk is full. Free some space and run the same command again: finished results are kept." in done.stdout
    assert files(small_disk) == ["archive.json", "listing.json"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = fresh.snakemake(IMAGES)
    assert done.returncode == 0, done.stdout


def test_read_only_results(fresh: Checkout, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro,size=64m", str(small_disk)], check=True)
    done = fresh.snakemake(RECEIPT)
    assert done.returncode != 0
    assert "Read-only file system" in done.stdout
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    done = fresh.snakemake(RECEIPT)
    assert done.returncode == 0, done.stdout


def test_a_second_run_waits_its_turn_and_a_killed_one_can_be_resumed(fresh: Checkout) -> None:
    with subprocess.Popen(
        command(IMAGES), cwd=fresh.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        job = _job_of(run.pid, "pack_images.py")
        job.suspend()  # or it might end first
        second = fresh.snakemake(IMAGES)
        run.kill()
    job.kill()
    assert second.returncode != 0
    assert LOCKED in second.stdout
    assert "It can be removed with the --unlock argument." in second.stdout
    # What a job could have left at worst: half a file beside its place, and one in its place.
    images = fresh.folder / IMAGES
    images.write_bytes(b"half")
    images.with_name(f".images.{job.pid}.partial.npy").write_bytes(b"half")
    assert fresh.snakemake("--unlock").returncode == 0
    without_profile = fresh.snakemake("--workflow-profile", "none", IMAGES)
    assert without_profile.returncode != 0
    assert "--rerun-incomplete" in without_profile.stdout
    finish(fresh.folder, IMAGES)
    assert images.stat().st_size > 1000
    assert partials(fresh.folder) == []


def test_results_survive_kills_and_are_those_of_another_run(fresh: Checkout, finished: Checkout) -> None:
    """Whatever the images, the weights and the seed decide, by the digests that the other run recorded."""
    recorded = json.loads((finished.folder / "results/provenance.json").read_text())["deterministic"]
    ends = ("accuracy/int8-static.json", "probe/int8-static.json", "attention/int8-static.npz")
    targets = [f"results/{part}" for part in ends]
    folder = fresh.folder.resolve()
    log = disturb(folder, digests(finished.folder), 2, 0, *targets)
    assert log.kills.total() == 2
    assert log.wrong == []
    finish(folder, *targets)
    made = {name: sha256(folder / name) for name in recorded if (folder / name).exists()}
    parts = ("data/images.npy", "models/int8-static/model.pt", "features/int8-static.npz", "features/fp32.npz")
    assert made.keys() >= {*targets, *(f"results/{part}" for part in parts)}
    assert made == {name: recorded[name] for name in made}
    assert partials(folder) == []


def test_a_clock_that_was_wrong(run: Checkout) -> None:
    images, manifest, target = (
        f"results/{part}" for part in ("data/images.npy", "data/manifest.csv", "features/fp32.npz")
    )
    for name, days in ((images, 1), (manifest, -3000)):
        moment = time.time() + days * 86400
        os.utime(run.folder / name, (moment, moment))
    assert not run.stale()
    (run.folder / target).unlink()
    done = run.snakemake(target)
    assert done.returncode != 0
    assert f"than input {images}" in done.stdout
    assert "This could indicate a clock skew problem" in done.stdout
    os.utime(run.folder / images)
    done = run.snakemake(target)
    assert done.returncode == 0, done.stdout
