"""Get the data set, check it, and pack the images that the run uses."""

ARCHIVE = source_path("dataset", "source", "resources/datasets", "generated")
LOCAL = ARCHIVE if not is_url(config["dataset"]["source"]) else None
FOLDER = LOCAL if LOCAL and Path(LOCAL).is_dir() else None
RECEIPT, LISTING = "results/data/archive.json", "results/data/listing.json"
# Images that are not small are packed in the size that the model sees; the generated ones have 64 pixels.
IMAGE_SIZE = 224 if config["dataset"]["source"] == "generated" else config["model"]["image_size"]


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
            checksum=untracked_checksum("dataset", config["dataset"]["source"], RECEIPT),
        script:
            "../scripts/download.py"


rule verify_dataset:
    input:
        file=[] if FOLDER else ARCHIVE,
        code=code("verify"),
        lock=LOCK,
    output:
        # Whatever the source is: of a job with an output that was never made, Snakemake overlooks changed parameters.
        listing=LISTING,
        receipt=RECEIPT,
    log:
        "logs/verify_dataset.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=lambda wildcards: tidy(
            {"source": config["dataset"]["source"], "key": "dataset"}
            | ({"folder": FOLDER} if FOLDER else {})
            | local_state(LOCAL, LISTING, RECEIPT)
        ),
        checksum=untracked_checksum("dataset", config["dataset"]["source"], RECEIPT),
    script:
        "../scripts/verify.py"


rule pack_images:
    input:
        # Not `ancient`, by which another export would pack nothing again: with it Snakemake overlooks, where the model is
        # exported in the same run, that the parameters of this rule have changed.
        **({} if IMAGE_SIZE else {"info": "results/models/fp32/info.json"}),
        archive=[] if FOLDER else ARCHIVE,
        receipt=RECEIPT,
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
                "image_size": IMAGE_SIZE,
                "substitute": ("generated data set" if config["dataset"]["source"] == "generated" else None),
            }
        ),
    script:
        "../scripts/pack_images.py"
