"""Plausible stand-ins: result files as the measuring rules would leave them, and a small transformer."""

import csv
import json
import os
import shutil
import struct
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from timm.models import VisionTransformer
    from torch import Tensor

VARIANTS = {
    "fp32": {"recipe": "fp32"},
    "int8-dynamic-linear": {"recipe": "int8-dynamic", "modules": ["Linear"], "weights": "per-tensor"},
    "int8-dynamic-linear-conv": {"recipe": "int8-dynamic", "modules": ["Linear", "Conv2d"], "weights": "per-tensor"},
    "int8-dynamic-per-channel": {"recipe": "int8-dynamic", "modules": ["Linear"], "weights": "per-channel"},
    "int8-static": {"recipe": "int8-static", "modules": ["Linear", "Conv2d"], "weights": "per-channel"},
    "int8-weight-only": {"recipe": "int8-weight-only", "modules": ["Linear", "Conv2d"]},
    "bf16": {"recipe": "bf16"},
    "fp16": {"recipe": "fp16"},
    "fp16-dynamic": {"recipe": "fp16-dynamic"},
}
NO_CPU = "a GPU precision: few CPUs compute in fp16, the others emulate it"
NO_CUDA = "quantized::linear_dynamic has no CUDA kernel in PyTorch: the int8 `quantized::` operators are CPU-only"
UNSUPPORTED = {
    "fp16": {"cpu": NO_CPU},
    "fp16-dynamic": {"cuda": NO_CUDA},
    "int8-dynamic-linear": {"cuda": NO_CUDA},
    "int8-dynamic-linear-conv": {"cuda": NO_CUDA},
    "int8-dynamic-per-channel": {"cuda": NO_CUDA},
    "int8-static": {"cuda": NO_CUDA},
}
# Milliseconds per image.
P50 = {
    ("cpu", 1): [56.1, 14.8, 14.6, 14.7, 13.1, 57.6, 18.0, 0, 30.4],
    ("cpu", 16): [54.2, 16.0, 15.8, 16.1, 11.2, 55.9, 17.9, 0, 31.7],
    ("cuda", 1): [2.1, 0, 0, 0, 0, 2.6, 1.62, 1.58, 0],
    ("cuda", 16): [0.41, 0, 0, 0, 0, 0.47, 0.16, 0.15, 0],
}
SIZE_MB = [86.5, 22.9, 22.0, 23.0, 22.8, 23.1, 43.5, 43.5, 86.6]
TOP1 = [23.55, 20.30, 20.25, 20.45, 18.10, 23.50, 23.55, 0, 23.55]
COSINE = [1.0, 0.8904, 0.8891, 0.9003, 0.8369, 0.9993, 0.9999, 0, 0.99999]
AGREEMENT = [100.0, 45.6, 45.5, 46.2, 36.1, 93.4, 98.2, 0, 99.8]
BECAME = [
    "fp32",
    "int8 dynamic, per-tensor weights (x86)",
    "int8 dynamic, per-tensor weights (x86)",
    "int8 dynamic, per-channel weights (x86)",
    "int8 static, per-channel weights (x86)",
    "int8 weights per-channel, float32 arithmetic",
    "bfloat16",
    "float16",
    "fp16 dynamic, stored as float32 (x86)",
]
PRECISIONS = dict(zip(BECAME, ["fp32", "int8", "int8", "int8", "int8", "fp32", "bf16", "fp16", "fp32"], strict=True))
BYTES = {name: 1 if name.startswith("int8") else 4 for name in BECAME} | {"bfloat16": 2, "float16": 2}
FIGURES = ["pareto", "latency"]  # of the page
AUDIT_COLUMNS = ["module", "kind", "quantizable", "reason", "asked", "became", "precision"]
AUDIT_COLUMNS += ["parameters", "bytes_before", "bytes_after"]


