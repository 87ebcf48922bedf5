"""Aggregate everything into the summary, the figures, and the page that people look at."""

from dinoquant.table import render


report: "../report/workflow.rst"


FIGURES = ["latency", "throughput", "size", "pareto", "fidelity", "audit"] + ["sensitivity"] * ANALYSED


rule summarise:
    input:
        latency=LATENCIES,
        footprint=FOOTPRINTS,
        accuracy=ACCURACIES,
        probe=PROBES,
        audit=AUDITS,
        models=[file for variant in VARIANTS for file in artifacts(variant)],
        code=code("summarise"),
        lock=LOCK,
    output:
        csv=report(
            "results/summary.csv",
            caption="../report/summary.rst",
            category="Results",
            labels={"content": "summary"},
        ),
    log:
        "logs/summarise.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=tidy(
            {
                "variants": list(VARIANTS),
                "runtimes": {variant: runtime_of(variant) for variant in VARIANTS},
                "devices": DEVICES,
                "batch_sizes": BATCH_SIZES,
                "unsupported": UNSUPPORTED,
            }
        ),
    script:
        "../scripts/summarise.py"


rule draw_figure:
    input:
        summary=lambda wildcards: [] if wildcards.figure == "sensitivity" else "results/summary.csv",
        audits=lambda wildcards: AUDITS if wildcards.figure == "audit" else [],
        sensitivity=lambda wildcards: SENSITIVITY if wildcards.figure == "sensitivity" else [],
        code=code("draw_figure"),
        lock=LOCK,
    output:
        svg=report(
            "results/figures/{figure}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"content": "{figure}"},
        ),
        png="results/figures/{figure}.png",
        pdf="results/figures/{figure}.pdf",
    log:
        "logs/draw_figure/{figure}.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=look,
    script:
        "../scripts/draw_figure.py"


rule figures:
    input:
        expand(
            "results/figures/{figure}.{format}",
            figure=FIGURES,
            format=["svg", "png", "pdf"],
        ),
    localrule: True


rule write_report:
    input:
        **({"checkpoint": "results/model/checkpoint.json"} if CHECKPOINT else {}),
        summary="results/summary.csv",
        audits=AUDITS,
        figures=expand("results/figures/{figure}.svg", figure=FIGURES),
        archive="results/data/archive.json",
        dataset="results/data/dataset.json",
        info="results/models/fp32/info.json",
        latency=LATENCIES,
        code=code("write_report"),
        template=in_workflow("workflow/scripts/dinoquant/report.html.j2"),
        lock=LOCK,
    output:
        html="results/report.html",
    log:
        "logs/write_report.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=tidy({"variants": list(VARIANTS), "config": config | {"devices": DEVICES}}),
    script:
        "../scripts/write_report.py"


onsuccess:
    if any(job.rule.name == "summarise" for job in workflow.dag.jobs):
        print(
            render("results/summary.csv"),
            f"The report: {Path('results/report.html').resolve()}",
            sep="\n\n",
        )
