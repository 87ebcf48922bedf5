"""Compare a results folder with the record of the run that made it; a difference ends with status 1."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dinoquant.errors import UserError
from dinoquant.files import read_json
from dinoquant.job import job, span
from dinoquant.report.provenance import differences

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        log = logging.getLogger("dinoquant")
        path = Path(snakemake.params.provenance)
        if not path.is_file():
            raise UserError(f"There is no {path} to verify against: run the workflow to its end, then verify.")
        recorded = read_json(path)
        with span("verify"):
            changed = differences(recorded)
        for file, state in sorted(changed.items()):
            log.info("%s: %s", state, file)
        if changed:
            raise UserError(
                f"{len(changed)} files are not as {path} has them. Delete those that changed and run the workflow "
                "again: it makes what is missing, and the record."
            )
        log.info("All %d files are as %s has them", len(recorded["deterministic"]) + len(recorded["varying"]), path)