@dataclass(frozen=True)
class Samples:
    """Where the files of a made-up run lie, and the slices of the config that go with them."""

    root: Path
    latency: list[Path]
    footprint: list[Path]
    accuracy: list[Path]
    audits: list[Path]
    models: list[Path]
    archive: Path
    dataset: Path
    checkpoint: Path | None
    info: Path
    config: dict[str, Any]

    @property
    def summary_config(self) -> dict[str, Any]:
        """The slice of the config that the summary rule gets."""
        return {
            "variants": list(self.config["variants"]),
            "runtimes": dict.fromkeys(self.config["variants"], "torchscript"),
            "devices": self.config["devices"],
            "batch_sizes": self.config["latency"]["batch_sizes"],
            "unsupported": {
                variant: {device: reason for device, reason in reasons.items() if device in self.config["devices"]}
                for variant, reasons in UNSUPPORTED.items()
            },
        }

    @property
    def recommend_config(self) -> dict[str, Any]:
        """The slice of the config that the rule for the recommendation gets."""
        return {
            "budget": self.config["budget"],
            "devices": self.config["devices"],
            "batch_size": self.config["figures"]["batch_size"] or min(self.config["latency"]["batch_sizes"]),
            "artifacts": {variant: [f"results/models/{variant}/model.pt"] for variant in VARIANTS},
            "substitutes": ["generated data set", "seeded weights"] if self.checkpoint is None else [],
        }

    @property
    def figure_config(self) -> dict[str, Any]:
        """The slice of the config that the figure rule gets."""
        parts = [json.loads(path.read_text())["substitute"] for path in (self.dataset, self.info)]
        return {
            **self.config["figures"],
            "without_attention": {},
            "without_patches": {},
            "variants": list(self.config["variants"]),
            "substitute": ", ".join(part for part in parts if part) or None,
        }


def write_samples(
    root: Path,
    devices: tuple[str, ...] = ("cpu",),
    batch_sizes: tuple[int, ...] = (1, 16),
    substitute: bool = False,
) -> Samples:
    """Write the files below ``root`` in the workflow's layout; accuracy is that of the first device."""
    config = _config(list(devices), list(batch_sizes), substitute)
    checkpoint = config["model"]["checkpoint"]
    latency, footprint, accuracy, audits, models = [], [], [], [], []
    for i, variant in enumerate(VARIANTS):
        audits.append(_write_audit(root / f"results/models/{variant}/audit.csv", variant, BECAME[i]))
        models.append(_write_model(root / f"results/models/{variant}/model.pt", SIZE_MB[i]))
        if devices[0] not in UNSUPPORTED.get(variant, {}):
            accuracy.append(_write(root / f"results/accuracy/{variant}.json", _accuracy(i, variant, devices[0])))
        for device in devices:
            if device in UNSUPPORTED.get(variant, {}):
                continue
            path = root / f"results/footprint/{device}/{variant}.json"
            footprint.append(_write(path, _footprint(i, variant, device)))
            for batch in batch_sizes:
                path = root / f"results/latency/{device}/{variant}/batch{batch}.json"
                latency.append(_write(path, _latency(i, variant, device, batch)))
    return Samples(
        root=root,
        latency=latency,
        footprint=footprint,
        accuracy=accuracy,
        audits=audits,
        models=models,
        archive=_write(root / "results/data/archive.json", _receipt(config["dataset"]["source"])),
        dataset=_write(root / "results/data/dataset.json", _dataset(config["dataset"]["source"], substitute)),
        checkpoint=None if substitute else _write(root / "results/model/checkpoint.json", _receipt(checkpoint)),
        info=_write(root / "results/models/fp32/info.json", _info(substitute)),
        config=config,
    )


def write_tables(samples: Samples) -> None:
    """Write the summary and the recommendation below ``samples.root``, and figures to show."""
    from dinoquant.files import read_rows
    from dinoquant.report.recommend import recommend
    from dinoquant.report.summary import summarise, write_summary

    table = summarise(
        *(samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models), samples.summary_config
    )
    write_summary(table, samples.root / "summary.csv")
    recommendation = recommend(read_rows(samples.root / "summary.csv"), samples.recommend_config)
    _write(samples.root / "recommendation.json", recommendation)
    for figure in FIGURES:
        path = samples.root / f"{figure}.svg"
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="468pt" height="500pt" viewBox="0 0 468 500"/>')


