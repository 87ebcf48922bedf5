"""Get the checkpoint, check it, and export the float32 model that everything is compared with."""

CHECKPOINT = source_path("model", "checkpoint", "resources/checkpoints", "seeded")
LOCAL_CHECKPOINT = CHECKPOINT if not is_url(config["model"]["checkpoint"]) else None


if CHECKPOINT and is_url(config["model"]["checkpoint"]):

    # No input, so that nothing but another source downloads it again.
    rule download_checkpoint:
        output:
            file=CHECKPOINT,
        log:
            "logs/download_checkpoint.log",
        localrule: True
        conda:
            "../../envs/pipeline.yaml"
        params:
            url=config["model"]["checkpoint"],
            checksum=untracked_checksum("model", config["model"]["checkpoint"], "results/model/checkpoint.json"),
        script:
            "../scripts/download.py"


if CHECKPOINT:

    rule verify_checkpoint:
        input:
            file=CHECKPOINT,
            code=code("verify"),
            lock=LOCK,
        output:
            listing="results/model/listing.json",
            receipt="results/model/checkpoint.json",
        log:
            "logs/verify_checkpoint.log",
        localrule: True
        conda:
            "../../envs/pipeline.yaml"
        params:
            config=lambda wildcards: {"source": config["model"]["checkpoint"], "key": "model"}
            | local_state(LOCAL_CHECKPOINT, "results/model/listing.json", "results/model/checkpoint.json"),
            checksum=untracked_checksum("model", config["model"]["checkpoint"], "results/model/checkpoint.json"),
        script:
            "../scripts/verify.py"


rule export_fp32:
    input:
        **(
            {
                "checkpoint": CHECKPOINT,
                "receipt": "results/model/checkpoint.json",
            }
            if CHECKPOINT
            else {}
        ),
        code=code("export_fp32"),
        lock=LOCK,
    output:
        model="results/models/fp32/model.pt",
        audit="results/models/fp32/audit.csv",
        state_dict="results/models/fp32/state_dict.pt",
        info="results/models/fp32/info.json",
    log:
        "logs/export_fp32.log",
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=tidy(
            {
                key: config["model"][key]
                for key in ("architecture", "image_size", "normalization", "output", "pooling", "weights")
            }
            | {"seed": config["seed"]}
        ),
    script:
        "../scripts/export_fp32.py"


rule download:
    input:
        ARCHIVE,
        "results/data/archive.json",
        ([CHECKPOINT, "results/model/checkpoint.json"] if CHECKPOINT else []),
    localrule: True
