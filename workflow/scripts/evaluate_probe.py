"""Train a linear probe on one variant's features, and compare its predictions with those of fp32's probe."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dinoquant.data.manifest import read_split
from dinoquant.files import read_json, write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np

        from dinoquant.judge.probe import evaluate

        refused = read_json(snakemake.input.extraction)["unsupported"]
        labels = {split: read_split(snakemake.input.manifest, split)[1] for split in ("bank", "query")}
        reference = np.array(read_json(snakemake.input.fp32)["predictions"]) if snakemake.input.fp32 else None
        result: Mapping[str, object] = {"accuracy_reason": refused, "predictions": []}
        if not refused:
            with span("evaluate"), np.load(snakemake.input.features) as features:
                result = evaluate(features, labels, reference, snakemake.params.config)
        write_json(snakemake.output.json, {"variant": snakemake.wildcards.variant, **result})