def render_page(samples: Samples) -> tuple[str, str]:
    """Return the page and its short form, from the files that `write_tables` left."""
    from dinoquant.report.page import render_report

    return render_report(
        summary=samples.root / "summary.csv",
        recommendation=samples.root / "recommendation.json",
        audits=samples.audits,
        accuracy=samples.accuracy,
        figures=[samples.root / f"{figure}.svg" for figure in FIGURES],
        archive=samples.archive,
        dataset=samples.dataset,
        checkpoint=samples.checkpoint,
        info=samples.info,
        latency=samples.latency,
        variants=list(VARIANTS),
        config=samples.config,
    )


def tiny_vit(**options: Any) -> "VisionTransformer":
    """Return two blocks of width 64 for images of 32 pixels, with what trained weights have and fresh ones lack.

    That is: biases, LayerNorms of uneven gain, and a channel behind each GELU that reaches far beyond the others.
    """
    import torch  # here, since most users of this file need no PyTorch, and it takes seconds
    from timm.models import VisionTransformer

    generator = torch.Generator().manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    vit: VisionTransformer = VisionTransformer(**sizes | {"num_classes": 0} | options).eval().requires_grad_(False)
    for name, parameter in vit.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "gamma" in name:
            parameter.copy_(noise.abs() + 0.1)
        elif "norm" in name and name.endswith("weight"):
            parameter.copy_(torch.exp(0.5 * noise))
        elif name.endswith("weight"):
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.2 * noise)
        if name.endswith("mlp.fc1.weight"):
            parameter[5] *= 30
    return vit


def photographs(count: int, seed: int) -> "Tensor":
    """Return normalised noise that had 256 values in each colour: float32 ``[count, 3, 32, 32]``."""
    import torch

    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
    return pixels / 127.5 - 1


