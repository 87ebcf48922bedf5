"""Check the data set's archive or the checkpoint and write its receipt."""

from typing import TYPE_CHECKING

from dinoquant.data.checksum import verify
from dinoquant.files import write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        config = snakemake.params.config
        with span("verify"):
            receipt = verify(snakemake.input.file, config["source"], snakemake.params.checksum, config["key"])
        write_json(snakemake.output.receipt, receipt)
