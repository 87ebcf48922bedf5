"""What a finished run looks like: complete, alone while it timed, and reported."""

import base64
import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from checkout import ROOT, Checkout
from PIL import Image

TIMED = {"measure_latency", "measure_footprint", "measure_energy", "measure_machine"}


def test_summary_has_a_row_for_every_variant(finished: Checkout) -> None:
    with (finished.folder / "results/summary.csv").open(newline="") as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["fp32", "int8-static", "fp16"]
    statuses = [row["status"] for row in rows.values()]
    assert statuses[2] == "unsupported"
    assert set(statuses[:2]) <= {"ok", "wide", "disturbed"}  # which of them is up to the machine
    assert rows["fp16"]["latency_p50_ms"] == ""
    assert "GPU" in rows["fp16"]["reason"]
    assert float(rows["fp32"]["speedup"]) > 0
    assert float(rows["int8-static"]["compression"]) > 1.5
    assert rows["int8-static"]["quantized_modules"] == rows["fp32"]["quantizable_modules"]


def test_run_ends_with_the_answer_the_table_and_the_path_of_the_report(finished: Checkout) -> None:
    printed = (finished.folder / "stdout.txt").read_text()
    answer = printed.rindex("Speed and size only (generated data set, seeded weights). On cpu, batch 1, ")
    table, path = printed.rindex("speed-up"), printed.rindex(str(finished.folder / "results/report.html"))
    assert answer < table < path


def test_on_a_substitute_the_fastest_is_named_and_its_file_runs_but_nothing_is_recommended(finished: Checkout) -> None:
    recommendation = json.loads((finished.folder / "results/recommendation.json").read_text())
    assert recommendation["accuracy_judged"] is False
    answer = recommendation["devices"]["cpu"]
    assert answer["pick"] is None
    assert {answer["fastest"], *answer["rejected"]} == {"fp32", "int8-static", "fp16"}
    example = finished.folder / "results/recommended/cpu.py"
    assert f"results/models/{answer['fastest']}/model.pt" in example.read_text()
    assert not any(path.is_symlink() for path in example.parent.iterdir())
    Image.new("RGB", (300, 200), "orange").save(finished.folder / "photograph.jpg")
    command = [sys.executable, "-W", "ignore", example, "photograph.jpg"]
    done = subprocess.run(command, cwd=finished.folder, capture_output=True, text=True, check=True)
    card = json.loads((finished.folder / "results/models/fp32/info.json").read_text())
    assert len([float(number) for number in done.stdout.split()]) == card["feature_dim"]


def test_timings_overlap_nothing(finished: Checkout) -> None:
    """From the intervals that Snakemake recorded for every job."""
    jobs = {}
    for file in (finished.folder / ".snakemake/metadata").iterdir():
        record = json.loads(file.read_text())
        output = base64.b64decode(file.name).decode()
        jobs[record["job_hash"]] = (record["rule"], record["starttime"], record["endtime"], output)
    timed = [job for job in jobs.values() if job[0] in TIMED]
    assert len(timed) == 7
    for rule, start, end, output in timed:
        others = [job for job in jobs.values() if job[3] != output and job[1] < end and job[2] > start]
        assert not others, f"{rule} of {output} ran beside {others}"


def test_measured_interval_lies_within_its_job(finished: Checkout) -> None:
    timing = json.loads((finished.folder / "results/latency/cpu/fp32/batch1.json").read_text())
    assert 0 < timing["finished"] - timing["started"] < 60


def test_report_opens_with_the_substitutes(finished: Checkout) -> None:
    page = (finished.folder / "results/report.html").read_text()
    body = page[page.index("<body") :]
    assert "generated data set" in body[:1500]
    assert "seeded weights" in body[:1500]


def test_models_load_without_this_project(finished: Checkout) -> None:
    program = (
        "import sys, torch; model = torch.jit.load(sys.argv[1]);"
        "print(tuple(model(torch.zeros(2, 3, 160, 160)).shape), 'timm' in sys.modules, 'dinoquant' in sys.modules)"
    )
    path = finished.folder / "results/models/int8-static/model.pt"
    done = subprocess.run([sys.executable, "-I", "-c", program, path], check=True, text=True, capture_output=True)
    assert done.stdout.strip() == "(2, 64) False False"


def test_verify_names_what_is_not_as_recorded(run: Checkout) -> None:
    done = run.snakemake("verify")
    assert done.returncode == 0, done.stdout
    assert "files are as results/provenance.json has them" in done.stdout
    (run.folder / "results/accuracy/fp32.json").write_text("{}")
    (run.folder / "results/models/int8-static/model.pt").unlink()
    done = run.snakemake("verify")
    assert done.returncode != 0
    assert "changed: results/accuracy/fp32.json" in done.stdout
    assert "missing: results/models/int8-static/model.pt" in done.stdout
    assert "2 files are not as results/provenance.json has them" in done.stdout


def test_the_record_of_a_run_without_git_says_so(finished: Checkout) -> None:
    recorded = json.loads((finished.folder / "results/provenance.json").read_text())
    assert recorded["git"]["commit"] is None
    assert recorded["git"]["reason"]


def test_verify_needs_a_record(fresh: Checkout) -> None:
    done = fresh.snakemake("verify")
    assert done.returncode != 0
    assert "There is no results/provenance.json to verify against" in done.stdout


def test_named_targets(fresh: Checkout) -> None:
    assert set(fresh.stale("download")) == {"generate_dataset", "verify_dataset"}
    models = fresh.stale("models")
    assert "export_fp32" in models
    assert not [job for job in models if job.startswith(("measure", "extract", "summarise"))]
    assert "summarise" in fresh.stale("figures")


def test_snakemake_report(run: Checkout) -> None:
    done = run.snakemake("--report", "report.zip")
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(run.folder / "report.zip") as archive:
        assert [name for name in archive.namelist() if name.endswith("report.html")]


def test_conda_environment_holds_the_lock(fresh: Checkout) -> None:
    done = subprocess.run(
        [sys.executable, "envs/conda.py"], cwd=fresh.folder, check=True, text=True, capture_output=True
    )
    assert (fresh.folder / "envs/pipeline.yaml").read_text() == done.stdout
    assert "torch==2.15.0" in done.stdout
    assert done.stdout.count("--hash") == (fresh.folder / "envs/pipeline.lock").read_text().count("--hash")


def test_conda_dry_run(fresh: Checkout, tmp_path: Path) -> None:
    """With a stand-in for the conda command, since most test machines have none: it says what Snakemake asks for."""
    conda = tmp_path / "bin" / "conda"
    conda.parent.mkdir()
    conda.write_text(
        f"""#!/bin/sh
case "$*" in
  *--version*) echo conda 25.1.0 ;;
  info*) echo '{{"conda_prefix": "{tmp_path}", "platform": "linux-64"}}' ;;
  config*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
esac
"""
    )
    conda.chmod(0o755)
    done = fresh.snakemake("--sdm", "conda", "-n", PATH=f"{conda.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout
    assert "envs/pipeline.yaml will be created" in done.stdout.replace("\n", " ")


def test_snakefile_imports_nothing_heavy() -> None:
    """A head node without torch can plan the run."""
    program = (
        "import sys; sys.modules.update(torch=None, torchvision=None, timm=None, matplotlib=None);"
        "from snakemake.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--dry-run", "--cores", "1", "--configfile", "config/demo.yaml"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