def copy_workflow(folder: Path) -> None:
    """Copy the workflow's files, without any results, to a new folder."""
    root = Path(__file__).parents[1]
    for part in ("Snakefile", "config", "envs", "profiles", "workflow", "tests/small.yaml"):
        source, target = root / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def encoded(image: "Image.Image", kind: str = "JPEG") -> bytes:
    """Return the file of an image."""
    stream = BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def header_only(width: int, height: int) -> bytes:
    """Return a PNG that promises an image of that size and has no pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
    return path


def _write_model(path: Path, megabytes: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(round(megabytes * 1e6))  # sparse: takes no room
    return path


def _config(devices: list[str], batch_sizes: list[int], substitute: bool) -> dict[str, Any]:
    source = "generated" if substitute else "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    checkpoint = "seeded" if substitute else "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain.pth"
    return {
        "seed": 0,
        "dataset": {"source": source, "checksum": None, "bank_per_class": 50, "queries": 2000},
        "model": {"architecture": "vit_small_patch16_224.dino", "checkpoint": checkpoint, "image_size": None},
        "variants": VARIANTS,
        "devices": devices,
        "latency": {
            "batch_sizes": batch_sizes,
            "threads": "auto",
            "rounds": 10,
            "processes": 2,
            "block_seconds": 1.0,
            "warmup_seconds": 2.0,
            "precision": 0.025,
        },
        "accuracy": {
            "device": devices[0],
            "batch_size": 32,
            "threads": "auto",
            "k": 20,
            "temperature": 0.07,
            "confidence": 0.95,
            "resamples": 2000,
        },
        "budget": {
            "cosine": 0.995,
            "patch_cosine": None,
            "knn_top1_drop": 1,
            "latency_ms": None,
            "size_mb": None,
            "peak_rss_mb": None,
        },
        "figures": {"palette": "colorblind", "font_scale": 1.0, "dpi": 150, "batch_size": None},
    }


def _machine(device: str) -> dict[str, Any]:
    return {
        "node": "node1",
        "os": "Linux-6.1.0-x86_64-with-glibc2.36",
        "cpu": "AMD EPYC 9B45",
        "architecture": "x86_64",
        "cores": 2,
        "affinity": [0, 1],
        "instruction_sets": ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"],
        "memory_gb": 15.6,
        "gpu": "NVIDIA H100" if device == "cuda" else None,
        "python": "3.11.2",
        "torch": "2.15.0",
        "torchvision": "0.29.2",
        "timm": "1.0.31",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
    }


def _latency(i: int, variant: str, device: str, batch: int) -> dict[str, Any]:
    per_image = P50.get((device, batch), P50[device, 1])
    p50, fp32 = per_image[i] * batch, per_image[0] * batch
    speedup = fp32 / p50
    return {
        "variant": variant,
        "device": device,
        "batch_size": batch,
        "threads": 2,
        "protocol": {
            "rounds": 10,
            "processes": 2,
            "precision": 0.025,
            "block_seconds": 1.0,
            "warmup_seconds": 2.0,
            "confidence": 0.95,
        },
        "warmup": [{"variant": {"steady": True}, "fp32": {"steady": batch == 1 or variant != "bf16"}}] * 2,
        "samples": 400 if batch == 1 else 8,
        "latency_p50_ms": p50,
        "latency_p50_ci_low_ms": p50 * 0.985,
        "latency_p50_ci_high_ms": p50 * 1.02,
        "latency_p90_ms": p50 * 1.06 if batch == 1 else None,
        "latency_p99_ms": p50 * 1.2 if batch == 1 else None,
        "throughput_ips": batch / p50 * 1000,
        "fp32_p50_ms": fp32,
        "speedup": speedup,
        "speedup_ci_low": speedup * 0.98,
        "speedup_ci_high": speedup * 1.02,
        "samples_ms": {
            arm: [[round(ms * (1 + call % 7 / 100), 3) for call in range(40 if batch == 1 else 1)] for _ in range(10)]
            for arm, ms in [("variant", p50), ("fp32", fp32)]
        },
        "verdict": "ok",
        "verdict_reason": "",
        "second_run": 0.02,
        "preprocess_p50_ms": 0.9 * batch,
        "end_to_end_p50_ms": p50 + 0.9 * batch,
        **({"noise_floor": 0.02} if variant == "fp32" else {}),
        "started": 1700000000.0,
        "finished": 1700000030.0,
        "machine": _machine(device),
    }


def _footprint(i: int, variant: str, device: str) -> dict[str, Any]:
    return {
        "variant": variant,
        "device": device,
        "size_mb": SIZE_MB[i],
        "load_ms": 80.0 + SIZE_MB[i],
        "first_inference_ms": 200.0 + i,
        "peak_rss_mb": 400.0 + 2 * SIZE_MB[i],
        "baseline_rss_mb": 240.0,
        "threads": 2,
        "machine": _machine(device),
    }


def _accuracy(i: int, variant: str, device: str) -> dict[str, Any]:
    top1, drop, cosine, agreement = TOP1[i], TOP1[0] - TOP1[i], COSINE[i], AGREEMENT[i]
    half = 0.0 if variant == "fp32" else 0.6
    return {
        "variant": variant,
        "device": device,
        "bank": 10000,
        "queries": 2000,
        "k": 20,
        "temperature": 0.07,
        "knn_top1": top1,
        "knn_top1_ci_low": top1 - 1.8,
        "knn_top1_ci_high": top1 + 1.8,
        "knn_top5": top1 + 22,
        "knn_top5_ci_low": top1 + 20,
        "knn_top5_ci_high": top1 + 24,
        "knn_top1_drop": drop,
        "knn_top1_drop_ci_low": drop - half,
        "knn_top1_drop_ci_high": drop + half,
        "cosine_mean": cosine,
        "cosine_mean_ci_low": cosine - (1 - cosine) * 0.02,
        "cosine_mean_ci_high": cosine + (1 - cosine) * 0.02,
        "cosine_p5": 1 - (1 - cosine) * 1.6,
        "knn_agreement": agreement,
        "knn_agreement_ci_low": agreement - 2 * half,
        "knn_agreement_ci_high": min(100.0, agreement + 2 * half),
        "per_class": [_class(number, drop, 10 * half) for number in range(12)],
    }


def _class(number: int, drop: float, half: float) -> dict[str, Any]:
    lost = 10 * (drop - number)
    row = {"wnid": f"n9000{number:04}", "queries": 50, "knn_top1": 70 - lost, "knn_top1_fp32": 70.0, "drop": lost}
    return row | {"drop_ci_low": lost - half, "drop_ci_high": lost + half}


def _write_audit(path: Path, variant: str, became: str) -> Path:
    """Write the audit of ViT-S/16; dropout and the like left out."""
    modules = [("pos_embed", "Parameter", 75_648), ("patch_embed.proj", "Conv2d", 295_296)]
    for block in range(12):
        modules += [
            (f"blocks.{block}.norm1", "LayerNorm", 768),
            (f"blocks.{block}.attn.qkv", "Linear", 443_520),
            (f"blocks.{block}.attn.proj", "Linear", 147_840),
            (f"blocks.{block}.norm2", "LayerNorm", 768),
            (f"blocks.{block}.mlp.fc1", "Linear", 591_360),
            (f"blocks.{block}.mlp.act", "GELU", 0),
            (f"blocks.{block}.mlp.fc2", "Linear", 590_208),
        ]
    modules.append(("norm", "LayerNorm", 768))
    recipe = VARIANTS[variant]["recipe"]
    every_kind = ["Parameter", "Conv2d", "LayerNorm", "Linear", "GELU"]
    asked = {"fp32": [], "bf16": every_kind, "fp16": every_kind, "fp16-dynamic": ["Linear"]}
    kinds = asked[recipe] if recipe in asked else VARIANTS[variant]["modules"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(AUDIT_COLUMNS)
        for name, kind, parameters in modules:
            matrix_product = kind in ("Linear", "Conv2d")
            reason = "a matrix product" if matrix_product else "no recipe converts this kind"
            row = [name, kind, str(matrix_product).lower(), reason, recipe if kind in kinds else ""]
            row += [became, PRECISIONS[became]] if kind in kinds else ["fp32", "fp32"]
            row += [parameters, 4 * parameters]
            writer.writerow([*row, (BYTES[became] if kind in kinds else 4) * parameters])
    return path


def _receipt(source: str) -> dict[str, Any]:
    return {
        "source": source,
        "file": "resources/datasets/tiny-imagenet-200.zip",
        "bytes": 248_100_043,
        "md5": "90528d7ca1a48142e341f4ef8d21d0de",
        "sha256": "ab" * 32,
        "checked_against": "md5:90528d7ca1a48142e341f4ef8d21d0de",
    }


def _dataset(source: str, substitute: bool) -> dict[str, Any]:
    return {
        "source": source,
        "substitute": "generated data set" if substitute else None,
        "layout": "200 classes, from wnids.txt and train/; queries from val/, labelled by val_annotations.txt",
        "classes": 200,
        "unlabelled": None,
        "splits": {"bank": 10_000, "query": 2_000, "calibration": 64},
        "height": 64,
        "width": 64,
        "resized": False,
        "notes": ["left out: 2 hidden or system files, such as train/.DS_Store"],
        "skipped": [{"member": "train/n01443537/images/n01443537_7.JPEG", "error": "image file is truncated"}],
    }


def _info(substitute: bool) -> dict[str, Any]:
    return {
        "architecture": "vit_small_patch16_224.dino",
        "image_size": 224,
        "pooling": "token",
        "output": "features",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "feature_dim": 384,
        "patch_size": 16,
        "tokens": 197,
        "prefix_tokens": 1,
        "class_token": True,
        "parameters": 21_665_664,
        "normalization": "imagenet",
        "note": "timm's own normalization for this architecture differs: mean 0.5, std 0.5",
        "substitute": "seeded weights" if substitute else None,
        "weights": None if substitute else "teacher.backbone",
        "other_weights": [] if substitute else ["student.backbone"],
        "beside_weights": [] if substitute else ["optimizer"],
        "dropped": [] if substitute else ["head.weight"],
    }


def damage(archive: Path, ending: str) -> None:
    """Change one bit in the middle of the first member of a zip archive whose name ends so."""
    with zipfile.ZipFile(archive) as members, archive.open("r+b") as file:
        member = next(member for member in members.infolist() if member.filename.endswith(ending))
        file.seek(member.header_offset + 30)  # behind the fixed part of its header
        file.seek(len(member.filename) + member.compress_size // 2, os.SEEK_CUR)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
