"""Record by digest what a run made and from what, and verify a results folder against that record."""

from snakemake import __version__ as snakemake_version

PROVENANCE = "results/provenance.json"
TORCHSCRIPT = [variant for variant in VARIANTS if runtime_of(variant) == runtimes.TORCHSCRIPT]
EXTRACTED = [variant for variant in VARIANTS if extraction_device(variant)]


rule record_provenance:
    input:
        **({"checkpoint": "results/model/checkpoint.json"} if CHECKPOINT else {}),
        archive="results/data/archive.json",
        deterministic=[
            "results/data/archive.json",
            *(["results/model/checkpoint.json"] if CHECKPOINT else []),
            "results/data/images.npy",
            "results/data/manifest.csv",
            "results/data/dataset.json",
            "results/models/fp32/state_dict.pt",
            "results/models/fp32/info.json",
            *[f"results/models/{variant}/model.pt" for variant in VARIANTS if has_torchscript(variant)],
            *AUDITS,
            *[f"results/features/{variant}.npz" for variant in EXTRACTED],
            *ACCURACIES,
            *PROBES,
            *PATCH_FILES,
            *PATCH_TOKENS,
            *(ATTENTIONS if ATTENTION else []),
            *([SENSITIVITY] if ANALYSED else []),
        ],
        varying=[
            "results/summary.csv",
            "results/limits.csv",
            *MACHINES,
            *LATENCIES,
            *SCALINGS,
            *FOOTPRINTS,
            *ENERGIES,
            *[f"results/features/{variant}.json" for variant in EXTRACTED],
            *[file for variant in VARIANTS if variant not in TORCHSCRIPT for file in artifacts(variant)],
            *CARDS,
        ],
        locks=sorted({lock for variant in VARIANTS for lock in locks(variant)}),
        code=code("record_provenance"),
    output:
        json=PROVENANCE,
    log:
        "logs/record_provenance.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        # Untracked, as they name `output`: what matters to a result makes the result new, and with it this record.
        config=lambda wildcards, output: {
            key: value for key, value in config.items() if key not in ("figures", "budget")
        }
        | {"devices": DEVICES},
        snakemake=lambda wildcards, output: snakemake_version,
    script:
        "../scripts/record_provenance.py"


# Without input or output: it runs whenever it is asked for, and makes nothing new that would hide a difference.
rule verify:
    log:
        "logs/verify.log",
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    params:
        provenance=PROVENANCE,
    script:
        "../scripts/verify_results.py"
