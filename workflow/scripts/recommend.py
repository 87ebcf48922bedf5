"""Choose what to deploy on each device, and link it."""

from typing import TYPE_CHECKING

from dinoquant.files import read_rows, write_json
from dinoquant.job import job
from dinoquant.report.deployed import link
from dinoquant.report.recommend import recommend

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        recommendation = recommend(read_rows(snakemake.input.summary), snakemake.params.config)
        link(recommendation["devices"], snakemake.output.links)
        write_json(snakemake.output.json, recommendation)
