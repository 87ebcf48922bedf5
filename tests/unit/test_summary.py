"""The summary has a row for everything that was asked, and nothing in it is made up."""

import json
from pathlib import Path

import pandas as pd
import pytest

from dinoquant.errors import UserError
from dinoquant.summary import COLUMNS, summarise, write_summary
from samples import AGREEMENT, NO_CPU, VARIANTS, Samples, write_samples

MEASURED = [name for name in COLUMNS if name.startswith(("latency", "throughput", "speedup", "peak", "load", "first"))]
ACCURACY = [name for name in COLUMNS if name.startswith(("knn", "cosine"))]


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return write_samples(tmp_path, devices=("cpu", "cuda"))


def _table(samples: Samples) -> pd.DataFrame:
    return summarise(
        samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models, samples.summary_config
    )


def _row(table: pd.DataFrame, variant: str, device: str, batch_size: int = 1) -> pd.Series:
    keys = (table["variant"] == variant) & (table["device"] == device) & (table["batch_size"] == batch_size)
    return table[keys].squeeze(axis=0)


def test_rows_follow_the_config_whatever_the_order_of_the_files(samples: Samples) -> None:
    expected = _table(samples)
    for files in (samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models):
        files.reverse()
    shuffled = _table(samples)
    pd.testing.assert_frame_equal(shuffled, expected)
    assert list(shuffled[["variant", "device", "batch_size"]].itertuples(index=False, name=None)) == [
        (variant, device, batch) for variant in VARIANTS for device in ("cpu", "cuda") for batch in (1, 16)
    ]


def test_columns_are_the_interface(samples: Samples) -> None:
    expected = (
        "variant device batch_size threads status reason latency_p50_ms latency_p50_ci_low_ms latency_p50_ci_high_ms "
        "latency_p90_ms latency_p99_ms throughput_ips speedup speedup_ci_low speedup_ci_high size_mb compression "
        "peak_rss_mb load_ms first_inference_ms knn_top1 knn_top1_ci_low knn_top1_ci_high knn_top5 knn_top1_drop "
        "knn_top1_drop_ci_low knn_top1_drop_ci_high cosine_mean cosine_mean_ci_low cosine_mean_ci_high cosine_p5 "
        "knn_agreement quantized_modules quantizable_modules"
    )
    assert list(_table(samples).columns) == expected.split(" ")


def test_measurements_come_from_their_own_row_s_files(samples: Samples) -> None:
    row = _row(_table(samples), "bf16", "cuda", 16)
    assert row["status"] == "ok"
    assert row["latency_p50_ms"] == pytest.approx(0.16 * 16)
    assert row["first_inference_ms"] == 200 + list(VARIANTS).index("bf16")
    assert row["knn_agreement"] == AGREEMENT[list(VARIANTS).index("bf16")]


def test_unsupported_rows_have_a_reason_and_no_measurement(samples: Samples) -> None:
    row = _row(_table(samples), "fp16", "cpu")
    assert (row["status"], row["reason"]) == ("unsupported", NO_CPU)
    assert row[[*MEASURED, *ACCURACY, "threads"]].isna().all()
    assert row["size_mb"] == 43.5
    assert row["quantizable_modules"] == 49


def test_accuracy_is_missing_where_it_was_not_measured(samples: Samples) -> None:
    row = _row(_table(samples), "fp16", "cuda")
    assert row["status"] == "ok"
    assert row[ACCURACY].isna().all()


def test_size_is_that_of_the_file_not_of_the_footprint(samples: Samples) -> None:
    model = next(path for path in samples.models if path.parent.name == "bf16")
    with model.open("r+b") as stream:
        stream.truncate(10_000_000)
    row = _row(_table(samples), "bf16", "cpu")
    assert (row["size_mb"], row["compression"]) == (10.0, 8.65)


def test_audit_counts_converted_and_convertible_modules(samples: Samples) -> None:
    table = _table(samples)
    counts = {
        variant: tuple(_row(table, variant, "cpu")[["quantized_modules", "quantizable_modules"]])
        for variant in ("fp32", "int8-dynamic-linear", "int8-dynamic-linear-conv", "bf16")
    }
    assert counts == {
        "fp32": (0, 49),
        "int8-dynamic-linear": (48, 49),
        "int8-dynamic-linear-conv": (49, 49),
        "bf16": (49, 49),
    }


def test_a_missing_result_is_an_error(samples: Samples) -> None:
    samples.latency.pop()
    with pytest.raises(UserError, match="no latency result for fp16-dynamic cpu 16"):
        _table(samples)


def test_missing_is_empty_in_the_file_and_counts_are_whole(samples: Samples, tmp_path: Path) -> None:
    path = next(path for path in samples.latency if path.match("cpu/bf16/batch1.json"))
    timing = json.loads(path.read_text()) | {"speedup_ci_low": None}
    path.write_text(json.dumps(timing))
    write_summary(_table(samples), tmp_path / "summary.csv")
    text = pd.read_csv(tmp_path / "summary.csv", dtype=str, keep_default_na=False)
    row = _row(text.assign(batch_size=text["batch_size"].astype(int)), "bf16", "cpu")
    assert row["speedup_ci_low"] == ""
    assert row["reason"] == ""
    assert (row["threads"], row["quantized_modules"], row["latency_p50_ms"]) == ("2", "49", "18")
