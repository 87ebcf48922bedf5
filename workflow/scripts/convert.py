"""Make one variant's model for another runtime, and check it against fp32."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import read_json
from dinoquant.job import job, span
from dinoquant.machine import compute_threads

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.data.preprocess import calibration_images
        from dinoquant.runtimes import recipe_of
        from dinoquant.runtimes.convert import convert

        options, inputs = snakemake.params.config["options"], snakemake.input
        info = read_json(inputs.info)
        images = None
        if recipe_of(options).calibrated and not recipe_of(options).module:
            images = calibration_images(inputs.images, inputs.manifest, info).numpy()
        with span("quantize"):
            convert(
                Path(inputs.source),
                Path(snakemake.output[0]),
                snakemake.wildcards.variant,
                options,
                info,
                fp32=Path(inputs.fp32),
                images=images,
                threads=min(snakemake.threads, compute_threads()),
            )
