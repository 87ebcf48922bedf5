"""Extract every variant's features, and judge them by k-NN and by their distance to fp32's."""

SHARDS = config["accuracy"]["shards"]


rule extract_features:
    input:
        model=lambda wildcards: artifact(wildcards.variant),
        beside=lambda wildcards: beside(wildcards.variant),
        fp32=pooling_model,
        info="results/models/fp32/info.json",
        images="results/data/images.npy",
        manifest="results/data/manifest.csv",
        code=lambda wildcards: code("extract_features", *runtime_modules(wildcards.variant)),
        lock=lambda wildcards: locks(wildcards.variant),
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


# Not by Snakemake's scattergather, which is no shorter here, and whose --set-scatter would be a second way to say what
# accuracy.shards says.
if SHARDS > 1:

    use rule extract_features as extract_shard with:
        output:
            features=temp("results/features/{variant}/{shard}of{shards}.npz"),
            timing=temp("results/features/{variant}/{shard}of{shards}.json"),
        log:
            "logs/extract_features/{variant}/{shard}of{shards}.log",

    rule gather_features:
        input:
            features=[f"results/features/{{variant}}/{n}of{SHARDS}.npz" for n in range(1, SHARDS + 1)],
            timing=[f"results/features/{{variant}}/{n}of{SHARDS}.json" for n in range(1, SHARDS + 1)],
            manifest="results/data/manifest.csv",
            code=code("gather_features"),
            lock=LOCK,
        output:
            features="results/features/{variant}.npz",
            timing="results/features/{variant}.json",
        log:
            "logs/gather_features/{variant}.log",
        localrule: True
        conda:
            "../../envs/pipeline.yaml"
        script:
            "../scripts/gather_features.py"

    ruleorder: gather_features > extract_features


rule evaluate_accuracy:
    input:
        features="results/features/{variant}.npz",
        extraction="results/features/{variant}.json",
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


rule evaluate_probe:
    input:
        features="results/features/{variant}.npz",
        extraction="results/features/{variant}.json",
        fp32=lambda wildcards: [] if wildcards.variant == "fp32" else "results/probe/fp32.json",
        manifest="results/data/manifest.csv",
        code=code("evaluate_probe"),
        lock=LOCK,
    output:
        json="results/probe/{variant}.json",
    log:
        "logs/evaluate_probe/{variant}.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=tidy({"C": config["accuracy"]["probe"]["C"], "confidence": config["accuracy"]["confidence"]}),
    script:
        "../scripts/evaluate_probe.py"


ACCURACIES = [f"results/accuracy/{variant}.json" for variant in VARIANTS if extraction_device(variant)]
PROBES = [f"results/probe/{variant}.json" for variant in VARIANTS if extraction_device(variant)]
PATCHES = config["patches"]["images"] > 0
PATCH_FILES = [f"results/patches/{variant}.json" for variant in VARIANTS if PATCHES and extraction_device(variant)]
PATCH_TOKENS = [file.replace(".json", ".npz") for file in PATCH_FILES]
ATTENTION = config["attention"]["images"] > 0
ATTENTIONS = [f"results/attention/{variant}.npz" for variant in VARIANTS if variant not in without_attention()]


rule measure_patches:
    input:
        model=lambda wildcards: artifact(wildcards.variant),
        beside=lambda wildcards: beside(wildcards.variant),
        fp32="results/models/fp32/model.pt",
        info="results/models/fp32/info.json",
        images="results/data/images.npy",
        manifest="results/data/manifest.csv",
        code=lambda wildcards: code("measure_patches", *runtime_modules(wildcards.variant)),
        lock=lambda wildcards: locks(wildcards.variant),
    output:
        json="results/patches/{variant}.json",
        patches="results/patches/{variant}.npz",
    log:
        "logs/measure_patches/{variant}.log",
    conda:
        "../../envs/pipeline.yaml"
    threads: config["accuracy"]["threads"]
    resources:
        gpu=lambda wildcards: int(extraction_device(wildcards.variant) == "cuda"),
    params:
        config=lambda wildcards: tidy(
            {key: config["accuracy"][key] for key in ("batch_size", "confidence", "resamples")}
            | {
                "images": config["patches"]["images"],
                "seed": config["seed"],
                "device": extraction_device(wildcards.variant),
            }
        ),
    script:
        "../scripts/measure_patches.py"


if ATTENTION:

    rule extract_attention:
        input:
            model="results/models/{variant}/model.pt",
            info="results/models/fp32/info.json",
            images="results/data/images.npy",
            manifest="results/data/manifest.csv",
            code=code("extract_attention"),
            lock=LOCK,
        output:
            maps="results/attention/{variant}.npz",
        log:
            "logs/extract_attention/{variant}.log",
        conda:
            "../../envs/pipeline.yaml"
        resources:
            gpu=lambda wildcards: int(extraction_device(wildcards.variant) == "cuda"),
        params:
            config=lambda wildcards: tidy(
                {
                    "device": extraction_device(wildcards.variant),
                    "images": config["attention"]["images"],
                }
            ),
        script:
            "../scripts/extract_attention.py"
