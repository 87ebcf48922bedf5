"""The workflow where it is not at home: as a module, from a read-only checkout, with downloads of one name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checkout import Checkout

from samples import copy_workflow

PARENT = """configfile: "config.yaml"
module dinoquant:
    snakefile: "{}"
    config: config
use rule * from dinoquant
"""
CONFIG = {
    "dataset": {"source": "generated", "bank_per_class": 5, "queries": 40, "calibration_images": 16},
    "model": {"architecture": "test_vit.r160_in1k", "checkpoint": "seeded", "image_size": 64},
    "variants": {"fp32": {"recipe": "fp32"}},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that cannot be written to."""
    folder = tmp_path_factory.mktemp("checkout") / "workflow"
    copy_workflow(folder)
    subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
    return folder


def snakemake(folder: Path, *arguments: str, **env: str) -> str:
    """Run Snakemake in a folder and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=folder,
        env={**os.environ, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_as_a_module_with_a_home_that_cannot_be_written_inside_an_allocation(source: Path, tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(PARENT.format(source / "Snakefile"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "nowhere"}
    cache = str(tmp_path / ".snakemake" / "cache")
    snakemake(tmp_path, "results/models/fp32/model.pt", HOME="/proc/nowhere", XDG_CACHE_HOME=cache, **slurm)
    assert (tmp_path / "results/models/fp32/model.pt").exists()
    assert "write_report" in snakemake(tmp_path, "--dry-run")


def test_in_another_directory_than_the_checkout(source: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({**CONFIG, "variants": {}}))
    where = ["--snakefile", str(source / "Snakefile"), "--directory", str(tmp_path), "--configfile", "my.yaml"]
    snakemake(tmp_path, "results/data/images.npy", *where)
    assert (tmp_path / "results/data/images.npy").exists()


def test_downloads_of_one_name_do_not_share_a_place(fresh: Checkout) -> None:
    def places(data: str, weights: str) -> list[str]:
        overlay = {"dataset": {"source": data}, "model": {"checkpoint": weights}}
        out = fresh.snakemake("download", "--dry-run", overlay=overlay).stdout
        return sorted(re.findall(r"rule download_\w+:\n    output: resources/(.*)", out))

    hub, data = "https://huggingface.co/timm/{}/resolve/main/model.safetensors", "https://example.org/{}/train.tar.gz"
    first = places(data.format("a"), hub.format("a"))
    assert re.fullmatch(r"checkpoints/model-\w{8}\.safetensors datasets/train-\w{8}\.tar\.gz", " ".join(first))
    assert places(data.format("a"), hub.format("a") + "?download=true") == first
    assert not set(places(data.format("b"), hub.format("b"))) & set(first)
    official = "dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"
    assert places("http://cs231n.stanford.edu/tiny-imagenet-200.zip", f"https://{official}") == [
        "checkpoints/dino_deitsmall16_pretrain.pth",
        "datasets/tiny-imagenet-200.zip",
    ]
