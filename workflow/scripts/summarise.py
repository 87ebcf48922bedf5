"""Join everything that was measured into `results/summary.csv`."""

from typing import TYPE_CHECKING

from dinoquant.files import atomic
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.report.summary import summarise, write_summary

        with span("summarise"):
            table = summarise(
                snakemake.input.latency,
                snakemake.input.footprint,
                snakemake.input.accuracy,
                snakemake.input.audit,
                snakemake.input.models,
                snakemake.params.config,
                probe=snakemake.input.probe,
                patches=snakemake.input.get("patches", []),
                energy=snakemake.input.get("energy", []),
                cards=snakemake.input.get("cards", []),
                limits=snakemake.input.get("limits"),
            )
        with atomic(snakemake.output.csv) as partial:
            write_summary(table, partial)
