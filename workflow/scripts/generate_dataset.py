"""Write a data set in Tiny ImageNet's layout that needs no network."""

from typing import TYPE_CHECKING

from dinoquant.data.generate import generate
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake), span("generate"):
        generate(snakemake.output.file, **snakemake.params.config)
