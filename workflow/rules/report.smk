"""Aggregate everything into the summary, the figures, and the page that people look at."""

from dinoquant.files import read_json
from dinoquant.report.recommend import conclusion
from dinoquant.report.table import render


report: "../report/workflow.rst"


FIGURES = ["pareto", "latency", "distribution", "throughput", "roofline", "size", "fidelity"]
FIGURES += ["scaling"] * bool(SCALINGS) + ["attention"] * ATTENTION + ["sensitivity"] * ANALYSED + ["audit"]
SHOWN_BATCH_SIZE = config["figures"]["batch_size"] or min(BATCH_SIZES)
SHOWN_LATENCIES = [path for path in LATENCIES if Path(path).stem == f"batch{SHOWN_BATCH_SIZE}"]


rule summarise:
    input:
        latency=LATENCIES,
        footprint=FOOTPRINTS,
        accuracy=ACCURACIES,
        probe=PROBES,
        limits="results/limits.csv",
        energy=ENERGIES,
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


rule recommend:
    input:
        summary="results/summary.csv",
        code=code("recommend"),
        lock=LOCK,
    output:
        json="results/recommendation.json",
        links=directory("results/recommended"),
    log:
        "logs/recommend.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=tidy(
            {
                "budget": config["budget"],
                "devices": DEVICES,
                "batch_size": SHOWN_BATCH_SIZE,
                "artifacts": {variant: artifacts(variant) for variant in VARIANTS},
                "substitutes": SUBSTITUTES,
            }
        ),
    script:
        "../scripts/recommend.py"


rule draw_figure:
    input:
        summary=lambda wildcards: (
            [] if wildcards.figure in ("sensitivity", "scaling", "attention") else "results/summary.csv"
        ),
        latency=lambda wildcards: SHOWN_LATENCIES if wildcards.figure == "distribution" else [],
        audits=lambda wildcards: AUDITS if wildcards.figure == "audit" else [],
        limits=lambda wildcards: "results/limits.csv" if wildcards.figure == "roofline" else [],
        machines=lambda wildcards: MACHINES if wildcards.figure == "roofline" else [],
        scaling=lambda wildcards: SCALINGS if wildcards.figure == "scaling" else [],
        sensitivity=lambda wildcards: SENSITIVITY if wildcards.figure == "sensitivity" else [],
        attention=lambda wildcards: ATTENTIONS if wildcards.figure == "attention" else [],
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
        recommendation="results/recommendation.json",
        audits=AUDITS,
        accuracy=ACCURACIES,
        figures=expand("results/figures/{figure}.svg", figure=FIGURES),
        archive="results/data/archive.json",
        dataset="results/data/dataset.json",
        info="results/models/fp32/info.json",
        latency=LATENCIES,
        code=code("write_report"),
        template=[
            in_workflow(f"workflow/scripts/dinoquant/report/templates/report.{part}")
            for part in ("html.j2", "css", "js", "md.j2")
        ],
        lock=LOCK,
    output:
        html="results/report.html",
        md="results/report.md",
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
    asked = {job.rule.name for job in workflow.dag.jobs}
    if "recommend" in asked:
        print(conclusion(read_json("results/recommendation.json")), end="\n\n")
    if "summarise" in asked:
        print(render("results/summary.csv"), end="\n\n")
    if "write_report" in asked:
        print(f"The report: {Path('results/report.html').resolve()}")
