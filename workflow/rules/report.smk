"""Aggregate everything into the summary, the figures, and the page that people look at."""

from dinoquant.files import read_json
from dinoquant.report.recommend import conclusion
from dinoquant.report.table import render


report: "../report/workflow.rst"


SHOWN_BATCH_SIZE = config["figures"]["batch_size"] or min(BATCH_SIZES)
SHOWN_LATENCIES = [path for path in LATENCIES if Path(path).stem == f"batch{SHOWN_BATCH_SIZE}"]
# By the kinds that the catalogue names.
FIGURE_INPUTS = {
    "summary": "results/summary.csv",
    "latency": SHOWN_LATENCIES,
    "audits": AUDITS,
    "limits": "results/limits.csv",
    "machines": MACHINES,
    "scaling": SCALINGS,
    "sensitivity": SENSITIVITY,
    "attention": ATTENTIONS,
    "patches": PATCH_TOKENS,
}
NOT_MADE = {
    kind
    for kind, made in [
        ("scaling", SCALINGS),
        ("attention", ATTENTION),
        ("patches", PATCHES),
        ("sensitivity", ANALYSED),
    ]
    if not made
}
FIGURES = [name for name, figure in CATALOGUE.items() if NOT_MADE.isdisjoint(figure.needs)]


rule summarise:
    input:
        latency=LATENCIES,
        footprint=FOOTPRINTS,
        accuracy=ACCURACIES,
        probe=PROBES,
        patches=PATCH_FILES,
        limits="results/limits.csv",
        energy=ENERGIES,
        audit=AUDITS,
        cards=CARDS,
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
        programs=[
            in_workflow(f"workflow/scripts/dinoquant/report/templates/{program}")
            for program in ("example.py", "package.py", "package.cpp")
        ],
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
                "budget": budget(),
                "devices": DEVICES,
                "batch_size": SHOWN_BATCH_SIZE,
                "artifacts": {variant: deployed(variant) for variant in VARIANTS},
                "substitutes": SUBSTITUTES,
            }
        ),
    script:
        "../scripts/recommend.py"


rule draw_figure:
    input:
        unpack(lambda wildcards: {kind: FIGURE_INPUTS[kind] for kind in CATALOGUE[wildcards.figure].needs}),
        code=lambda wildcards: code("draw_figure", f"dinoquant.report.figures.{wildcards.figure}"),
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
    wildcard_constraints:
        figure="|".join(CATALOGUE),
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=figure_params,
        # Untracked, as it names `output`: other words draw nothing again.
        caption=lambda wildcards, output: CATALOGUE[wildcards.figure].caption,
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
            for part in ("html.j2", "css", "js", "md.j2", "methods.j2")
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
        print(render("results/summary.csv"))
    if "write_report" in asked:
        print(f"The report: {Path('results/report.html').resolve()}")
