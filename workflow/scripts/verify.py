"""Check the data set or the checkpoint and write its receipt."""

from typing import TYPE_CHECKING

from dinoquant.data.checksum import verify
from dinoquant.data.folder import listing
from dinoquant.files import write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        config = snakemake.params.config
        path = config.get("folder") or snakemake.input.file
        # Before the files are read: what changes meanwhile is noticed by the next run.
        record = {"listing": listing(path), "state": config["state"]} if "state" in config else {}
        with span("verify"):
            receipt = verify(path, config["source"], snakemake.params.checksum, config["key"])
        write_json(snakemake.output.receipt, receipt)
        write_json(snakemake.output.listing, record)
