"""The profiles hold options that Snakemake knows, and the generic one asks each batch system for what a job needs."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

PROFILES = Path(__file__).parents[2] / "profiles"
SUBMIT = PROFILES / "generic" / "submit.sh"
# Of snakemake-executor-plugin-cluster-generic 1.0, which is not installed here.
GENERIC = {"cluster-generic-submit-cmd", "cluster-generic-cancel-cmd", "cluster-generic-status-cmd"}


@pytest.mark.parametrize("profile", sorted(path.parent.name for path in PROFILES.glob("*/config.yaml")))
def test_every_key_is_an_option_of_snakemake(profile: str) -> None:
    content = yaml.safe_load((PROFILES / profile / "config.yaml").read_text())
    options = {option for action in get_argument_parser()._actions for option in action.option_strings}
    known = {option.removeprefix("--") for option in options} | _slurm_options() | GENERIC
    assert content.keys() <= known


def _slurm_options() -> set[str]:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    return {f"slurm-{field.name.replace('_', '-')}" for field in dataclasses.fields(plugin.ExecutorSettings)}


@pytest.mark.parametrize("profile", ["slurm", "generic"])
def test_every_timing_has_its_node_to_itself(profile: str) -> None:
    """Snakemake looks up rules by their own names: one that is made of another has none of its entries."""
    content = yaml.safe_load((PROFILES / profile / "config.yaml").read_text())
    text = "".join(path.read_text() for path in sorted((PROFILES.parent / "workflow" / "rules").glob("*.smk")))
    rules = re.findall(r"^(?:rule|use rule (\w+) as) (\w+)(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    timed: set[str] = set()
    for base, name, body in rules:
        if "threads: whole_machine" in body or base in timed:
            timed.add(name)
    assert {"measure_latency", "measure_scaling", "measure_machine"} < timed
    assert content["set-threads"].keys() == timed
    assert timed <= content["set-resources"].keys()


def test_submit_command_passes_what_the_script_takes() -> None:
    content = yaml.safe_load((PROFILES / "generic" / "config.yaml").read_text())
    path, system, *fields = content["cluster-generic-submit-cmd"].split()
    assert PROFILES.parent / path == SUBMIT
    assert system in ("lsf", "sge", "pbs")
    resources = [field.strip("{}").removeprefix("resources.") for field in fields]
    assert resources == ["rule", "threads", "mem_mb", "runtime", "gpu", "alone"]
    assert set(resources[2:]) == content["default-resources"].keys() - {"disk_mb"}  # that one is for Snakemake alone


@pytest.mark.parametrize(
    ("system", "said", "asked"),
    [
        ("lsf", "Job <17> is submitted to queue <normal>.", ["-n 8", "-M 4000", "-W 90", "-gpu num=1", " -x "]),
        ("sge", "17", ["-pe smp 8", "h_vmem=500M", "h_rt=5400", "exclusive=1", "gpu=1"]),
        ("pbs", "17", ["ncpus=8", "mem=4000mb", "walltime=5400", "place=excl", "ngpus=1"]),
    ],
)
def test_each_batch_system_is_asked_for_what_a_job_needs(
    system: str, said: str, asked: list[str], tmp_path: Path
) -> None:
    # A stand-in for bsub and qsub that notes its arguments.
    for name in ("bsub", "qsub"):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\necho "{said}"\n')
        command.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def submit(*arguments: str) -> str:
        done = subprocess.run(
            [SUBMIT, system, *arguments], cwd=tmp_path, env=env, check=True, text=True, capture_output=True
        )
        assert done.stdout == "17\n"
        return (tmp_path / "asked").read_text()

    timing = submit("measure_latency", "8", "4000", "90", "1", "1", "job.sh")
    assert timing.endswith(" job.sh\n")
    assert [words for words in asked if words not in timing] == []
    plain = submit("quantize", "8", "4000", "90", "0", "0", "job.sh")
    assert [words for words in asked if words in plain] == asked[:3]
