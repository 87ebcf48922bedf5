"""One model of one runtime in a process of its own, so that the threads of one runtime never disturb another.

It runs in the environment of the runtime: nothing but NumPy may be imported outside the loaders.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]  # float32 [B, 3, S, S] -> float32 [B, D]

SIDE = 224
WARMUP_SECONDS, SPECIALISING_CALLS = 1.0, 3  # calls in which runtimes compile for the shape


def load_torch(options: argparse.Namespace) -> Run:
    """Load one of this project's TorchScript files."""
    import torch

    from dinoquant.export import load
    from dinoquant.torchscript import set_up

    set_up(options.threads)
    torch.set_grad_enabled(False)
    model = load(options.model)
    return lambda images: model(torch.from_numpy(images)).numpy()


def load_openvino(options: argparse.Namespace) -> Run:
    """Compile an OpenVINO model for exactly this batch size, which is when it is fastest."""
    import openvino as ov

    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": 1}
    properties |= {"INFERENCE_PRECISION_HINT": options.precision}
    properties |= {"PERFORMANCE_HINT": "LATENCY"} if options.batch == 1 else {}
    model = ov.Core().read_model(options.model)
    model.reshape([options.batch, 3, SIDE, SIDE])
    request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()

    def run(images: np.ndarray) -> np.ndarray:
        request.set_input_tensor(ov.Tensor(images, shared_memory=True))
        request.infer()
        return request.get_output_tensor().data

    return run


def load_onnxruntime(options: argparse.Namespace) -> Run:
    """Open an ONNX Runtime session for exactly this batch size."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.add_free_dimension_override_by_name("batch", options.batch)
    session = onnxruntime.InferenceSession(options.model, settings, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


LOADERS = {"torch": load_torch, "openvino": load_openvino, "onnxruntime": load_onnxruntime}


def serve(run: Run, batch: int, answer: Callable[[Any], None]) -> None:
    """Warm up, answer with the ms of a call, then with those of each of N calls whenever stdin has a line N."""
    images = np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)

    def milliseconds() -> float:
        start = time.perf_counter_ns()
        run(images)
        return (time.perf_counter_ns() - start) / 1e6

    gc.disable()
    start, times = time.perf_counter(), []
    while len(times) <= SPECIALISING_CALLS or time.perf_counter() - start < WARMUP_SECONDS:
        times.append(milliseconds())
    answer(float(np.median(times[SPECIALISING_CALLS:])))
    for line in sys.stdin:
        run(images)  # untimed: the others have emptied the caches
        answer([milliseconds() for _ in range(int(line))])


def extract(run: Run, batch: int, images: np.ndarray) -> np.ndarray:
    """Return the features of all images; a last batch that is too small is filled up by repeating itself."""
    features = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        features.append(run(np.resize(part, (batch, *part.shape[1:])))[: len(part)].copy())
    return np.concatenate(features)


def main() -> None:
    """Load the model and serve timings, or write the features of a file of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=LOADERS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", default="f32", help="OpenVINO's, of what is not quantized")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", nargs=2, type=Path, metavar=("IMAGES", "FEATURES"))
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not mix with the answers
    run = LOADERS[options.runtime](options)
    if options.features:
        np.save(options.features[1], extract(run, options.batch, np.load(options.features[0], mmap_mode="r")))
    else:
        serve(run, options.batch, lambda value: print(json.dumps(value), file=answers, flush=True))


if __name__ == "__main__":
    main()
