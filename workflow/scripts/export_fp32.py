"""Build the float32 model from the checkpoint or a seed, and write everything that later steps take from it."""

from typing import TYPE_CHECKING, TypedDict

from dinoquant.files import atomic, write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from pathlib import Path

    from snakemake.iocontainers import snakemake
    from torch import nn

    from dinoquant.network.architecture import Loaded


class ModelConfig(TypedDict):
    """The part of the config that decides the float model."""

    architecture: str
    image_size: int | None
    normalization: str
    pooling: str | None
    output: str
    weights: str | None
    seed: int


def load(config: ModelConfig, path: "str | Path | None") -> "tuple[nn.Module, Loaded | None, str | None]":
    """Return the model, what was taken from the checkpoint, and what stands in for trained weights."""
    from dinoquant.network import architecture, checkpoint
    from dinoquant.network.merge import merge
    from dinoquant.recipes.output import with_output

    if path is None:
        network = architecture.seeded(config["architecture"], config["image_size"], config["seed"], config["pooling"])
        return with_output(network, config["output"]), None, "seeded weights"
    network = architecture.build(config["architecture"], pooling=config["pooling"])
    loaded = checkpoint.load(network, path, image_size=config["image_size"], weights=config["weights"])
    return with_output(merge(network), config["output"]), loaded, None


if __name__ == "__main__":
    with job(snakemake):
        import torch

        from dinoquant.network import architecture, audit
        from dinoquant.network.export import export
        from dinoquant.recipes import cast

        config = snakemake.params.config
        torch.set_num_threads(snakemake.threads)
        with span("quantize"):
            network, loaded, substitute = load(config, snakemake.input.get("checkpoint"))
            info = architecture.info(
                network, config["architecture"], config["normalization"], substitute=substitute, loaded=loaded
            )
            options = {"recipe": "fp32"}
            quantized = cast.quantize(network, options, None)
            export(quantized, snakemake.output.model, "fp32", options, info)
            audit.write(snakemake.output.audit, network, "fp32", quantized)
            # Through a stream: the name of a file, here a temporary one, would become part of the archive.
            with atomic(snakemake.output.state_dict) as partial, partial.open("wb") as stream:
                torch.save(network.state_dict(), stream)
            write_json(snakemake.output.info, info)
