"""What a run will take, from its jobs, its config and a minute of measuring on this machine. Needs no PyTorch.

Only the float32 model is measured; what a job makes of its time is a range, with the assumption in words. Factors
without a source were read from the job times of the demo (ViT-S/16, two cores of a Zen 4).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinoquant.measure.stopping import MIN_PROCESSES, MIN_ROUNDS
from dinoquant.runtimes import BASELINE, recipe_of

OTHERS = (0.2, 1.0)  # time of a variant's call, as a part of fp32's
ASSUMED_CLASSES = 200  # Tiny ImageNet's; how many an archive has is not known before it is there

Range = tuple[float, float]
Job = tuple[str, Mapping[str, str]]  # its rule and its wildcards


@dataclass(frozen=True)
class Measured:
    """Seconds on this machine: calls of the float32 model by batch size, images, process starts; and its size."""

    call: Mapping[int, float]  # with the threads of the timings
    image: float  # in batches and with the threads of the extractions
    start: float  # of a process with PyTorch and timm
    parameters: float  # 1e6
    linears: int
    peak_gb: float  # of the process that measured this


@dataclass(frozen=True)
class Stage:
    """The jobs of one rule: how many, their seconds together, whether each has all cores, and what was assumed."""

    rule: str
    jobs: int
    seconds: Range
    alone: bool
    threads: int
    assumption: str


Model = Callable[[Mapping[str, str], Mapping[str, Any], Measured], Range]


def _times(variant: str) -> Range:
    return (1.0, 1.0) if variant == BASELINE else OTHERS


def _latency(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    latency = config["latency"]
    call = measured.call[int(wildcards.get("batch", min(measured.call)))]
    low, high = (
        _process(latency, call, factor * call, measured.start, rounds)
        for factor, rounds in zip(_times(wildcards["variant"]), _rounds(latency), strict=True)
    )
    processes = latency["processes"]
    return low * min(MIN_PROCESSES, processes), high * processes


def _rounds(latency: Mapping[str, Any]) -> tuple[int, int]:
    """Return the fewest and the most rounds of a process."""
    each = -(-latency["rounds"] // latency["processes"])
    return (min(MIN_ROUNDS, each) if latency["processes"] == 1 else each), each


def _process(latency: Mapping[str, Any], fp32: float, variant: float, start: float, rounds: int) -> float:
    blocks = sum(max(call, latency["block_seconds"]) for call in (fp32, variant))
    warm_up = sum(max(3 * call, min(0.3, latency["warmup_seconds"])) for call in (fp32, variant))
    return float(start / 2 + 3 * fp32 + warm_up + (rounds + 1) * blocks)


def _quantize(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    recipe = recipe_of(config["variants"][wildcards["variant"]])
    low = 1.2 * measured.start
    if not recipe.calibrated:
        return low, low + 0.15 * measured.parameters
    images = config["dataset"]["calibration_images"] * measured.image
    repeats = 4 if recipe.sensitivity else 1  # int8-auto builds and checks again
    return low + 2 * images, low + repeats * (10 * images + 0.8 * measured.parameters)


def _features(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    shards = config["accuracy"]["shards"]
    work = images(config) * measured.image / shards
    low, high = _times(wildcards["variant"])
    return measured.start / 2 + low * work, measured.start + high * work


def _attention(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    work = config["attention"]["images"] * measured.image
    return measured.start / 2 + work, measured.start + 5 * work


def _patches(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    work = config["patches"]["images"] * measured.image
    low, high = _times(wildcards["variant"])
    return measured.start / 2 + low * work, 1.5 * measured.start + 2 * high * work


def _sensitivity(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    work = 2 * measured.linears * config["sensitivity"]["images"] * measured.image
    return measured.start + 0.3 * work, measured.start + 1.2 * work


def _energy(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    return 0.1, measured.start + 3 * config["energy"]["seconds"]


def _pack(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    return 0.2 + 0.0002 * images(config), 1 + 0.02 * images(config)


def _probe(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    return 0.2 * measured.start, 0.4 * measured.start + 0.02 * images(config)


def _accuracy(wildcards: Mapping[str, str], config: Mapping[str, Any], measured: Measured) -> Range:
    return 0.15 * measured.start, 0.3 * measured.start + 0.002 * images(config)


def _starts(low: float, high: float) -> Model:
    return lambda wildcards, config, measured: (low * measured.start, high * measured.start)


NO_DOWNLOAD = "the time of a download is not known"
VARIANTS_CALL = f"variants take {OTHERS[0]} to {OTHERS[1]} times as long as fp32, which was measured"
# By rule: the seconds of a job, the assumption in words.
MODELS: Mapping[str, tuple[Model, str]] = {
    "download_dataset": (_starts(0, 0), NO_DOWNLOAD),
    "download_checkpoint": (_starts(0, 0), NO_DOWNLOAD),
    "generate_dataset": (_starts(0.05, 0.3), "a process start"),
    "verify_dataset": (_starts(0.05, 1), "reading the archive once"),
    "verify_checkpoint": (_starts(0.05, 0.5), "reading the file once"),
    "pack_images": (_pack, "0.2 to 20 ms an image"),
    "export_fp32": (_starts(1, 2), "a process start, and tracing"),
    "export_onnx": (_starts(1.5, 5), "a process start, and ONNX's tracing"),
    "quantize": (_quantize, "calibrated ones: images and parameters; others: a process start"),
    "quantize_to_compile": (_quantize, "as quantize"),
    "convert_onnxruntime": (_starts(1, 8), "process starts"),
    "convert_openvino": (_starts(1, 30), "process starts; calibration by NNCF is the longest"),
    "convert_inductor": (_starts(5, 60), "a compilation of 20 s to 4 minutes"),
    "audit_compiled": (_starts(0.3, 1.2), "a process start"),
    "measure_sensitivity": (_sensitivity, "each Linear in two precisions, on sensitivity.images"),
    "measure_latency": (_latency, f"fewest to most rounds and processes; {VARIANTS_CALL}"),
    "measure_scaling": (_latency, "as latency, at the smallest batch and however many threads"),
    "measure_footprint": (_starts(0.6, 1.3), "a process start, a load, and a call"),
    "measure_energy": (_energy, "nothing without a meter"),
    "measure_machine": (_starts(1, 3), "process starts"),
    "derive_limits": (_starts(0.5, 1.2), "a process start"),
    "extract_features": (_features, VARIANTS_CALL),
    "extract_shard": (_features, VARIANTS_CALL),
    "gather_features": (_starts(0.05, 0.3), "a process start"),
    "evaluate_accuracy": (_accuracy, "a process start, and up to 2 ms an image"),
    "evaluate_probe": (_probe, "a process start, and up to 20 ms an image"),
    "extract_attention": (_attention, "a process start, and up to five times the images' time"),
    "measure_patches": (_patches, f"up to twice the images' time; {VARIANTS_CALL}"),
    "summarise": (_starts(0.05, 0.4), "a process start"),
    "recommend": (_starts(0.02, 0.2), "a process start"),
    "draw_figure": (_starts(0.35, 0.8), "a process start with seaborn"),
    "write_report": (_starts(0.05, 0.4), "a process start"),
    "record_provenance": (_starts(0.05, 1), "digests of all results"),
    "verify": (_starts(0.05, 1), "digests of all results"),
}
ALONE = ("measure_latency", "measure_scaling", "measure_footprint", "measure_energy", "measure_machine")


def images(config: Mapping[str, Any]) -> int:
    """Return how many images an extraction reads; of an archive the number of classes is assumed."""
    dataset = config["dataset"]
    classes = dataset["generated"]["classes"] if dataset["source"] == "generated" else ASSUMED_CLASSES
    return int(dataset["bank_per_class"] * classes + dataset["queries"])


def stages(jobs: Iterable[Job], config: Mapping[str, Any], measured: Measured) -> list[Stage]:
    """Return a stage for each rule of the jobs, in their order; a rule that nobody estimates raises KeyError."""
    by_rule: dict[str, list[Range]] = {}
    for rule, wildcards in jobs:
        by_rule.setdefault(rule, []).append(MODELS[rule][0](wildcards, config, measured))
    return [
        Stage(
            rule,
            len(times),
            (sum(low for low, _ in times), sum(high for _, high in times)),
            rule in ALONE,
            config["accuracy"]["threads"] if rule in ("extract_features", "extract_shard") else 1,
            MODELS[rule][1],
        )
        for rule, times in by_rule.items()
    ]


def wall(found: Sequence[Stage], cores: int) -> Range:
    """Return the seconds of the whole run: what is alone one after the other, the rest side by side on ``cores``."""
    low, high = (
        sum(stage.seconds[end] * (1 if stage.alone else min(stage.threads, cores) / cores) for stage in found)
        for end in (0, 1)
    )
    return low, high


def disk_gb(config: Mapping[str, Any], measured: Measured) -> Range:
    """Return what models, images and features take; archives, checkpoints and the environment come on top."""
    fp32, others = 4e-3 * measured.parameters, len(config["variants"]) - 1
    side = (config["model"]["image_size"] or 224) * 8 / 7  # of photographs; Tiny ImageNet's have 64 pixels
    count = images(config) + config["dataset"]["calibration_images"]
    low, high = (count * 3 * pixels**2 / 1e9 for pixels in (64, side))
    return (2 + others / 4) * fp32 + low, (2 + others) * fp32 + high


def render(found: Sequence[Stage], config: Mapping[str, Any], measured: Measured, cores: int) -> str:
    """Return the table that `make estimate` prints."""
    lines = [f"{'stage':20}{'jobs':>6}{'job time':>20}  assumption"]
    lines += [f"{s.rule:20}{s.jobs:6}{_span(s.seconds):>20}  {s.assumption}" for s in found]
    disk, peak = disk_gb(config, measured), measured.peak_gb
    whole = _span(wall(found, cores))
    lines += [
        "",
        f"In all {whole} on {cores} cores, for {sum(s.jobs for s in found)} jobs; longer beside other work.",
        f"Memory: {peak:.1f} GB for one job to {2 * peak * cores:.1f} GB for {cores} at a time.",
        f"Disk: {disk[0]:.1f} to {disk[1]:.1f} GB in results/, besides what is downloaded.",
    ]
    return "\n".join(lines)


def _span(seconds: Range) -> str:
    """Write a range in seconds, minutes or hours, whichever suits its end."""
    unit, name = next((u, n) for u, n in ((3600, "h"), (60, "min"), (1, "s")) if seconds[1] >= 2 * u or u == 1)
    low, high = (f"{value / unit:.1f}" if value / unit < 10 else f"{value / unit:.0f}" for value in seconds)
    return f"{low} to {high} {name}"
