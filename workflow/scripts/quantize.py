"""Make one variant of the float32 model by its recipe, and audit what became of each module."""

import importlib
from typing import TYPE_CHECKING

import torch

from dinoquant.files import read_json, read_rows
from dinoquant.job import job, span
from dinoquant.network import architecture, audit, checkpoint
from dinoquant.network.export import export
from dinoquant.recipes import RECIPES

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


if __name__ == "__main__":
    with job(snakemake):
        options = snakemake.params.config["recipe"]
        torch.set_num_threads(snakemake.threads)
        info = read_json(snakemake.input.info)
        registered = RECIPES[options["recipe"]]
        recipe = importlib.import_module(f"dinoquant.recipes.{registered.module}")
        with span("quantize"):
            network = architecture.build(info["architecture"], info["image_size"])
            checkpoint.fit(network, checkpoint.load_state_dict(snakemake.input.state_dict))
            calibration = None
            if registered.calibrated:
                # Imported here because torchvision takes seconds to import and most recipes are not calibrated.
                from dinoquant.data.preprocess import calibration_images

                calibration = calibration_images(snakemake.input.images, snakemake.input.manifest, info)
            measured = {"sensitivity": read_rows(snakemake.input.sensitivity)} if registered.sensitivity else {}
            quantized = recipe.quantize(network, options, calibration, **measured)
            export(quantized, snakemake.output.model, snakemake.wildcards.variant, options, info)
            audit.write(snakemake.output.audit, network, options["recipe"], quantized)
