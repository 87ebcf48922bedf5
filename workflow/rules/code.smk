"""What a result depends on besides its data, as inputs: the script, the modules that it imports, and the libraries."""

import ast
import os
from functools import cache

SCRIPTS = ROOT / "workflow" / "scripts"


def in_workflow(path):
    """Name a file of the workflow relative to the working directory: Snakemake then compares it by content."""
    return os.path.relpath(ROOT / path)


# Everything after the downloads depends on the versions of the libraries.
LOCK = in_workflow("envs/pipeline.lock")
PEERS_LOCK = in_workflow("envs/peers.lock")


@cache
def direct_imports(path):
    """Return the library's files that a Python file names in its imports, without running any of it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names),
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
    names = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
    stems = [SCRIPTS.joinpath(*name.split(".")) for name in names if name.split(".")[0] == "dinoquant"]
    return {file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.exists()}


def imported_modules(path):
    """Return the library's files that a Python file imports, directly or not; a package and its modules may in a ring."""
    files, waiting = set(), [path]
    while waiting:
        new = direct_imports(waiting.pop()) - files
        files |= new
        waiting += new
    return files


@cache
def code(script, *modules):
    """Return what decides how a script behaves: itself and all it imports; `modules` are those it imports by name."""
    roots = [
        SCRIPTS / f"{script}.py",
        *(SCRIPTS.joinpath(*m.split(".")).with_suffix(".py") for m in modules),
    ]
    return sorted({in_workflow(file) for root in roots for file in {root, *imported_modules(root)}})


def tidy(value):
    """Sort the keys of nested dicts: Snakemake compares parameters as text, in which another order is a change."""
    return {key: tidy(value[key]) for key in sorted(value)} if isinstance(value, dict) else value
