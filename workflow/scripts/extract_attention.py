"""Extract the attention maps of a few query images from one variant's own file."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.data.manifest import evenly_spaced, read_split
from dinoquant.files import atomic, read_json
from dinoquant.job import job, log, span
from dinoquant.machine import compute_threads, require_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np
        import torch

        from dinoquant.judge.attention import NoAttentionError, cls_attention
        from dinoquant.judge.features import central_square, prepared
        from dinoquant.network.export import load
        from dinoquant.runtimes.emulation import emulated

        config, variant = snakemake.params.config, snakemake.wildcards.variant
        require_device(config["device"])
        torch.set_num_threads(min(snakemake.threads, compute_threads()))
        info = read_json(snakemake.input.info)
        images = np.load(snakemake.input.images, mmap_mode="r")
        queries, _ = read_split(snakemake.input.manifest, "query")
        chosen = queries[evenly_spaced(len(queries), config["images"])]
        arrays = {"images": central_square(images[chosen])}
        with span("extract"):
            try:
                if emulation := emulated(Path(snakemake.input.model), config["device"]):
                    raise NoAttentionError(emulation)
                model = load(snakemake.input.model, config["device"])
                arrays["maps"] = cls_attention(model, prepared(images, chosen, 1, info, config["device"]), info)
            except NoAttentionError as error:
                log.warning("No attention maps of %s: %s", variant, error)
                arrays["reason"] = np.array(str(error))
        with atomic(snakemake.output.maps) as partial:
            np.savez(partial, **arrays)
