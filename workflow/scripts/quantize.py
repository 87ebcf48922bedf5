"""Make one variant of the float32 model by its recipe, and audit what became of each module."""

from typing import TYPE_CHECKING

from dinoquant.files import read_json, read_rows
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


if __name__ == "__main__":
    with job(snakemake):
        import torch

        from dinoquant.network import architecture, audit
        from dinoquant.network.export import export
        from dinoquant.recipes import recipes
        from dinoquant.recipes.base import load_recipe

        options = snakemake.params.config["recipe"]
        torch.set_num_threads(snakemake.threads)
        info = read_json(snakemake.input.info)
        registered = recipes()[options["recipe"]]
        with span("quantize"):
            network = architecture.restore(info, snakemake.input.state_dict)
            calibration = None
            if registered.calibrated:
                # Imported here because torchvision takes seconds to import and most recipes are not calibrated.
                from dinoquant.data.preprocess import calibration_images

                calibration = calibration_images(snakemake.input.images, snakemake.input.manifest, info)
            sensitivity = read_rows(snakemake.input.sensitivity) if registered.sensitivity else ()
            quantized = load_recipe(options["recipe"]).quantize(network, options, calibration, sensitivity)
            export(quantized, snakemake.output.model, snakemake.wildcards.variant, options, info)
            audit.write(snakemake.output.audit, network, options["recipe"], quantized)
