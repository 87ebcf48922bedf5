"""Select bank, queries and calibration images from the data set, decode them once, and pack them."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.data.layout import open_dataset
from dinoquant.data.pack import describe, pack, write_manifest
from dinoquant.data.selection import select
from dinoquant.files import read_json, write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        config, images = snakemake.params.config, Path(snakemake.output.images)
        receipt = read_json(snakemake.input.receipt)
        # That of the config, else of the model; the generated images are small, and packed as they are.
        size = config["image_size"] or read_json(snakemake.input.info)["image_size"]
        with span("pack"), open_dataset(receipt["file"], scratch=images.parent) as dataset:
            selection = select(
                dataset, config["bank_per_class"], config["queries"], config["calibration_images"], config["seed"]
            )
            packed = pack(dataset, selection, images, config["on_corrupt"], size)
            write_manifest(packed, snakemake.output.manifest)
            write_json(snakemake.output.dataset, describe(packed, dataset, receipt["source"], config["substitute"]))
