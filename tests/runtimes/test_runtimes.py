"""Models of other runtimes: the process that runs them, and that they are the model that they were made of."""

import os
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinoquant import runtimes
from dinoquant.errors import UserError
from dinoquant.files import write_json
from dinoquant.machine import PROCESSORS
from dinoquant.network import architecture
from dinoquant.network.card import read_card
from dinoquant.network.export import export
from dinoquant.recipes.base import Quantized
from dinoquant.recipes.int8.processor import int8_is_exact
from dinoquant.recipes.output import with_output
from dinoquant.runtimes import footprint, inductor, onnx_file, remote
from dinoquant.runtimes.opened import features_by, no_tokens, open_model, tokens_by
from dinoquant.runtimes.remote import SCRIPTS, Remote
from dinoquant.runtimes.saturation import Saturation, check
from dinoquant.runtimes.worker import receive, send, serve

ARCHITECTURE, SIZE = "test_vit.r160_in1k", 160
needs_peers = pytest.mark.skipif(bool(runtimes.missing("onnxruntime")), reason=str(runtimes.missing("onnxruntime")))


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A worker's end of the line, in a thread: its runtime sums up each image."""
    fake = types.ModuleType("dinoquant.runtimes.fake")

    def load(path: Path, card: dict[str, Any], batch_size: int) -> Any:
        def run(images: Any) -> Any:
            if len(images) != batch_size:
                raise ValueError(f"a batch of {len(images)}")
            time.sleep(0.02)
            return images.sum((2, 3))

        if not path.exists():
            raise UserError(f"there is no {path.name}")
        return run

    fake.prepare = lambda threads, device: types.SimpleNamespace(load=load)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    entry = runtimes.Runtime((".fake",), libraries=("numpy",))
    monkeypatch.setattr(runtimes, "RUNTIMES", runtimes.RUNTIMES | {"fake": entry})
    monkeypatch.setattr("dinoquant.runtimes.worker.RUNTIMES", runtimes.RUNTIMES)
    ours, theirs = Pipe()
    thread = threading.Thread(target=serve, args=(theirs, "fake", 1, "cpu", False))
    thread.start()
    yield ours
    ours.close()
    thread.join(5)
    assert not thread.is_alive(), "the worker outlives the other side"


def ask(connection: Connection, do: str, array: Any = None, **arguments: Any) -> Any:
    send(connection, {"do": do, **arguments}, array)
    return receive(connection)


def test_worker_answers_times_features_and_errors(connection: Connection, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 4), dtype=np.float32)
    processors = ", ".join(map(str, sorted(PROCESSORS or ())))
    assert ask(connection, "about") == ({"numpy": np.__version__, "threads": "1", "processors": processors}, None)
    advice, _ = ask(connection, "load", model=str(tmp_path / "a.fake"), card={}, batch_size=4)
    assert advice == {"advice": "there is no a.fake"}
    assert ask(connection, "load", model=str(tmp_path), card={}, batch_size=4) == ({}, None)
    _, features = ask(connection, "features", images)
    np.testing.assert_array_equal(features, images.sum((2, 3)))
    ask(connection, "ready", np.resize(images, (4, 3, 4, 4)))
    assert 20 <= ask(connection, "time")[0]["ms"] < 1000
    ask(connection, "ready", images)
    assert "ValueError: a batch of 3" in ask(connection, "time")[0]["error"]
    assert ask(connection, "about")[1] is None  # it goes on


def test_a_runtime_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtimes, "PEERS_PYTHON", tmp_path / "python")
    with pytest.raises(UserError, match="openvino: the peers' environment is missing: make peers"):
        Remote("openvino", 1)


def test_a_process_that_dies_is_named_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of memory >&2\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setattr(remote, "python", lambda runtime: str(broken))
    with Remote("inductor", 1) as process, pytest.raises(RuntimeError, match=r"ended with 9:\nout of memory"):
        process.about()


