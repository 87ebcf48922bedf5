"""Models of a precision that the processor only emulates are refused, and no others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dinoquant.files import write_json
from dinoquant.recipes.int8.processor import bfloat16_is_native
from dinoquant.runtimes.emulation import emulated

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
INSIDE = """
import sys
from pathlib import Path
from dinoquant.runtimes.emulation import emulated

print(emulated(Path(sys.argv[1]), "cpu"), end="")
print("" if "torch" in sys.modules else " (without PyTorch)", end="")
"""


def model(folder: Path, recipe: str, **options: str) -> Path:
    write_json(folder / "card.json", {"recipe": recipe, "options": options})
    return folder / "model.xml"


def without_bfloat16(path: Path) -> str:
    """Return what is said of a model in a process whose oneDNN does without AVX-512."""
    caps = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-W", "ignore", "-c", INSIDE, path]
    environment = {**os.environ, **caps, "PYTHONPATH": str(SCRIPTS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("recipe", "options"), [("bf16", {}), ("int8-nncf", {"rest": "bf16"})])
def test_emulated_bfloat16_is_refused_with_the_reason(tmp_path: Path, recipe: str, options: dict[str, str]) -> None:
    path = model(tmp_path, recipe, **options)
    assert without_bfloat16(path).startswith("bf16 would be emulated, many times slower than fp32: ")
    assert (emulated(path, "cpu") is None) == bfloat16_is_native()
    assert emulated(path, "cuda") is None


@pytest.mark.parametrize(("recipe", "options"), [("fp32", {}), ("int8-nncf", {"rest": "fp32"})])
def test_others_run_everywhere(tmp_path: Path, recipe: str, options: dict[str, str]) -> None:
    assert without_bfloat16(model(tmp_path, recipe, **options)) == "None (without PyTorch)"
