"""Derive how fast each variant could be at best from its operations, its bytes and the machine's peaks."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import read_json
from dinoquant.job import job, span
from dinoquant.measure import limits

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import torch

        from dinoquant.network import architecture, operations

        config, inputs = snakemake.params.config, snakemake.input
        info = read_json(inputs.info)
        with span("derive"):
            with torch.device("meta"):  # shapes are all it takes
                network = architecture.like(info)
                macs = operations.needed(network, operations.macs(network))
            audits = {Path(path).parent.name: limits.read_precisions(path) for path in inputs.audits}
            models = {
                variant: limits.Model(
                    limits.macs_by_precision(macs, audits.get(variant, precision)),
                    sum(path.stat().st_size for path in map(Path, inputs.models) if path.parent.name == variant),
                )
                for variant, precision in config["precisions"].items()
            }
            table = limits.rows(
                models, map(read_json, inputs.machines), info, config["measured"], config["batch_sizes"]
            )
            limits.write(snakemake.output.csv, table)
