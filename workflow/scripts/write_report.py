"""Write `results/report.html`, the page that shows all that was measured, and `results/report.md`, its short form."""

from typing import TYPE_CHECKING

from dinoquant.files import write_text
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.report.page import render_report

        with span("render"):
            page, short = render_report(
                summary=snakemake.input.summary,
                recommendation=snakemake.input.recommendation,
                audits=snakemake.input.audits,
                accuracy=snakemake.input.accuracy,
                figures=snakemake.input.figures,
                archive=snakemake.input.archive,
                dataset=snakemake.input.dataset,
                checkpoint=snakemake.input.get("checkpoint"),
                info=snakemake.input.info,
                latency=snakemake.input.latency,
                variants=snakemake.params.config["variants"],
                config=snakemake.params.config["config"],
            )
        write_text(snakemake.output.html, page)
        write_text(snakemake.output.md, short)
