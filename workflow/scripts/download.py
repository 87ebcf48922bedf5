"""Download the data set's archive or the checkpoint."""

from typing import TYPE_CHECKING

from dinoquant.data.checksum import expectation
from dinoquant.data.download import download
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        url = snakemake.params.url
        expected = expectation(url, snakemake.params.checksum)
        with span("download"):
            download(url, snakemake.output.file, expected.checksum, expected.bytes)
