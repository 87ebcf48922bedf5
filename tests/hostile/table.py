"""Print the table of bad inputs and of what the user is told; the tests run the same cases.

PYTHONPATH=workflow/scripts:tests .venv/bin/python tests/hostile/table.py > docs/hostile-input/README.md
"""

import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from archives import ARCHIVES
from cases import Case
from checkpoints import CHECKPOINTS
from configs import CONFIGS

KINDS = {"archive": "The data set's archive", "checkpoint": "The checkpoint", "config": "The config"}
CASES = [*ARCHIVES, *CHECKPOINTS, *CONFIGS]
# Their messages become part of ours.
LIBRARIES = ("torch", "pillow", "safetensors", "snakemake")

CHECK = """.venv/bin/python -c 'import yaml; print("__use_yte__" in yaml.safe_load(open("theirs.yaml")))'"""


def made_with() -> str:
    """Return the versions on which the text of the messages depends."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    return ", ".join([python, *(f"{library} {version(library)}" for library in LIBRARIES)])


def row(case: Case, message: str) -> str:
    """Return a line of the table."""
    cells = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in (case.what, message))
    return f"| {' | '.join(cells)} |"


def message_of(case: Case) -> str:
    """Return what the user is told, from a run in a folder of its own."""
    with TemporaryDirectory() as folder:
        return case.message(Path(folder).resolve())


def main() -> None:
    """Print the page."""
    print(
        f"""# Bad inputs

What a user is told about {len(CASES)} inputs that are wrong, hostile or merely odd. `tests/hostile` runs every one of
them, and sees that nothing in them is executed, is written outside the folder, or hangs. The same cases print this page
({made_with()}):

```
PYTHONPATH=workflow/scripts:tests .venv/bin/python tests/hostile/table.py > docs/hostile-input/README.md
```

One thing is left to the user: **to Snakemake, a config file can be a program**. Where it says `__use_yte__: true`,
Snakemake runs the Python expressions in it (YTE, its template language) before it reads the Snakefile, so no check of
this workflow can come first. Ask this of a stranger's config before any Snakemake sees it, a dry run included:

```
{CHECK}
```

Use the file only if the answer is `False`: `True` means that it is a program, an error that it is no plain YAML."""
    )
    for kind, title in KINDS.items():
        print(f"\n## {title}\n\n| input | what the user is told |\n|---|---|")
        for case in CASES:
            if case.kind == kind:
                print(row(case, message_of(case)))


if __name__ == "__main__":
    main()
