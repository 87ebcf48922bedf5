"""Draw one figure of `results/figures` in every format."""

from typing import TYPE_CHECKING

from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from importlib import import_module

        import matplotlib as mpl

        mpl.use("agg")  # no display on compute nodes
        from dinoquant.report.figures.inputs import READERS
        from dinoquant.report.figures.style import save, use_style

        # The rule declares this module too, so that a figure is drawn again when its own module changes, and no other.
        figure = import_module(f"dinoquant.report.figures.{snakemake.wildcards.figure}")
        with span("draw"):
            style = use_style(snakemake.params.config)
            inputs = [READERS[kind](snakemake.input[kind]) for kind in snakemake.params.config["needs"]]
            save(figure.draw(*inputs, style), snakemake.output, style.dpi)
