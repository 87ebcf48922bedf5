"""Evaluate one variant's features: k-NN accuracy, and fidelity to fp32."""

from typing import TYPE_CHECKING

from dinoquant.data.manifest import read_split, read_wnids
from dinoquant.files import write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np

        from dinoquant.judge.fidelity import evaluate

        config = snakemake.params.config
        labels = {split: read_split(snakemake.input.manifest, split)[1] for split in ("bank", "query")}
        with (
            span("evaluate"),
            np.load(snakemake.input.features) as features,
            np.load(snakemake.input.fp32) as reference,
        ):
            wnids = read_wnids(snakemake.input.manifest)
            result = evaluate(dict(features), dict(reference), labels, wnids, config)
        write_json(
            snakemake.output.json, {"variant": snakemake.wildcards.variant, "device": config["device"], **result}
        )
