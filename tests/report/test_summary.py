"""The summary has a row for everything that was asked, and nothing in it is made up."""

import json
from pathlib import Path

import pandas as pd
import pytest

from dinoquant.errors import UserError
from dinoquant.report.columns import NAMES
from dinoquant.report.summary import summarise, write_summary
from samples import AGREEMENT, NO_CPU, VARIANTS, Samples, write_samples

MEASURED = [name for name in NAMES if name.startswith(("latency", "throughput", "speedup", "peak", "load", "first"))]
ACCURACY = [name for name in NAMES if name.startswith(("knn", "cosine"))]


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
        "variant runtime device batch_size threads node cpu status reason latency_p50_ms latency_p50_ci_low_ms "
        "latency_p50_ci_high_ms latency_p90_ms latency_p99_ms throughput_ips speedup speedup_ci_low speedup_ci_high "
        "preprocess_p50_ms end_to_end_p50_ms noise_floor rounds rounds_set_aside foreign_processors "
        "stolen_processors limit_ms over_limit size_mb compression convert_s peak_rss_mb "
        "gpu_memory_mb load_ms first_inference_ms energy_mj_per_image energy_reason knn_top1 knn_top1_ci_low "
        "knn_top1_ci_high knn_top5 knn_top1_drop knn_top1_drop_ci_low knn_top1_drop_ci_high cosine_mean "
        "cosine_mean_ci_low cosine_mean_ci_high cosine_p5 knn_agreement mcnemar_p probe_top1 probe_top1_drop "
        "probe_top1_drop_ci_low probe_top1_drop_ci_high retrieval_map retrieval_map_ci_low retrieval_map_ci_high "
        "retrieval_map_drop retrieval_map_drop_ci_low retrieval_map_drop_ci_high accuracy_reason patch_cosine_mean "
        "patch_cosine_mean_ci_low patch_cosine_mean_ci_high patch_cosine_p5 patch_cosine_min patch_images patch_reason "
        "quantized_modules quantizable_modules"
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


def test_rows_of_another_machine_say_so_and_borrow_no_noise_floor(samples: Samples) -> None:
    path = next(path for path in samples.latency if path.match("cpu/bf16/batch1.json"))
    timing = json.loads(path.read_text())
    path.write_text(json.dumps(timing | {"machine": timing["machine"] | {"node": "node2", "cpu": "Xeon"}}))
    table = _table(samples)
    assert list(_row(table, "bf16", "cpu")[["node", "cpu"]]) == ["node2", "Xeon"]
    assert list(_row(table, "bf16", "cpu", 16)[["node", "cpu"]]) == ["node1", "AMD EPYC 9B45"]
    assert pd.isna(_row(table, "bf16", "cpu")["noise_floor"])
    assert _row(table, "bf16", "cpu", 16)["noise_floor"] == 0.02


def test_size_is_that_of_the_file_not_of_the_footprint(samples: Samples) -> None:
    model = next(path for path in samples.models if path.parent.name == "bf16")
    with model.open("r+b") as stream:
        stream.truncate(10_000_000)
    row = _row(_table(samples), "bf16", "cpu")
    assert (row["size_mb"], row["compression"]) == (10.0, 8.65)


def test_a_machine_that_was_slow_all_the_time_shows_beside_other_rows(samples: Samples) -> None:
    """Only beside rows of the same device and machine: another may well be slower.

    What that does to it is not known, unless some timing saw the machine in both states.
    """
    for path in samples.latency:
        timing = json.loads(path.read_text())
        slow = timing["device"] == "cuda" or (timing["variant"], timing["batch_size"]) == ("bf16", 16)
        path.write_text(json.dumps(timing | {"probe_ms": 0.28 if slow else 0.14}))
    table = _table(samples)
    doubt = table[table["status"] == "disturbed"]
    assert list(doubt[["variant", "device", "batch_size"]].itertuples(index=False, name=None)) == [("bf16", "cpu", 16)]
    assert "took 0.28 ms, not 0.14" in doubt["reason"].item()
    path = next(path for path in samples.latency if path.match("cpu/fp16-dynamic/batch1.json"))
    timing = json.loads(path.read_text())
    for shift, status in ((0.005, "ok"), (0.2, "wide")):
        path.write_text(json.dumps(timing | {"slow_shift": shift}))
        assert _row(_table(samples), "bf16", "cpu", 16)["status"] == status


def test_a_control_that_is_not_one_widens_the_rows_beside_it(samples: Samples) -> None:
    path = next(path for path in samples.latency if path.match("cpu/fp32/batch16.json"))
    miss = {"speedup": 1.06, "speedup_ci_low": 1.05, "speedup_ci_high": 1.07}
    path.write_text(json.dumps(json.loads(path.read_text()) | miss))
    table = _table(samples)
    assert set(table[table["device"] == "cpu"]["status"]) <= {"wide", "unsupported"}
    assert "wide" not in set(table[table["device"] == "cuda"]["status"])


def test_what_others_did_meanwhile_is_in_the_row(samples: Samples) -> None:
    path = next(path for path in samples.latency if path.match("cpu/bf16/batch1.json"))
    others = {"watch": {"foreign": 0.3, "steal": 0.1}, "rounds": 8, "set_aside": {"variant": [[1.0]], "fp32": [[2.0]]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | others))
    columns = ["foreign_processors", "stolen_processors", "rounds", "rounds_set_aside"]
    assert list(_row(_table(samples), "bf16", "cpu")[columns]) == [0.3, 0.1, 8, 0.125]


