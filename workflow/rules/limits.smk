"""Measure what the machine can do at most, and derive how far from that each variant is."""

MACHINES = expand("results/machine/{device}.json", device=DEVICES)


rule measure_machine:
    input:
        code=code("measure_machine"),
        lock=LOCK,
    output:
        json="results/machine/{device}.json",
    log:
        "logs/measure_machine/{device}.log",
    priority: 2  # before the timings: what is derived from it then runs beside other work, not after all of it
    conda:
        "../../envs/pipeline.yaml"
    threads: whole_machine
    resources:
        gpu=lambda wildcards: int(wildcards.device == "cuda"),
    params:
        config={"threads": config["latency"]["threads"]},
    script:
        "../scripts/measure_machine.py"


rule derive_limits:
    input:
        machines=MACHINES,
        info="results/models/fp32/info.json",
        audits=AUDITS,
        models=[file for variant in VARIANTS for file in artifacts(variant)],
        code=code("derive_limits"),
        lock=LOCK,
    output:
        csv="results/limits.csv",
    log:
        "logs/derive_limits.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=tidy(
            {
                "precisions": {variant: recipe_of(variant).precision for variant in VARIANTS},
                "measured": MEASURED,
                "batch_sizes": BATCH_SIZES,
            }
        ),
    script:
        "../scripts/derive_limits.py"
