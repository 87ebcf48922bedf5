"""The figures: what each is drawn from, which part of the config it shows, and its caption. Imports none of them.

A figure is a row here and a module of its name beside, with `draw(*inputs, style)`: its inputs in the order of
``needs``, as `dinoquant.report.figures.inputs` reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What the rules and the page must know of a figure."""

    needs: tuple[str, ...]  # kinds of result files, in the order in which `draw` takes them
    caption: str
    variants: bool = True  # whether it has a colour or a row for every variant of the config
    batch_size: bool = False  # whether it shows the batch size of the config's `figures`
    photographs: bool = False  # whose colours a dark page must leave alone


# In the order of the page.
CATALOGUE: Mapping[str, Entry] = {
    "pareto": Entry(
        ("summary",),
        "Mean cosine similarity to the features of fp32 against the speed-up over it: what speed costs in fidelity. "
        "With seeded weights or generated images, which tell nothing of it, size takes its place. "
        "A variant off the line is beaten by one on it in both.",
        batch_size=True,
    ),
    "latency": Entry(
        ("summary",),
        "How long a call takes: median, its 95 % interval, and the 90th percentile. Each variant is timed in "
        "alternation with fp32: cite the ratio rather than the milliseconds.",
        batch_size=True,
    ),
    "distribution": Entry(
        ("summary", "latency"),
        "How long the single calls took: half of them within the box, 98 % within the whiskers, every other one a dot. "
        "A median hides what happens to one call in a hundred.",
        batch_size=True,
    ),
    "throughput": Entry(("summary",), "How many images per second, and what a larger batch changes."),
    "roofline": Entry(
        ("summary", "limits", "machines"),
        "Operations per second of each variant over its operations for each byte that has to be moved, below what this "
        "machine reached in large matrix products and in memory.",
    ),
    "size": Entry(
        ("summary",), "What the model takes on disk, in MB of 1e6 bytes, and how many times smaller than fp32 that is."
    ),
    "fidelity": Entry(
        ("summary",),
        "How far features and k-NN predictions moved from those of fp32: cosine similarity, top-1 accuracy lost, "
        "agreement of predictions. A loss with zero in its interval may be chance.",
    ),
    "scaling": Entry(
        ("scaling",),
        "Images per second over the number of threads, at the smallest batch size: what more threads bring.",
    ),
    "attention": Entry(
        ("attention",),
        "What the [CLS] token attends to in the last block, the mean over the heads: the maps by which DINO is known. "
        "The number is the rank correlation with the map of fp32.",
        photographs=True,
    ),
    "patches": Entry(
        ("patches",),
        "The patch tokens of a few images by their first three principal components, as colours: the pictures by which "
        "DINOv2 is known. All variants are projected on the components of fp32's patches, so that what differs is the "
        "variant's. The number is the mean cosine of the image's patches to fp32's.",
        photographs=True,
    ),
    "sensitivity": Entry(
        ("sensitivity",),
        "How far each module alone, quantized, moves the features from those of fp32 (1 - mean cosine similarity); "
        "int8-auto chooses its precisions by it.",
        variants=False,
    ),
    "audit": Entry(("audits",), "What each variant did to the modules of each kind, whatever it was asked to do."),
}