def test_a_verdict_keeps_the_row_s_numbers(samples: Samples) -> None:
    path = next(path for path in samples.latency if path.match("cpu/bf16/batch1.json"))
    doubt = {"verdict": "disturbed", "verdict_reason": "5 % of the time stolen"}
    path.write_text(json.dumps(json.loads(path.read_text()) | doubt))
    row = _row(_table(samples), "bf16", "cpu")
    assert tuple(row[["status", "reason", "latency_p50_ms"]]) == ("disturbed", "5 % of the time stolen", 18.0)
    assert _row(_table(samples), "bf16", "cpu", 16)["status"] == "ok"


def test_the_noise_floor_is_that_of_fp32_beside_the_row(samples: Samples) -> None:
    path = next(path for path in samples.latency if path.match("cpu/fp32/batch16.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"noise_floor": 0.07}))
    table = _table(samples)
    floors = [_row(table, "bf16", device, batch)["noise_floor"] for device in ("cpu", "cuda") for batch in (1, 16)]
    assert floors == [0.02, 0.07, 0.02, 0.02]


def test_what_other_stages_measured_is_joined_and_may_be_missing(samples: Samples, tmp_path: Path) -> None:
    assert _table(samples)[["energy_mj_per_image", "limit_ms", "over_limit", "probe_top1"]].isna().all(axis=None)
    energy, limits, probe = tmp_path / "bf16.json", tmp_path / "limits.csv", tmp_path / "probe.json"
    card = tmp_path / "bf16/card.json"
    card.parent.mkdir()
    card.write_text(json.dumps({"variant": "bf16", "convert_s": 41.5}))
    probe.write_text(json.dumps({"variant": "bf16", "probe_top1": 61.5, "probe_top1_drop": 0.5}))
    energy.write_text(json.dumps({"variant": "bf16", "device": "cpu", "batch_size": 1, "energy_mj_per_image": 9.5}))
    limits.write_text("variant,device,batch_size,limit_ms\nbf16,cpu,1,6.0\nfp32,cpu,1,\n")
    table = summarise(
        *(samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models),
        samples.summary_config,
        probe=[probe],
        energy=[energy],
        cards=[card],
        limits=limits,
    )
    row = _row(table, "bf16", "cpu")
    assert tuple(row[["energy_mj_per_image", "limit_ms", "over_limit"]]) == (9.5, 6.0, 3.0)
    assert pd.isna(_row(table, "bf16", "cpu", 16)["energy_mj_per_image"]), "it was measured at another batch size"
    assert tuple(row[["knn_top1", "probe_top1", "probe_top1_drop"]]) == (23.55, 61.5, 0.5)
    assert tuple(row[["convert_s", "size_mb"]]) == (41.5, 43.5)
    assert pd.isna(_row(table, "fp32", "cpu")["convert_s"])
    assert _row(table, "fp32", "cpu")[["energy_mj_per_image", "limit_ms", "over_limit"]].isna().all()


def test_a_variant_without_an_audit_or_a_model_has_no_counts(samples: Samples) -> None:
    samples.audits[:] = [path for path in samples.audits if path.parent.name != "bf16"]
    row = _row(_table(samples), "bf16", "cpu")
    assert row["size_mb"] == 43.5
    assert row[["quantized_modules", "quantizable_modules"]].isna().all()
    samples.audits[:] = [path for path in samples.audits if path.parent.name != "fp16"]
    samples.models[:] = [path for path in samples.models if path.parent.name != "fp16"]
    assert _row(_table(samples), "fp16", "cpu")[["size_mb", "compression"]].isna().all()


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


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_row_refused_where_its_job_ran_is_unsupported(samples: Samples) -> None:
    path = next(path for path in map(Path, samples.latency) if path.match("cuda/bf16/batch16.json"))
    known = json.loads(path.read_text())
    refusal = {key: known[key] for key in ("variant", "device", "batch_size", "threads", "machine")}
    path.write_text(json.dumps({**refusal, "unsupported": "would be emulated"}))
    row = _row(_table(samples), "bf16", "cuda", 16)
    assert (row["status"], row["reason"]) == ("unsupported", "would be emulated")
    assert row[[*MEASURED, *ACCURACY, "threads"]].isna().all()
    assert _row(_table(samples), "bf16", "cuda", 1)["status"] == "ok"


def test_features_that_saturate_outweigh_the_timing(samples: Samples) -> None:
    path = next(path for path in map(Path, samples.accuracy) if path.stem == "int8-static")
    edit(path, saturation={"saturates": False, "cosine": 0.9999, "images": 8})
    assert _row(_table(samples), "int8-static", "cpu")["status"] != "saturates"
    edit(path, saturation={"saturates": True, "cosine": 0.91234, "images": 8})
    row = _row(_table(samples), "int8-static", "cpu")
    assert row["status"] == "saturates"
    assert row["reason"].startswith("int8 sums overflow on this processor: cosine 0.9123 to exact ones")
    assert row["latency_p50_ms"] > 0
