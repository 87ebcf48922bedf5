"""Load this project's files under aarch64, emulated, and compare their features with those of this machine.

    PYTHONPATH=workflow/scripts:tests .venv/bin/python tests/arm/check.py

Makes every recipe of a small transformer here, and loads each file with `torch.jit.load` in the aarch64 build of the
same PyTorch, by QEMU's user emulation. The first run brings QEMU, Python and the libraries of Debian's arm64 by
apt-get, and the wheels by pip, into a folder (8 GB; nothing is installed, and root is not needed). Emulation says what
is computed, not how fast. Ends with status 1 if a file that should load does not, or gives other features.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dinoquant.config import complete
from dinoquant.network.export import export
from dinoquant.recipes import TORCHSCRIPT, recipes
from dinoquant.recipes.anatomy.families import targets
from dinoquant.recipes.base import load_recipe
from dinoquant.recipes.int8.assemble import PER_TOKEN, STATIC
from samples import photographs, tiny_vit

ROOT = Path(__file__).parents[2]
PYTHON = "python3.11"
PACKAGES = [f"{PYTHON}-minimal", f"lib{PYTHON}-stdlib", "libstdc++6", "libgomp1"]
SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
CPU = "neoverse-n1"  # Graviton 2, Ampere Altra; QEMU's `max` has SVE, SME, bf16 and i8mm too
# What QEMU's `/proc` and `/sys` would tell of this machine's x86 processors, which PyTorch's cpuinfo dies of.
CPUINFO = """processor\t: {n}
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
# Attention is in float32 on a processor without bf16 instructions, whichever kind it is: x86 answers both ways.
X86 = ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"})
MIDR = "0x00000000413fd0c1\n"  # the same as the register MIDR_EL1, which oneDNN reads
# `quantized::` operators take one activation scale for a batch, over 7 bits on x86 and 8 here and there on Arm, so that
# these features may differ from x86's; they must be as faithful to fp32's.
LOST_COSINE = 0.01
IMAGES = 8


def prepare(folder: Path) -> None:
    """Bring QEMU, a Debian root for arm64 with Python, and PyTorch for aarch64, unless they are there."""
    if (folder / "done").exists():
        return
    system, apt = folder / "root", folder / "apt"
    for path in (system, apt / "state/lists/partial", apt / "cache/archives/partial", folder / "host"):
        path.mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(SOURCE)
    (apt / "conf").write_text(
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false";\n'
        f'Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";\n'
        f'Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
    )
    arm = {**os.environ, "APT_CONFIG": str(apt / "conf")}
    subprocess.run(["apt-get", "-q", "update"], env=arm, check=True)
    subprocess.run(["apt-get", "-qy", "install", "--download-only", *PACKAGES], env=arm, check=True)
    subprocess.run(["apt-get", "-q", "download", "qemu-user-static"], cwd=folder / "host", check=True)
    for package in (apt / "cache/archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, system], check=True)
    for package in (folder / "host").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "host"], check=True)
    # QEMU looks for every file below its root first.
    processors = range(os.cpu_count() or 1)
    (system / "proc").mkdir(exist_ok=True)
    (system / "proc/cpuinfo").write_text("".join(CPUINFO.format(n=n) for n in processors))
    for n in processors:
        register = system / f"sys/devices/system/cpu/cpu{n}/regs/identification/midr_el1"
        register.parent.mkdir(parents=True, exist_ok=True)
        register.write_text(MIDR)
    version = torch.__version__.partition("+")[0]
    tags = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(18, 37))]
    platforms = [f"--platform={tag}_aarch64" for tag in tags]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", f"--target={folder / 'site'}"]
    wanted = ["--python-version=3.11", "--only-binary=:all:", f"torch=={version}", "numpy"]
    subprocess.run([*command, *platforms, *wanted], check=True)
    (folder / "done").touch()


