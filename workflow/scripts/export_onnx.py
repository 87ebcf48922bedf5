"""Write the float32 model as the ONNX file from which other runtimes make theirs."""

from typing import TYPE_CHECKING

from dinoquant.files import atomic, read_json
from dinoquant.job import job, span

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    with job(snakemake):
        from dinoquant.network import architecture
        from dinoquant.runtimes import onnx_file

        info = read_json(snakemake.input.info)
        with span("export"), atomic(snakemake.output.onnx) as partial:
            network = architecture.restore(info, snakemake.input.state_dict)
            onnx_file.write(network, info["image_size"], partial)
