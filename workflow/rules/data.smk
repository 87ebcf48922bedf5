"""Get the data set's archive, check it, and pack the images that the run uses."""

ARCHIVE = place("dataset", "source", "resources/datasets", "generated")


if ARCHIVE is None:
    ARCHIVE = "resources/datasets/generated.zip"

    rule generate_dataset:
        input:
            code=code("generate_dataset"),
            lock=LOCK,
        output:
            file=ARCHIVE,
        log:
            "logs/generate_dataset.log",
        localrule: True
        conda:
            "../../envs/pipeline.yaml"
        params:
            config=tidy({"seed": config["seed"], **config["dataset"]["generated"]}),
        script:
            "../scripts/generate_dataset.py"

elif is_url(config["dataset"]["source"]):

    # No input, so that nothing but another source downloads it again.
    rule download_dataset:
        output:
            file=ARCHIVE,
        log:
            "logs/download_dataset.log",
        localrule: True
        conda:
            "../../envs/pipeline.yaml"
        params:
            url=config["dataset"]["source"],
            checksum=untracked_checksum("dataset", config["dataset"]["source"], "results/data/archive.json"),
        script:
            "../scripts/download.py"


rule verify_dataset:
    input:
        file=ARCHIVE,
        code=code("verify"),
        lock=LOCK,
    output:
        receipt="results/data/archive.json",
    log:
        "logs/verify_dataset.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config={"source": config["dataset"]["source"], "key": "dataset"},
        checksum=untracked_checksum("dataset", config["dataset"]["source"], "results/data/archive.json"),
    script:
        "../scripts/verify.py"


rule pack_images:
    input:
        archive=ARCHIVE,
        receipt="results/data/archive.json",
        code=code("pack_images"),
        lock=LOCK,
    output:
        images="results/data/images.npy",
        manifest="results/data/manifest.csv",
        dataset="results/data/dataset.json",
    log:
        "logs/pack_images.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=tidy(
            {
                key: config["dataset"][key]
                for key in (
                    "bank_per_class",
                    "queries",
                    "calibration_images",
                    "on_corrupt",
                )
            }
            | {
                "seed": config["seed"],
                "substitute": ("generated data set" if config["dataset"]["source"] == "generated" else None),
            }
        ),
    script:
        "../scripts/pack_images.py"