BUSY = """
import sys, time
from multiprocessing.connection import Connection
from dinoquant.runtimes import remote

def work(connection):
    with open("line", "w") as line:
        print("at work", file=line, flush=True)
        time.sleep(60)

if sys.argv[0] != "-c":  # the worker, which imports this as its sitecustomize
    Connection.recv = work
else:
    remote.python = lambda runtime: "./python"
    remote.Remote("inductor", 1).about()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_worker_that_is_busy_ends_with_its_job(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUSY)
    (tmp_path / "python").write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}" exec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    os.mkfifo(tmp_path / "line")
    with (
        subprocess.Popen(
            [sys.executable, "-c", BUSY], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
        ) as job,
        (tmp_path / "line").open() as line,
    ):
        assert line.readline() == "at work\n"
        start = time.monotonic()
        job.kill()
        assert line.read() == ""  # not before the worker, who has it open, has ended
    assert time.monotonic() - start < 30


@pytest.fixture(scope="module")
def network() -> Any:
    return architecture.seeded(ARCHITECTURE, None, 0)


@pytest.fixture(scope="module")
def onnx(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "fp32.onnx"
    onnx_file.write(network, SIZE, path)
    return path


def converted(onnx: Path, folder: Path, runtime: str, recipe: str, **options: Any) -> Path:
    """Make a model as the workflow does, with its card beside it."""
    path = folder / f"model{runtimes.RUNTIMES[runtime].suffixes[0]}"
    card = {"variant": "x", "runtime": runtime, "recipe": recipe, "options": options}
    card |= {"architecture": ARCHITECTURE, "image_size": SIZE, "pooling": "architecture", "output": "features"}
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).numpy()
    with Remote(runtime, 1) as process:
        process.ask("convert", images, source=str(onnx), target=str(path), card=card)
    write_json(folder / "card.json", card)
    return path


@needs_peers
@pytest.mark.parametrize(
    ("runtime", "recipe", "options"),
    [
        ("onnxruntime", "fp32", {}),
        ("onnxruntime", "int8-static", {}),
        ("onnxruntime", "int8-dynamic", {"weights": "per-tensor"}),
        ("openvino", "fp32", {}),
        ("openvino", "int8-nncf", {"rest": "fp32"}),
    ],
)
def test_features_are_those_of_the_model(
    network: Any, onnx: Path, tmp_path: Path, runtime: str, recipe: str, options: dict[str, str]
) -> None:
    path = converted(onnx, tmp_path, runtime, recipe, **options)
    images = torch.randn(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network(images)
    scale = expected.abs().max()
    for batch_size, count in ((1, 1), (16, 16), (16, 3)):
        with open_model(path, "cpu", threads=1, batch_size=batch_size) as model:
            features = model(images[:count])
        if recipe == "fp32":
            assert (features - expected[:count]).abs().max() < 1e-4 * scale
        else:
            require_quantized(f"{runtime}'s {recipe}", features, expected[:count])


@needs_peers
@torch.no_grad()
def test_tokens_of_another_runtime_are_pooled_as_the_models_own(network: Any, tmp_path: Path) -> None:
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    features, tokens = network(images), network.forward_features(images)
    gives_tokens = with_output(architecture.seeded(ARCHITECTURE, None, 0), "tokens")
    info = architecture.info(gives_tokens, ARCHITECTURE, "imagenet", substitute="seeded weights")
    export(Quantized(gives_tokens, asked=(), became={}), tmp_path / "fp32.pt", "fp32", {"recipe": "fp32"}, info)
    onnx_file.write(gives_tokens, SIZE, tmp_path / "fp32.onnx")
    path = converted(tmp_path / "fp32.onnx", tmp_path, "onnxruntime", "fp32")
    write_json(tmp_path / "card.json", {**read_card(path), "output": "tokens"})
    assert no_tokens(path, info["tokens"]) is None
    with open_model(path, "cpu", threads=1, batch_size=3) as model:
        torch.testing.assert_close(tokens_by(model)(images), tokens, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(features_by(model, tmp_path / "fp32.pt")(images), features, rtol=1e-3, atol=1e-3)


@needs_peers
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_times_and_then_sleeps(onnx: Path, tmp_path: Path, runtime: str) -> None:
    path = converted(onnx, tmp_path, runtime, "fp32")
    with open_model(path, "cpu", threads=2, batch_size=2, timed=True) as model:
        model.ready(torch.zeros(2, 3, SIZE, SIZE))
        start = time.perf_counter()
        taken = [model.time() for _ in range(5)]
        assert 0 < sum(taken) <= 1e3 * (time.perf_counter() - start)
        assert model.runtime["name"] == runtime
        assert {runtime, "allocator"} <= model.runtime.keys()
        pid = model._process.pid
        before = processor_seconds(pid)
        time.sleep(0.5)
        # Spinning threads would take half a second or more; an idle process may take a tick or two of the clock.
        assert processor_seconds(pid) - before <= 0.05, "threads spin while something else may be timed"


def processor_seconds(pid: int) -> float:
    """Return what all threads of a process have taken (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_torchscript_is_opened_like_any_other(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    info = architecture.info(network, ARCHITECTURE, "imagenet", substitute="seeded weights")
    export(Quantized(network, asked=(), became={}), path, "fp32", {"recipe": "fp32"}, info)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network(images)
    threads = torch.get_num_threads()
    with open_model(path, "cpu", threads=1, batch_size=2) as model:
        assert torch.get_num_threads() == 1
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
        model.ready(images)
        assert 0 < model.time() < 60_000
        assert (model.card["variant"], model.runtime) == ("fp32", {"name": "torchscript"})
        assert check(model, images) is None
    torch.set_num_threads(threads)
    measured = footprint.measure(path, "cpu", threads=1)
    assert measured["size_mb"] == path.stat().st_size / 1e6
    assert 0 < measured["peak_rss_mb"] < 500
    assert measured["gpu_memory_mb"] is None


@needs_peers
def test_footprint_is_that_of_the_model_alone(onnx: Path, tmp_path: Path) -> None:
    path = converted(onnx, tmp_path, "openvino", "fp32")
    found = footprint.measure(path, "cpu", threads=1)
    assert found["size_mb"] == sum(path.with_suffix(s).stat().st_size for s in (".xml", ".bin")) / 1e6
    assert found["load_ms"] > 0
    assert found["first_inference_ms"] > 0
    assert 0 < found["peak_rss_mb"] < 500
    assert found["baseline_rss_mb"] > 20


needs_compiler = pytest.mark.skipif(bool(runtimes.missing("inductor")), reason=str(runtimes.missing("inductor")))


@needs_peers
@pytest.mark.parametrize(
    ("runtime", "recipe", "options"),
    [
        ("onnxruntime", "int8-static", {}),
        ("onnxruntime", "int8-dynamic", {"weights": "per-channel"}),
        ("openvino", "int8-nncf", {"rest": "fp32"}),
    ],
)
def test_peers_do_not_saturate_with_vnni(
    onnx: Path, tmp_path: Path, runtime: str, recipe: str, options: dict[str, str]
) -> None:
    if not int8_is_exact(portable=False):
        pytest.skip("int8 sums saturate on this processor")
    assert 0.9995 < checked(converted(onnx, tmp_path, runtime, recipe, **options))["cosine"] < 1 + 1e-6


@needs_peers
@pytest.mark.parametrize("cap", ["AVX512_CORE", "AVX2"])
def test_saturation_is_seen(onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str) -> None:
    """OpenVINO multiplies by oneDNN, which can be told to do without VNNI; ONNX Runtime cannot."""
    path = converted(onnx, tmp_path, "openvino", "int8-nncf", rest="fp32")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    monkeypatch.setattr("dinoquant.runtimes.saturation.int8_is_exact", lambda portable: False)  # as there
    found = checked(path)
    assert found["saturates"]
    assert found["cosine"] > 0.5


def checked(path: Path) -> Saturation:
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with open_model(path, "cpu", threads=1, batch_size=6) as model:
        saturation = check(model, images)
    assert saturation
    assert saturation["images"] == 4
    return saturation


def test_inductor_int8_takes_any_batch_size() -> None:
    """As the graph that is compiled: compiling takes most of a minute."""
    network = architecture.build(ARCHITECTURE, 32).eval()
    network.blocks = network.blocks[:1]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    graph = inductor.export_graph(inductor.quantize(network, images[:2], images.numpy()), images[:2]).module()
    with torch.no_grad():
        expected = network(images)
        together = graph(images)
        alone = torch.cat([graph(image[None]) for image in images])
    assert (together - alone).abs().max() < 0.1 * expected.abs().max()
    require_quantized("int8-pt2e", together, expected)


@needs_compiler
def test_inductor_compiles_a_package_for_any_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling PyTorch's headers once more, to be quicker with later packages, is most of the time of a single one.
    quick = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
    monkeypatch.setattr(inductor, "OPTIONS", inductor.OPTIONS | quick)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 16)).eval()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 4, 4, generator=generator)
    # Large weights, in pairs of one sign: where products of neighbours are added in 16 bits, many sums saturate.
    signs = 2.0 * torch.randint(0, 2, (16, 24), generator=generator).repeat_interleave(2, 1) - 1
    network[1].weight.data = signs * (0.5 + 0.5 * torch.rand(16, 48, generator=generator))
    path = tmp_path / "model.pt2"
    card: Any = {"variant": "x", "runtime": "inductor", "recipe": "int8-pt2e", "image_size": 4}
    card |= {"options": {"runtime": "inductor", "recipe": "int8-pt2e"}, "versions": {"torch": version("torch")}}
    exact = inductor.compile_package(network, path, card, images.numpy())
    assert exact is not None
    write_json(tmp_path / "card.json", {**card, "exact": exact.tolist()})
    with open_model(path, "cpu", threads=1, batch_size=4) as model, torch.no_grad():
        require_quantized("int8-pt2e", model(images), network(images))
        assert model(images[:1]).shape == (1, 16)
        saturation = check(model, images)
    assert saturation
    assert saturation["saturates"] != int8_is_exact(portable=False)


def require_quantized(recipe: str, features: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail if features are those of the float model, or farther from them than int8 takes them.

    Where sums of 8 bit products saturate, how far that is nobody can say: then it is reported.
    """
    deviation = float((features - expected).abs().max() / expected.abs().max())
    assert deviation > 1e-3, "nothing was quantized"
    if int8_is_exact(portable=False):
        assert deviation < 0.2
    else:
        warnings.warn(f"int8 sums saturate on this processor: {recipe} is {deviation:.2f} away", stacklevel=2)
