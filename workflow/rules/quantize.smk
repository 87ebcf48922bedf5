"""Make every variant of the float32 model by its recipe."""


rule quantize:
    input:
        unpack(calibration),
        unpack(sensitivity_table),
        state_dict="results/models/fp32/state_dict.pt",
        info="results/models/fp32/info.json",
        code=lambda wildcards: code("quantize", f"dinoquant.recipes.{recipe_of(wildcards.variant).module}"),
        lock=LOCK,
    output:
        model="results/models/{variant}/model.pt",
        audit="results/models/{variant}/audit.csv",
    log:
        "logs/quantize/{variant}.log",
    wildcard_constraints:
        variant=r"(?!fp32/)[A-Za-z0-9][A-Za-z0-9_.+-]*",  # fp32 comes from export_fp32
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=lambda wildcards: tidy({"recipe": VARIANTS[wildcards.variant]}),
    script:
        "../scripts/quantize.py"


AUDITS = [
    f"results/models/{variant}/audit.csv" for variant in VARIANTS if recipe_of(variant).module and artifacts(variant)
]


rule models:
    input:
        [file for variant in VARIANTS for file in artifacts(variant)],
        AUDITS,
    localrule: True
