"""Select bank, queries and calibration images from the archive, decode them once, and pack them."""

from typing import TYPE_CHECKING

from dinoquant.data.archive import open_archive, select
from dinoquant.data.pack import describe, pack, write_manifest
from dinoquant.files import read_json, write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        config = snakemake.params.config
        source = read_json(snakemake.input.receipt)["source"]
        with span("pack"), open_archive(snakemake.input.archive) as archive:
            selection = select(
                archive, config["bank_per_class"], config["queries"], config["calibration_images"], config["seed"]
            )
            packed = pack(archive, selection, snakemake.output.images, config["on_corrupt"])
            write_manifest(packed, snakemake.output.manifest)
            write_json(snakemake.output.dataset, describe(packed, archive, source, config["substitute"]))
