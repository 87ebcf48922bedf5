"""Make the models of other runtimes: of ONNX Runtime and OpenVINO from one ONNX file, of PyTorch's compiler itself."""


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


rule convert_onnxruntime:
    input:
        unpack(calibration),
        source="results/models/fp32/model.onnx",
        fp32="results/models/fp32/model.pt",
        info="results/models/fp32/info.json",
        code=lambda wildcards: code("convert", *runtime_modules(wildcards.variant)),
        lock=lambda wildcards: locks(wildcards.variant),
    output:
        model="results/models/{variant}/model.onnx",
        card="results/models/{variant}/card.json",
    log:
        "logs/convert/{variant}.log",
    wildcard_constraints:
        variant=of_runtime("onnxruntime"),
    conda:
        "../../envs/pipeline.yaml"
    threads: 4  # or what --cores allows
    params:
        config=lambda wildcards: tidy({"options": VARIANTS[wildcards.variant]}),
    script:
        "../scripts/convert.py"


use rule convert_onnxruntime as convert_openvino with:
    output:
        model="results/models/{variant}/model.xml",
        weights="results/models/{variant}/model.bin",
        card="results/models/{variant}/card.json",
    wildcard_constraints:
        variant=of_runtime("openvino"),


use rule convert_onnxruntime as convert_inductor with:
    input:
        unpack(calibration),
        source="results/models/fp32/state_dict.pt",
        fp32="results/models/fp32/model.pt",
        info="results/models/fp32/info.json",
        code=lambda wildcards: code("convert", *runtime_modules(wildcards.variant)),
        lock=lambda wildcards: locks(wildcards.variant),
    output:
        model="results/models/{variant}/model.pt2",
        card="results/models/{variant}/card.json",
    wildcard_constraints:
        variant=of_runtime("inductor"),
