"""Measure the energy that each variant takes for an image, where the machine can tell."""


rule measure_energy:
    input:
        model=lambda wildcards: artifact(wildcards.variant),
        beside=lambda wildcards: beside(wildcards.variant),
        code=lambda wildcards: code("measure_energy", *runtime_modules(wildcards.variant)),
        lock=lambda wildcards: locks(wildcards.variant),
    output:
        json="results/energy/{device}/{variant}.json",
    log:
        "logs/measure_energy/{device}/{variant}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: whole_machine
    resources:
        gpu=lambda wildcards: int(wildcards.device == "cuda"),
    params:
        config=tidy(
            {
                "seconds": config["energy"]["seconds"],
                "threads": config["latency"]["threads"],
                "batch_size": min(BATCH_SIZES),
            }
        ),
    script:
        "../scripts/measure_energy.py"


ENERGIES = [
    f"results/energy/{device}/{variant}.json" for device, variant in MEASURED if config["energy"]["seconds"] > 0
]
