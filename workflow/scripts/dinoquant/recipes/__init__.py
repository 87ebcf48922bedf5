"""What the workflow knows of the recipes: the schema of the config lists them, with the module that implements each.

Imports neither torch nor a recipe, so that the Snakefile can read it on a head node without them; and PyYAML only where
the list is read, which no process does that is timed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

TORCHSCRIPT = "torchscript"  # the pipeline's own runtime
FEATURES, TOKENS = "features", "tokens"  # what a model gives: [B, D], or [B, N, D]
SCHEMA = Path(__file__).resolve().parents[3] / "schemas" / "config.schema.yaml"


@dataclass(frozen=True)
class Recipe:
    """What the workflow must know of a recipe before running it: `implementation` of its entry in the schema."""

    precision: str  # of its products; for models of our runtime, the audit has that of each part
    module: str = ""  # dinoquant.recipes.<module>, a `dinoquant.recipes.base.RecipeModule`; "": its runtime makes it
    calibrated: bool = False  # needs calibration images
    sensitivity: bool = False  # needs sensitivity.csv
    unsupported: Mapping[str, str] = field(default_factory=dict)  # device -> reason


@cache
def recipes(runtime: str = TORCHSCRIPT) -> Mapping[str, Recipe]:
    """Return the recipes of a runtime by name."""
    import yaml

    definitions = yaml.load(SCHEMA.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["$defs"]
    listed = definitions["recipes"] if runtime == TORCHSCRIPT else definitions["runtimes"][runtime]
    return {name: Recipe(**entry["implementation"]) for name, entry in listed.items()}
