"""Extract every variant's features, and judge them by k-NN and by their distance to fp32's."""


rule extract_features:
    input:
        model="results/models/{variant}/model.pt",
        info="results/models/fp32/info.json",
        images="results/data/images.npy",
        manifest="results/data/manifest.csv",
        code=code("extract_features"),
        lock=LOCK,
    output:
        features="results/features/{variant}.npz",
        timing="results/features/{variant}.json",
    log:
        "logs/extract_features/{variant}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: config["accuracy"]["threads"]
    resources:
        gpu=lambda wildcards: int(extraction_device(wildcards.variant) == "cuda"),
    params:
        config=lambda wildcards: tidy(
            {
                "device": extraction_device(wildcards.variant),
                "batch_size": config["accuracy"]["batch_size"],
            }
        ),
    script:
        "../scripts/extract_features.py"


rule evaluate_accuracy:
    input:
        features="results/features/{variant}.npz",
        fp32="results/features/fp32.npz",
        manifest="results/data/manifest.csv",
        code=code("evaluate_accuracy"),
        lock=LOCK,
    output:
        json="results/accuracy/{variant}.json",
    log:
        "logs/evaluate_accuracy/{variant}.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=lambda wildcards: tidy(
            {key: config["accuracy"][key] for key in ("k", "temperature", "confidence", "resamples")}
            | {"seed": config["seed"], "device": extraction_device(wildcards.variant)}
        ),
    script:
        "../scripts/evaluate_accuracy.py"


ACCURACIES = [f"results/accuracy/{variant}.json" for variant in VARIANTS if extraction_device(variant)]
