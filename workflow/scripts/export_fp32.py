"""Build the float32 model from the checkpoint or a seed, and write everything that later steps take from it."""

from typing import TYPE_CHECKING, Any

import torch

from dinoquant.files import atomic, write_json
from dinoquant.job import job, span
from dinoquant.network import architecture, audit, checkpoint
from dinoquant.network.export import export
from dinoquant.recipes import cast

if TYPE_CHECKING:
    from pathlib import Path

    from snakemake.iocontainers import snakemake
    from timm.models import VisionTransformer


def load(config: dict[str, Any], path: "str | Path | None") -> "tuple[VisionTransformer, list[str], str | None]":
    """Return the model, the tensors left out of the checkpoint, and what stands in for trained weights, if anything."""
    if path is None:
        return architecture.seeded(config["architecture"], config["image_size"], config["seed"]), [], "seeded weights"
    network = architecture.build(config["architecture"])
    dropped = checkpoint.fit(network, checkpoint.load_state_dict(path))
    architecture.resize(network, config["image_size"])
    return network, dropped, None


if __name__ == "__main__":
    with job(snakemake):
        config = snakemake.params.config
        torch.set_num_threads(snakemake.threads)
        with span("quantize"):
            network, dropped, substitute = load(config, snakemake.input.get("checkpoint"))
            info = architecture.info(
                network, config["architecture"], config["normalization"], substitute=substitute, dropped=dropped
            )
            options = {"recipe": "fp32"}
            quantized = cast.quantize(network, options, None)
            export(quantized, snakemake.output.model, "fp32", options, info)
            audit.write(snakemake.output.audit, network, "fp32", quantized)
            # Through a stream: the name of a file, here a temporary one, would become part of the archive.
            with atomic(snakemake.output.state_dict) as partial, partial.open("wb") as stream:
                torch.save(network.state_dict(), stream)
            write_json(snakemake.output.info, info)
