"""Compare the patch tokens of one variant with fp32's on some query images, and keep those of a few for a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.data.manifest import evenly_spaced, read_split
from dinoquant.files import atomic, read_json, write_json
from dinoquant.job import job, log, span
from dinoquant.machine import compute_threads, require_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

SHOWN = 4  # images whose patches are drawn

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np

        from dinoquant.judge.features import central_square
        from dinoquant.judge.patches import compare, summarise
        from dinoquant.runtimes.emulation import emulated
        from dinoquant.runtimes.opened import no_tokens, open_model, tokens_by

        config, inputs, variant = snakemake.params.config, snakemake.input, snakemake.wildcards.variant
        require_device(config["device"])
        opening = {"threads": min(snakemake.threads, compute_threads()), "batch_size": config["batch_size"]}
        info = read_json(inputs.info)
        images = np.load(inputs.images, mmap_mode="r")
        queries, _ = read_split(inputs.manifest, "query")
        chosen = queries[evenly_spaced(len(queries), config["images"])]
        shown = evenly_spaced(len(chosen), SHOWN)
        arrays = {"images": central_square(images[chosen[shown]])}
        result: Mapping[str, object] = {}
        reason = no_tokens(inputs.model, info["tokens"]) or emulated(Path(inputs.model), config["device"])
        if reason:
            log.warning("No patches of %s: %s", variant, reason)
            result, arrays["reason"] = {"patch_reason": reason}, np.array(reason)
        else:
            with (
                span("extract"),
                open_model(inputs.fp32, config["device"], **opening) as fp32,
                open_model(inputs.model, config["device"], **opening) as model,
            ):
                calls = tokens_by(model), tokens_by(fp32)
                cosines, arrays["patches"] = compare(*calls, images, chosen, info, config, shown)
            result = summarise(cosines, config)
        with atomic(snakemake.output.patches) as partial:
            np.savez(partial, **arrays)
        write_json(snakemake.output.json, {"variant": variant, "device": config["device"], **result})
