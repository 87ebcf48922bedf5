"""The columns of the summary: where each comes from, how it is headed and printed, and what it means.

Standard library only, as the Snakefile imports it by way of `dinoquant.report.table`. What a stage writes under a key
that is the name of a column here is in the summary, on the page and in its guide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Row = Mapping[str, str]  # of summary.csv, by column


class Source(Enum):
    """The file below results/ that a column comes from."""

    SUMMARY = "summary.csv"  # what the row is about, and the verdict on it
    LATENCY = "latency/{device}/{variant}/batch{batch_size}.json"
    BASELINE_LATENCY = "latency/{device}/fp32/batch{batch_size}.json"
    LIMITS = "limits.csv"
    MODEL = "models/{variant}/"
    FOOTPRINT = "footprint/{device}/{variant}.json"
    ENERGY = "energy/{device}/{variant}.json"
    ACCURACY = "accuracy/{variant}.json"
    PROBE = "probe/{variant}.json"
    PATCHES = "patches/{variant}.json"
    AUDIT = "models/{variant}/audit.csv"


@dataclass(frozen=True)
class Column:
    """One measurement: a column of the summary, with two more for its interval if it has one."""

    name: str
    source: Source
    heading: str  # of the page's table, which leaves out what has none
    unit: str
    format: str
    better: Literal["higher", "lower", ""]
    explanation: str
    interval: bool = False
    short: str = ""  # heading in the terminal, which shows only what has one
    rank: int = 0  # place among the columns that the page shows at once; 0: only with all columns

    @property
    def ends(self) -> tuple[str, str]:
        """The columns of the interval's ends; the column's own name twice if it has none."""
        stem, unit = (self.name.removesuffix("_ms"), "_ms") if self.name.endswith("_ms") else (self.name, "")
        return (f"{stem}_ci_low{unit}", f"{stem}_ci_high{unit}") if self.interval else (self.name, self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns of the summary that this is about."""
        return (self.name, *self.ends) if self.interval else (self.name,)

    @property
    def title(self) -> str:
        """The heading with the unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    @property
    def short_title(self) -> str:
        """The heading in the terminal, with the unit."""
        return f"{self.short} {self.unit}".rstrip()

    def text(self, row: Row) -> str:
        """Return the row's value as text; empty where it is missing."""
        value = row.get(self.name, "")
        return f"{float(value):{self.format}}" if value and self.format != "s" else value

    def interval_text(self, row: Row) -> tuple[str, str] | None:
        """Return the ends of the interval as text, or None if there is none."""
        low, high = (number(row, end) if self.interval else None for end in self.ends)
        if low is None or high is None:
            return None
        return f"{low:{self.format}}", f"{high:{self.format}}"


def number(row: Row, name: str) -> float | None:
    """Return a cell as a number; None where it is empty, or where the summary of an older version lacks the column."""
    return float(row[name]) if row.get(name) else None


