"""Print the conda environment that holds exactly pipeline.lock; `make lock` keeps it in pipeline.yaml.

Snakemake copies an environment's file to a folder of its own, so the file cannot refer to the lock and has to hold it.
"""

import re
from pathlib import Path

import yaml

HEADER = """\
# The environment of every rule under --sdm conda. Made from pipeline.lock by `make lock`: do not edit.
"""


def environment(lock: str) -> str:
    """Return the environment file for the text of a pip lock."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE)).splitlines()
    content = {
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": ["python=3.11", "pip", {"pip": [line for line in lines if line]}],
    }
    return HEADER + yaml.safe_dump(content, width=float("inf"), sort_keys=False)


if __name__ == "__main__":
    print(environment((Path(__file__).parent / "pipeline.lock").read_text()), end="")
