"""Put the features of an extraction's shards together."""

from typing import TYPE_CHECKING

from dinoquant.data.manifest import read_split
from dinoquant.files import atomic, write_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        import numpy as np

        from dinoquant.judge.shards import gather, gather_timings

        splits = {split: read_split(snakemake.input.manifest, split)[0] for split in ("bank", "query")}
        timing = gather_timings(snakemake.input.timing)
        with span("gather"), atomic(snakemake.output.features) as partial:
            np.savez(partial, **gather(snakemake.input.features, splits, partly=timing["unsupported"] is not None))
        write_json(snakemake.output.timing, timing)