# Two lines a column; ruff would give every argument its own.
# fmt: off
COLUMNS = [
    Column("variant", Source.SUMMARY, "", "", "s", "",
           "What ran: the variant's name in the config."),
    Column("runtime", Source.SUMMARY, "runtime", "", "s", "",
           "By which runtime."),
    Column("device", Source.SUMMARY, "", "", "s", "",
           "On what: cpu or cuda."),
    Column("batch_size", Source.SUMMARY, "", "", "s", "",
           "On how many images at a time."),
    Column("threads", Source.LATENCY, "threads", "", "s", "",
           "With how many compute threads."),
    Column("node", Source.LATENCY, "", "", "s", "",
           "The machine that timed the row, and fp32 beside it."),
    Column("cpu", Source.LATENCY, "", "", "s", "",
           "The processor of that machine."),
    Column("status", Source.SUMMARY, "", "", "s", "",
           "ok: nine second runs in ten would confirm the speed-up within 5 %; wide: too coarse to rank; disturbed: "
           "something else moved it; saturates: its int8 sums overflow there; unsupported: cannot run there, or "
           "emulated only."),
    Column("reason", Source.SUMMARY, "", "", "s", "",
           "What casts doubt on the timing, or why the variant cannot run."),
    Column("latency_p50_ms", Source.LATENCY, "p50", "ms", ".2f", "lower",
           "Median time of one call on one batch.", interval=True, short="p50", rank=2),
    Column("latency_p90_ms", Source.LATENCY, "p90", "ms", ".2f", "lower",
           "90th percentile of the same samples; missing below 64."),
    Column("latency_p99_ms", Source.LATENCY, "p99", "ms", ".2f", "lower",
           "99th percentile of the same samples; missing below 662."),
    Column("throughput_ips", Source.LATENCY, "images/s", "", ".1f", "higher",
           "Images per second: batch size over median time."),
    Column("speedup", Source.LATENCY, "times as fast as fp32", "", ".2f", "higher",
           "fp32's block median over the variant's, round by round: the mean over processes of the interquartile mean. "
           "For fp32 itself a control that should be 1.", interval=True, short="speed-up", rank=1),
    Column("preprocess_p50_ms", Source.LATENCY, "preprocessing", "ms", ".2f", "lower",
           "Median time to turn a batch of 8-bit images into the input."),
    Column("end_to_end_p50_ms", Source.LATENCY, "with preprocessing", "ms", ".2f", "lower",
           "Median time of that and the model together."),
    Column("noise_floor", Source.BASELINE_LATENCY, "noise floor", "", ".1%", "lower",
           "How far from 1 the speed-up of fp32 over itself reaches, interval included, on this device at this batch "
           "size: smaller differences mean nothing here."),
    Column("rounds", Source.LATENCY, "", "", "s", "",
           "After how many rounds the timing stopped."),
    Column("rounds_set_aside", Source.LATENCY, "", "", ".0%", "",
           "The share of them that does not count, as the machine was slow."),
    Column("foreign_processors", Source.LATENCY, "", "", ".2f", "",
           "Processors that other processes had meanwhile, on average."),
    Column("stolen_processors", Source.LATENCY, "", "", ".2f", "",
           "Processors that the hypervisor gave to other guests meanwhile, on average."),
    Column("limit_ms", Source.LIMITS, "machine's limit", "ms", ".2f", "",
           "The shortest time that this machine's measured peaks allow for the model's operations and bytes."),
    Column("over_limit", Source.LIMITS, "times the limit", "", ".2f", "lower",
           "How many times longer than that the median is."),
    Column("size_mb", Source.MODEL, "size", "MB", ".1f", "lower",
           "Bytes of the model's files / 1e6.", short="size", rank=3),
    Column("compression", Source.MODEL, "times smaller", "", ".2f", "higher",
           "fp32's size over the variant's."),
    Column("convert_s", Source.MODEL, "made in", "s", ".1f", "lower",
           "Seconds in which another runtime made its model; what quantized a TorchScript file before is not in it."),
    Column("peak_rss_mb", Source.FOOTPRINT, "peak memory", "MB", ".0f", "lower",
           "Host memory of a fresh process at its highest, beyond what it held before it loaded the model; a MB is 1e6 "
           "bytes."),
    Column("gpu_memory_mb", Source.FOOTPRINT, "GPU memory", "MB", ".0f", "lower",
           "Memory on the GPU in that process."),
    Column("load_ms", Source.FOOTPRINT, "load", "ms", ".0f", "lower",
           "Time to load the model there, its file already in the page cache."),
    Column("first_inference_ms", Source.FOOTPRINT, "first call", "ms", ".0f", "lower",
           "Time of the first call there, on one image."),
    Column("energy_mj_per_image", Source.ENERGY, "mJ per image", "", ".1f", "lower",
           "Millijoules, at the smallest batch size, by the counters of the processor or the GPU."),
    Column("energy_reason", Source.ENERGY, "", "", "s", "",
           "Why there is no energy."),
    Column("knn_top1", Source.ACCURACY, "k-NN top-1", "%", ".2f", "higher",
           "Queries whose class is the first of the weighted vote.", interval=True, short="k-NN"),
    Column("knn_top5", Source.ACCURACY, "k-NN top-5", "%", ".2f", "higher",
           "Queries whose class is among its first five."),
    Column("knn_top1_drop", Source.ACCURACY, "k-NN top-1 lost", "points", ".2f", "lower",
           "fp32's top-1 minus the variant's, in percentage points: positive is a loss.", interval=True, rank=5),
    Column("cosine_mean", Source.ACCURACY, "cosine to fp32", "", ".4f", "higher",
           "Cosine similarity of features to fp32's: mean over queries.", interval=True, short="cosine", rank=4),
    Column("cosine_p5", Source.ACCURACY, "cosine, 5th percentile", "", ".4f", "higher",
           "Its 5th percentile over queries."),
    Column("knn_agreement", Source.ACCURACY, "same prediction", "%", ".1f", "higher",
           "Queries with the same predicted class as fp32's, right or wrong."),
    Column("mcnemar_p", Source.ACCURACY, "McNemar p", "", ".2g", "",
           "How likely so uneven a count of lost and gained k-NN predictions is by chance, if the variant were as "
           "accurate as fp32 (McNemar's test)."),
    Column("probe_top1", Source.PROBE, "probe top-1", "%", ".2f", "higher",
           "Top-1 of a linear probe."),
    Column("probe_top1_drop", Source.PROBE, "probe top-1 lost", "points", ".2f", "lower",
           "fp32's minus the variant's, in percentage points.", interval=True),
    Column("retrieval_map", Source.ACCURACY, "mAP of retrieval", "%", ".2f", "higher",
           "How well a query finds the bank's images of its class: mean average precision over the ranked bank.",
           interval=True),
    Column("retrieval_map_drop", Source.ACCURACY, "mAP lost", "points", ".2f", "lower",
           "fp32's minus the variant's, in percentage points.", interval=True),
    Column("accuracy_reason", Source.ACCURACY, "", "", "s", "",
           "Why k-NN, the probe and retrieval have no numbers."),
    Column("patch_cosine_mean", Source.PATCHES, "cosine of patches", "", ".4f", "higher",
           "Cosine similarity of patch tokens, behind the last norm, to fp32's: mean over the patches of some queries.",
           interval=True),
    Column("patch_cosine_p5", Source.PATCHES, "of patches, 5th percentile", "", ".4f", "higher",
           "Its 5th percentile over all of these patches."),
    Column("patch_cosine_min", Source.PATCHES, "of the worst patch", "", ".4f", "higher",
           "Its least over all of these patches."),
    Column("patch_images", Source.PATCHES, "", "", "s", "",
           "How many images these patches are of."),
    Column("patch_reason", Source.PATCHES, "", "", "s", "",
           "Why the patches cannot be seen."),
    Column("quantized_modules", Source.AUDIT, "modules converted", "", "s", "",
           "Modules whose weights are no longer fp32."),
    Column("quantizable_modules", Source.AUDIT, "of", "", "s", "",
           "Modules that could be converted."),
]
# fmt: on
COLUMN = {column.name: column for column in COLUMNS}
NAMES = [name for column in COLUMNS for name in column.names]  # of summary.csv, in its order
