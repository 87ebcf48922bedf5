"""Measure what each module alone loses once it is quantized; runs where a variant chooses by it, or on demand."""

SENSITIVITY = "results/sensitivity.csv"
ANALYSED = any(recipe_of(variant).sensitivity for variant in VARIANTS)


rule measure_sensitivity:
    input:
        state_dict="results/models/fp32/state_dict.pt",
        info="results/models/fp32/info.json",
        images="results/data/images.npy",
        manifest="results/data/manifest.csv",
        features="results/features/fp32.npz",
        code=code("measure_sensitivity"),
        lock=LOCK,
    output:
        csv=SENSITIVITY,
    log:
        "logs/measure_sensitivity.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: 4  # or what --cores allows; no timing depends on it
    params:
        config=tidy(config["sensitivity"] | {key: config["accuracy"][key] for key in ("k", "temperature")}),
    script:
        "../scripts/measure_sensitivity.py"


rule sensitivity:
    input:
        SENSITIVITY,
        expand("results/figures/sensitivity.{format}", format=["svg", "png", "pdf"]),
    localrule: True
