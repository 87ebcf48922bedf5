"""Measure how much each module alone, and each kind of module, moves features and predictions once quantized."""

from typing import TYPE_CHECKING

from dinoquant.data.manifest import evenly_spaced, read_split
from dinoquant.files import read_json, write_rows
from dinoquant.job import job, span
from dinoquant.machine import compute_threads

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np
        import torch

        from dinoquant.data.preprocess import preprocess
        from dinoquant.judge import sensitivity
        from dinoquant.network import architecture
        from dinoquant.recipes.int8.calibration import observe

        config, inputs = snakemake.params.config, snakemake.input
        torch.set_num_threads(min(snakemake.threads, compute_threads()))
        info = read_json(inputs.info)
        pixels = np.load(inputs.images, mmap_mode="r")
        indices, labels = read_split(inputs.manifest, "query")
        taken = evenly_spaced(len(indices), config["images"])
        queries, calibration = (
            preprocess(torch.from_numpy(pixels[places]), info["image_size"], info["mean"], info["std"])
            for places in (indices[taken], read_split(inputs.manifest, "calibration")[0])
        )
        with np.load(inputs.features) as features:
            bank = features["bank"], read_split(inputs.manifest, "bank")[1]
        with span("measure"):
            network = architecture.restore(info, inputs.state_dict)
            found = sensitivity.changed_features(network, queries, observe(network, calibration))
            listed = sensitivity.units(network, queries[:1])
            table = list(sensitivity.rows(listed, found, labels[taken], bank, config))
        write_rows(snakemake.output.csv, sensitivity.COLUMNS, table)
