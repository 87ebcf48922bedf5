"""Make one variant's model for another runtime, in that runtime's environment, and check it against fp32."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.files import atomic, read_json, write_json
from dinoquant.job import job, span
from dinoquant.machine import compute_threads

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.preprocess import calibration_images
        from dinoquant.runtimes import files, recipe_of
        from dinoquant.runtimes.check import require_alike
        from dinoquant.runtimes.remote import Remote

        variant, options = snakemake.wildcards.variant, snakemake.params.config["options"]
        info = read_json(snakemake.input.info)
        threads = min(snakemake.threads, compute_threads())
        card = {
            "variant": variant,
            "runtime": options["runtime"],
            "recipe": options["recipe"],
            "options": options,
            **{key: info[key] for key in ("architecture", "image_size", "mean", "std")},
            "engine": None,
        }
        images = None
        if recipe_of(options).calibrated:
            images = calibration_images(snakemake.input.images, snakemake.input.manifest, info).numpy()
        target = Path(snakemake.output.model)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            with span("quantize"), Remote(options["runtime"], threads) as process:
                card["versions"] = process.about()
                process.ask(
                    "convert", images, source=str(Path(snakemake.input.source).resolve()), target=str(made), card=card
                )
            write_json(made.with_name("card.json"), card)
            require_alike(made, Path(snakemake.input.fp32), threads)
            for file in (*reversed(files(made)), made.with_name("card.json")):
                with atomic(target.with_name(file.name)) as partial:
                    file.replace(partial)
