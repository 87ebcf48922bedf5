"""Draw one figure of `results/figures` in every format."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import read_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import matplotlib as mpl

        mpl.use("agg")  # no display on compute nodes
        import pandas as pd

        from dinoquant.files import read_json
        from dinoquant.report.figures.attention import draw as draw_attention
        from dinoquant.report.figures.attention import read_maps
        from dinoquant.report.figures.audit import draw as draw_audit
        from dinoquant.report.figures.distribution import draw as draw_distribution
        from dinoquant.report.figures.fidelity import draw as draw_fidelity
        from dinoquant.report.figures.latency import draw as draw_latency
        from dinoquant.report.figures.pareto import draw as draw_pareto
        from dinoquant.report.figures.roofline import draw as draw_roofline
        from dinoquant.report.figures.scaling import draw as draw_scaling
        from dinoquant.report.figures.sensitivity import draw as draw_sensitivity
        from dinoquant.report.figures.size import draw as draw_size
        from dinoquant.report.figures.style import read_summary, save, use_style
        from dinoquant.report.figures.throughput import draw as draw_throughput

        from_summary = {
            "latency": draw_latency,
            "size": draw_size,
            "pareto": draw_pareto,
            "fidelity": draw_fidelity,
            "throughput": draw_throughput,
        }
        style = use_style(snakemake.params.config)
        with span("draw"):
            if snakemake.wildcards.figure == "audit":
                audits = {Path(path).parent.name: pd.read_csv(path) for path in snakemake.input.audits}
                figure = draw_audit(audits, style)
            elif snakemake.wildcards.figure == "distribution":
                table = read_summary(snakemake.input.summary)
                figure = draw_distribution(table, map(read_json, snakemake.input.latency), style)
            elif snakemake.wildcards.figure == "attention":
                missing = snakemake.params.config["missing"]
                figure = draw_attention(read_maps(snakemake.input.attention), missing, style)
            elif snakemake.wildcards.figure == "sensitivity":
                figure = draw_sensitivity(pd.read_csv(snakemake.input.sensitivity), style)
            elif snakemake.wildcards.figure == "roofline":
                limits = pd.read_csv(snakemake.input.limits, dtype={"variant": str})
                machines = [read_json(path) for path in snakemake.input.machines]
                figure = draw_roofline(read_summary(snakemake.input.summary), limits, machines, style)
            elif snakemake.wildcards.figure == "scaling":
                figure = draw_scaling([read_json(path) for path in snakemake.input.scaling], style)
            else:
                figure = from_summary[snakemake.wildcards.figure](read_summary(snakemake.input.summary), style)
            save(figure, snakemake.output, style.dpi)
