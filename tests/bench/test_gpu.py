"""The plan of the GPU benchmark, on a CPU: limits, what is left out, the check of the features, the bars."""

import sys
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu import Row

RIGHT = [
    Row("fp32", 16, 10.0, 1.0),
    Row("bf16", 16, 4.0, 0.9999),
    Row("fp32", 64, 40.0, 1.0),
    Row("bf16", 64, 8.0, 1.0),
]
PRINTING = "import json; print('noise'); print('ROW ' + json.dumps(['bf16', 16, 4.0, 0.99]), flush=True)"


def test_rows_are_read_from_what_a_process_prints() -> None:
    assert gpu.limited([sys.executable, "-c", PRINTING], 60) == ([Row("bf16", 16, 4.0, 0.99)], "")


def test_a_failure_keeps_the_rows_before_it_and_says_why() -> None:
    rows, why = gpu.limited([sys.executable, "-c", f"{PRINTING}; raise ValueError('out of memory')"], 60)
    assert rows == [Row("bf16", 16, 4.0, 0.99)]
    assert why == "ValueError: out of memory"


def test_what_takes_too_long_is_ended_with_what_it_started() -> None:
    start = time.monotonic()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    rows, why = gpu.limited([sys.executable, "-c", f"{PRINTING}; {child}"], 3)
    assert time.monotonic() - start < 60
    assert rows == [Row("bf16", 16, 4.0, 0.99)]
    assert why == "not within 3 s"


def test_table() -> None:
    text = gpu.table([*RIGHT, Row("compiled-bf16", 64, 7.0, 0.9)], {"compiled-bf16 at batch 16": "not within 125 s"})
    assert "bf16                64     8.000     8000.0    5.00  1.00000\n" in text
    assert "WRONG: below 0.999" in text
    assert "left out: compiled-bf16 at batch 16: not within 125 s" in text
    assert "bar, batch 64: bf16 at least as fast as compiled-bf16: MISSED" in text
    assert "bar, batch 64: int8-per-token at least as fast as bf16: not measured" in text
    assert "bf16 at least as fast as compiled-bf16: met" in gpu.table([*RIGHT, Row("compiled-bf16", 64, 9.0, 1.0)], {})


def test_the_limits_add_up_to_less_than_eight_minutes() -> None:
    assert sum(variant.seconds for variant in gpu.VARIANTS.values()) < gpu.LIMIT_SECONDS < 480


def test_small_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, with features that are checked; the compiled model has no time and is left out."""
    limits = {name: variant._replace(seconds=240.0) for name, variant in gpu.VARIANTS.items()}
    limits["compiled-bf16"] = limits["compiled-bf16"]._replace(seconds=0.1)
    monkeypatch.setattr(gpu, "VARIANTS", limits)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "workflow/scripts"))
    arguments = ["--device", "cpu", "--small", "--variants", "fp32,int8-per-token,compiled-bf16", "--limit", "500"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert printed.count("int8-per-token       ") == 2
    assert "left out: compiled-bf16 at batch 2, 1: not within 0 s" in printed
    assert "WRONG" not in printed
    assert all(f"\n{inputs} x {outputs} " in printed for inputs, outputs in gpu.PRODUCTS)
