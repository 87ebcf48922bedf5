"""Which quantization of this Vision Transformer to deploy on this machine, and what it costs: the table of contents."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version
from yaml import safe_load

min_version("9.0")

# For all jobs. PyTorch writes the constants of what it has scripted in the order of a set of strings: where these hash
# otherwise, the same model is other bytes.
os.environ.update(PYTHONHASHSEED="0")

# Where this file is, also if another workflow takes it as a module, or a run is elsewhere (--directory).
ROOT = Path(str(workflow.current_basedir))
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))
from dinoquant.config import check_keys, complete
from dinoquant.errors import UserError


configfile: str(ROOT / "config" / "config.yaml")


try:
    for file in workflow.configfiles:
        check_keys(file)
    schema = ROOT / "workflow" / "schemas" / "config.schema.yaml"
    config.update(complete(config, safe_load(schema.read_text())))
except UserError as error:
    raise WorkflowError(str(error)) from None


include: "workflow/rules/code.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/variants.smk"
include: "workflow/rules/params.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/sensitivity.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/runtimes.smk"
include: "workflow/rules/latency.smk"
include: "workflow/rules/energy.smk"
include: "workflow/rules/limits.smk"
include: "workflow/rules/accuracy.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/provenance.smk"


rule all:
    default_target: True
    input:
        rules.figures.input,
        "results/summary.csv",
        "results/recommendation.json",
        "results/report.html",
        "results/provenance.json",
    localrule: True
