"""Evaluate one variant's features: k-NN accuracy, and fidelity to fp32."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dinoquant.data.manifest import read_split, read_wnids
from dinoquant.files import read_json, write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np

        from dinoquant.judge.fidelity import evaluate

        config, extraction = snakemake.params.config, read_json(snakemake.input.extraction)
        labels = {split: read_split(snakemake.input.manifest, split)[1] for split in ("bank", "query")}
        result: Mapping[str, object] = {"accuracy_reason": extraction["unsupported"], "per_class": []}
        if not extraction["unsupported"]:
            with (
                span("evaluate"),
                np.load(snakemake.input.features) as features,
                np.load(snakemake.input.fp32) as reference,
            ):
                wnids = read_wnids(snakemake.input.manifest)
                result = evaluate(dict(features), dict(reference), labels, wnids, config)
        identity = {"variant": snakemake.wildcards.variant, "device": config["device"]}
        write_json(snakemake.output.json, {**identity, **result, "saturation": extraction["saturation"]})