def variants() -> dict[str, dict[str, Any]]:
    """Return the TorchScript variants of config.yaml with the defaults of their options, and one for QNNPACK."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["variants"]["int8-dynamic-qnnpack"] = {"recipe": "int8-dynamic", "modules": ["Linear"], "engine": "qnnpack"}
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    made = complete(config, schema)["variants"]
    return {name: options for name, options in made.items() if options["runtime"] == TORCHSCRIPT}


def make(folder: Path) -> dict[str, str]:
    """Write every variant of a small transformer and the images to compare with; return the variants' recipes."""
    network, calibration = tiny_vit(), photographs(16, 1)
    info = {
        "architecture": "tiny",
        "image_size": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "pooling": "token",
        "output": "features",
        "tokens": None,
    }
    sensitivity = [
        {"module": name, "precision": precision, "images": "16", "cosine_mean": "0.9999", "knn_top1_drop": "0.0"}
        | {"knn_agreement": "100.0", "macs": "1000"}
        for name in targets(network)
        for precision in (STATIC, PER_TOKEN)
    ]
    torch.save(photographs(IMAGES, 2), folder / "images.pt")
    for name, options in variants().items():
        measured = sensitivity if recipes()[options["recipe"]].sensitivity else ()
        (folder / name).mkdir()
        quantized = load_recipe(options["recipe"]).quantize(tiny_vit(), options, calibration, measured)
        export(quantized, folder / name / "model.pt", name, options, info)
    return {name: options["recipe"] for name, options in variants().items()}


def answers(models: Path, command: list[str | Path], environment: Mapping[str, str], engine: str) -> dict[str, Any]:
    """Have a Python run every file; return what it answers, by variant."""
    script = Path(__file__).with_name("inside.py").resolve()
    subprocess.run([*command, script, models, engine], env={**os.environ, **environment}, check=True)
    return {path.parent.name: torch.load(path) for path in models.glob("*/answer.pt")}


def verdict(
    recipe: str, x86: Sequence[Mapping[str, Any]], there: Mapping[str, Any], fp32: Tensor
) -> tuple[bool, list[str]]:
    """Return whether a file does under aarch64 what it should on x86, and the row of the table on it."""
    for where, answer in (("x86", x86[0]), ("aarch64", there)):
        if "error" in answer:  # fp16-dynamic is FBGEMM's alone, and ends a process whose processor is too old
            return recipe == "fp16-dynamic", [f"not on {where}: {answer['error']}"]
    cosines = [float(cosine_similarity(one["features"], fp32).mean()) for one in (x86[0], there)]
    deviations = [(there["features"] - here["features"]).abs().max() / here["features"].abs().max() for here in x86]
    deviation = float(min(deviations))
    if recipe in ("int8-dynamic", "int8-static"):
        fine = cosines[1] >= cosines[0] - LOST_COSINE
    else:
        fine = deviation <= (3e-2 if recipe in ("bf16", "fp16") else 1e-4)
    return fine, [there["path"], f"{deviation:.1e}", *(f"{cosine:.4f}" for cosine in cosines)]


def main() -> None:
    """Make, run here and there, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "resources/arm", help="for QEMU, Python and PyTorch")
    parser.add_argument("--cpu", default=CPU, help="one that QEMU knows")
    parser.add_argument("--engines", default="x86,qnnpack", help="for quantized:: operators, as torch.jit.load is told")
    options = parser.parse_args()
    folder = options.folder.resolve()
    prepare(folder)
    qemu: list[str | Path] = [folder / "host/usr/bin/qemu-aarch64-static", "-cpu", options.cpu, "-L", folder / "root"]
    command = [*qemu, folder / f"root/usr/bin/{PYTHON}"]
    wrong = []
    with tempfile.TemporaryDirectory() as made:
        models = Path(made)
        recipe_of = make(models)
        for engine in options.engines.split(","):
            x86 = [answers(models, [sys.executable], capped, engine) for capped in X86]
            there = answers(models, command, {"PYTHONPATH": str(folder / "site")}, engine)
            print(f"\naarch64 ({options.cpu}), PyTorch {torch.__version__}, engine {engine}: path taken there, largest")
            print(
                "deviation from x86, the nearer of with and without bf16, as a part of the largest feature, the cosine"
            )
            print("to fp32 on x86 and there")
            for name, recipe in recipe_of.items():
                fine, row = verdict(recipe, [here[name] for here in x86], there[name], x86[0]["fp32"]["features"])
                wrong += [] if fine else [name]
                print(f"{name:26} {'  '.join(row)}{'' if fine else '  WRONG'}")
    print(json.dumps({"wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
