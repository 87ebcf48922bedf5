"""Run TorchScript files with stock PyTorch and write what they give: the half of `check.py` that runs under aarch64.

Takes nothing but PyTorch: a folder with `images.pt` and `*/model.pt`, and the engine of `quantized::` operators. Writes
`answer.pt` beside each model, from a process each: PyTorch may use an instruction that a processor does not have.
"""

import os
import sys
import warnings
from pathlib import Path

import torch


def path_taken(model: torch.jit.ScriptModule) -> str:
    """Say what the products of a model's Linears are computed in."""
    if "quantized::" in str(model.inlined_graph):
        return "integers (quantized::)"
    exact = [module.exact for module in model.modules() if hasattr(module, "exact")]
    if any(exact):
        return f"integers (oneDNN) in {sum(exact)} of {len(exact)}"
    return "float32, of integers" if exact else "float"


def answer(file: Path, images: torch.Tensor) -> dict[str, object]:
    """Return a file's features and the path taken, or why there are none."""
    try:
        model = torch.jit.load(file).eval()
        with torch.inference_mode():
            return {"path": path_taken(model), "features": model(images)}
    except RuntimeError as error:
        return {"error": str(error).strip().splitlines()[-1]}


def main() -> None:
    """Answer for each file, or say what signal ended the process that tried."""
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.backends.quantized.engine = sys.argv[2]
    images = torch.load(folder / "images.pt")
    for file in sorted(folder.glob("*/model.pt")):
        child = os.fork()
        if not child:
            torch.save(answer(file, images), file.with_name("answer.pt"))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            torch.save({"error": f"the process ended with {status}"}, file.with_name("answer.pt"))


if __name__ == "__main__":
    main()
