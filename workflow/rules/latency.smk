"""Time every variant beside fp32, and measure its footprint, with the machine to itself."""


rule measure_latency:
    input:
        model=lambda wildcards: artifact(wildcards.variant),
        beside=lambda wildcards: beside(wildcards.variant),
        fp32="results/models/fp32/model.pt",
        code=lambda wildcards: code("measure_latency", *runtime_modules(wildcards.variant)),
        lock=lambda wildcards: locks(wildcards.variant),
    output:
        json="results/latency/{device}/{variant}/batch{batch}.json",
    log:
        "logs/measure_latency/{device}/{variant}/batch{batch}.log",
    priority: 1  # before what else is ready: the console shows the fastest so far
    conda:
        "../../envs/pipeline.yaml"
    threads: whole_machine
    resources:
        gpu=lambda wildcards: int(wildcards.device == "cuda"),
    params:
        config=lambda wildcards: timing(config["latency"]["threads"], int(wildcards.batch)),
    script:
        "../scripts/measure_latency.py"


use rule measure_latency as measure_scaling with:
    output:
        json="results/scaling/{device}/{variant}/threads{threads}.json",
    log:
        "logs/measure_scaling/{device}/{variant}/threads{threads}.log",
    params:
        config=lambda wildcards: timing(int(wildcards.threads), min(BATCH_SIZES)),


rule measure_footprint:
    input:
        model=lambda wildcards: artifact(wildcards.variant),
        beside=lambda wildcards: beside(wildcards.variant),
        code=lambda wildcards: code("measure_footprint", f"dinoquant.runtimes.{runtime_of(wildcards.variant)}"),
        lock=lambda wildcards: locks(wildcards.variant),
    output:
        json="results/footprint/{device}/{variant}.json",
    log:
        "logs/measure_footprint/{device}/{variant}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: whole_machine
    resources:
        gpu=lambda wildcards: int(wildcards.device == "cuda"),
    params:
        config={"threads": config["latency"]["threads"]},
    script:
        "../scripts/measure_footprint.py"


MEASURED = [(device, variant) for device in DEVICES for variant in VARIANTS if runs_on(variant, device)]
LATENCIES = [f"results/latency/{device}/{variant}/batch{n}.json" for device, variant in MEASURED for n in BATCH_SIZES]
FOOTPRINTS = [f"results/footprint/{device}/{variant}.json" for device, variant in MEASURED]
SCALINGS = [
    f"results/scaling/{device}/{variant}/threads{threads}.json"
    for device, variant in MEASURED
    for threads in config["latency"]["thread_scaling"]
    if device == "cpu"
]
