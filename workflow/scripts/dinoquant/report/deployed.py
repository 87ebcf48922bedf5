"""What `results/recommended/` has of each device's pick: links to its files, and programs that run it on a photograph.

Light libraries only: the Snakefile imports it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from dinoquant.files import write_text

LINKS = "results/recommended"
TEMPLATES = Path(__file__).parent / "templates"
PROGRAMS = {  # of the file that is loaded: the programs, by key of the recommendation
    ".pt": {"example": "example.py"},
    ".pt2": {"example": "package.py", "example_cpp": "package.cpp"},
}


class Deployed(TypedDict):
    """What is deployed on one device."""

    artifacts: Sequence[str]  # the file that is loaded, and what belongs to it
    example: str | None  # a program in Python that runs the file on a photograph
    example_cpp: str | None  # the same in C++


def linked(artifacts: Sequence[str], device: str) -> list[str]:
    """Return where `link` puts links to the files."""
    return [f"{LINKS}/{device}{Path(artifact).suffix}" for artifact in artifacts]


def program(key: str, files: Sequence[str], device: str) -> str | None:
    """Return the program that runs ``files``, the one to load first; None if PyTorch alone does not run them."""
    template = PROGRAMS.get(Path(files[0]).suffix, {}).get(key) if files else None
    if template is None:
        return None
    card = next((file for file in files if file.endswith(".json")), "")
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return text.replace("FILE", files[0]).replace("CARD", card).replace("DEVICE", device)


def link(devices: Mapping[str, Deployed], folder: str | Path) -> None:
    """Make ``folder`` with a relative link to each file of each device's pick, and the programs that run it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for device, deployed in devices.items():
        for artifact in map(Path, deployed["artifacts"]):
            Path(folder, device + artifact.suffix).symlink_to(os.path.relpath(artifact, folder))
        for text, suffix in ((deployed["example"], ".py"), (deployed["example_cpp"], ".cpp")):
            if text:
                write_text(Path(folder, device + suffix), text)
