"""Extract the features of the bank and of the queries, or of one shard of them, with one variant."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.data.manifest import read_split
from dinoquant.files import atomic, read_json, write_json
from dinoquant.job import job, log, span
from dinoquant.machine import compute_threads, describe, require_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np

        from dinoquant.judge.features import Timing, extract, prepared
        from dinoquant.judge.shards import shard_indices
        from dinoquant.runtimes.backend import CHECKED_IMAGES
        from dinoquant.runtimes.emulation import emulated
        from dinoquant.runtimes.opened import features_by, open_model
        from dinoquant.runtimes.saturation import check

        config, variant = snakemake.params.config, snakemake.wildcards.variant
        require_device(config["device"])
        # Snakemake may have been told of more cores than there are.
        threads = min(snakemake.threads, compute_threads())
        device, batch_size = config["device"], config["batch_size"]
        info = read_json(snakemake.input.info)
        images = np.load(snakemake.input.images, mmap_mode="r")
        splits = {split: read_split(snakemake.input.manifest, split)[0] for split in ("bank", "query")}
        shard, shards = (int(getattr(snakemake.wildcards, name, 1)) for name in ("shard", "shards"))
        results = {split: (np.empty((0, info["feature_dim"]), np.float32), Timing(0.0, 0.0)) for split in splits}
        saturation = None
        if reason := emulated(Path(snakemake.input.model), device):
            log.warning("No features of %s: %s", variant, reason)
        else:
            calibration, _ = read_split(snakemake.input.manifest, "calibration")
            checked = (calibration if len(calibration) else splits["query"])[: min(CHECKED_IMAGES, batch_size)]
            with (
                span("extract"),
                open_model(snakemake.input.model, device, threads=threads, batch_size=batch_size) as model,
            ):
                give_features = features_by(model, snakemake.input.fp32)
                results = {
                    split: extract(
                        give_features,
                        images,
                        indices,
                        batch_size=batch_size,
                        info=info,
                        device=device,
                        variant=variant,
                    )
                    for split, indices in shard_indices(splits, batch_size, shard, shards).items()
                }
                saturation = check(model, next(prepared(images, checked, len(checked), info, device)))
        with atomic(snakemake.output.features) as partial:
            np.savez(partial, **{split: features for split, (features, _) in results.items()})
        seconds = sum(timing.seconds for _, timing in results.values())
        model_seconds = sum(timing.model_seconds for _, timing in results.values())
        machine = describe()
        write_json(
            snakemake.output.timing,
            {
                "variant": variant,
                "device": device,
                "images": sum(len(features) for features, _ in results.values()),
                "seconds": seconds,
                "model_seconds": model_seconds,
                "overhead": seconds / model_seconds - 1 if model_seconds else None,
                "threads": threads,
                "batch_size": batch_size,
                "shards": 1,
                "machines": [{key: machine[key] for key in ("node", "cpu", "gpu")}],
                "unsupported": reason,
                "saturation": saturation,
            },
        )
