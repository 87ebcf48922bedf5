"""Join the audit of a TorchScript file with the kernels of the package that was compiled from it."""

from typing import TYPE_CHECKING

from dinoquant.files import read_json, read_rows, write_rows
from dinoquant.job import job
from dinoquant.network.audit import COLUMNS, with_kernels

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        kernels = read_json(snakemake.input.card)["kernels"]
        write_rows(snakemake.output.audit, COLUMNS, with_kernels(read_rows(snakemake.input.quantized), kernels))
