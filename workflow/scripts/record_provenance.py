"""Record what the results folder holds, by digest, and what it was made from."""

from typing import TYPE_CHECKING

from dinoquant.files import write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.report.provenance import record

        inputs, params = snakemake.input, snakemake.params
        checkpoint = {"checkpoint": inputs.checkpoint} if inputs.get("checkpoint") else {}
        with span("digest"):
            result = record(
                deterministic=inputs.deterministic,
                varying=inputs.varying,
                receipts={"dataset": inputs.archive, **checkpoint},
                locks=inputs.locks,
                config=params.config,
                snakemake=params.snakemake,
            )
        write_json(snakemake.output.json, result)
