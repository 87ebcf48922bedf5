"""Make the models of other runtimes, of the float32 model's ONNX file or weights, or of a TorchScript file."""


rule export_onnx:
    input:
        state_dict="results/models/fp32/state_dict.pt",
        info="results/models/fp32/info.json",
        code=code("export_onnx"),
        lock=[LOCK, PEERS_LOCK],
    output:
        onnx="results/models/fp32/model.onnx",
    log:
        "logs/export_onnx.log",
    conda:
        "../../envs/pipeline.yaml"
    script:
        "../scripts/export_onnx.py"


for runtime, entry in runtimes.RUNTIMES.items():
    if runtime != runtimes.TORCHSCRIPT:

        rule:
            name:
                f"convert_{runtime}"
            input:
                unpack(calibration),
                source=converted_from,
                fp32="results/models/fp32/model.pt",
                info="results/models/fp32/info.json",
                code=lambda wildcards: code("convert", *runtime_modules(wildcards.variant)),
                lock=lambda wildcards: locks(wildcards.variant),
            output:
                multiext("results/models/{variant}/model", *entry.suffixes),
                card="results/models/{variant}/card.json",
            log:
                "logs/convert/{variant}.log",
            wildcard_constraints:
                variant=pattern(variant for variant in VARIANTS if runtime_of(variant) == runtime),
            conda:
                "../../envs/pipeline.yaml"
            threads: 4  # or what --cores allows
            params:
                config=lambda wildcards: tidy({"options": VARIANTS[wildcards.variant]}),
            script:
                "../scripts/convert.py"
