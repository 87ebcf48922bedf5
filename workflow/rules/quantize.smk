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
        # fp32 comes from export_fp32
        variant=rf"(?!(?:fp32|{COMPILED})/)[A-Za-z0-9][A-Za-z0-9_.+-]*",
    conda:
        "../../envs/pipeline.yaml"
    params:
        config=lambda wildcards: tidy({"recipe": VARIANTS[wildcards.variant]}),
    script:
        "../scripts/quantize.py"


# What another runtime compiles is the same file, and its audit lacks what only the compiled code says.
use rule quantize as quantize_to_compile with:
    output:
        model="results/models/{variant}/model.pt",
        audit="results/models/{variant}/quantized.csv",
    wildcard_constraints:
        variant=COMPILED,


rule audit_compiled:
    input:
        quantized="results/models/{variant}/quantized.csv",
        card="results/models/{variant}/card.json",
        code=code("audit_compiled"),
        lock=LOCK,
    output:
        audit="results/models/{variant}/audit.csv",
    log:
        "logs/audit_compiled/{variant}.log",
    wildcard_constraints:
        variant=COMPILED,
    localrule: True
    conda:
        "../../envs/pipeline.yaml"
    script:
        "../scripts/audit_compiled.py"


AUDITS = [
    f"results/models/{variant}/audit.csv" for variant in VARIANTS if recipe_of(variant).module and artifacts(variant)
]


rule models:
    input:
        [file for variant in VARIANTS for file in artifacts(variant)],
        AUDITS,
    localrule: True
