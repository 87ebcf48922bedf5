"""Every figure is complete, says what is missing, keeps its labels apart, and is the same file every time."""

import inspect
import json
from importlib import import_module
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from dinoquant.report.figures import (
    attention,
    audit,
    distribution,
    fidelity,
    latency,
    pareto,
    patches,
    roofline,
    scaling,
    size,
    throughput,
)
from dinoquant.report.figures.catalogue import CATALOGUE
from dinoquant.report.figures.inputs import READERS, read_summary
from dinoquant.report.figures.labels import spread_apart
from dinoquant.report.figures.style import Style, save, use_style
from dinoquant.report.summary import summarise, write_summary
from samples import NO_CPU, VARIANTS, Samples, write_samples

mpl.use("agg")
FROM_SUMMARY = [latency, size, pareto, fidelity, throughput]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return _with_summary(write_samples(tmp_path_factory.mktemp("both"), devices=("cpu", "cuda")))


@pytest.fixture(scope="module")
def substitute(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return _with_summary(write_samples(tmp_path_factory.mktemp("substitute"), batch_sizes=(4,), substitute=True))


@pytest.fixture(scope="module")
def drawn(samples: Samples) -> dict[Any, Figure]:
    """The figures that need the summary alone, by module."""
    style = use_style(samples.figure_config)
    return {module: module.draw(_table(samples), style) for module in FROM_SUMMARY}


@pytest.fixture(scope="module")
def drawn_large(substitute: Samples) -> dict[Any, Figure]:
    """The same in large print, of a run with substitutes."""
    style = use_style(substitute.figure_config | {"font_scale": 1.3})
    return {module: module.draw(_table(substitute), style) for module in FROM_SUMMARY}


@pytest.fixture(autouse=True)
def _no_open_figures() -> Any:
    yield
    plt.close("all")


def _with_summary(samples: Samples) -> Samples:
    table = summarise(
        *(samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models), samples.summary_config
    )
    write_summary(table, samples.root / "summary.csv")
    return samples


def _table(samples: Samples) -> pd.DataFrame:
    return read_summary(samples.root / "summary.csv")


def _audits(samples: Samples) -> dict[str, pd.DataFrame]:
    return {path.parent.name: pd.read_csv(path) for path in samples.audits}


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def _assert_inside(figure: Figure) -> None:
    """All that is drawn lies within the picture."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_figure_has_a_module_that_takes_what_it_needs(name: str) -> None:
    draw = import_module(f"dinoquant.report.figures.{name}").draw
    assert len(inspect.signature(draw).parameters) == len(CATALOGUE[name].needs) + 1
    assert set(CATALOGUE[name].needs) <= set(READERS)
    assert name in (Path(__file__).parents[2] / "results/README.md").read_text()


@pytest.mark.parametrize("module", FROM_SUMMARY, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_variant_is_named(module: Any, drawn: dict[Any, Figure]) -> None:
    texts = " ".join(_texts(drawn[module]))
    assert [variant for variant in VARIANTS if variant not in texts] == []


@pytest.mark.parametrize("module", [latency, pareto, fidelity, throughput])
def test_what_does_not_run_is_noted_with_its_reason(module: Any, drawn: dict[Any, Figure]) -> None:
    text = " ".join(_texts(drawn[module]))
    assert f"Not on cpu: fp16 ({NO_CPU})" in text.replace("\n", " ")


@pytest.mark.parametrize("module", [latency, pareto, throughput])
def test_a_doubtful_timing_is_shown_and_named(module: Any, samples: Samples) -> None:
    table = _table(samples)
    table.loc[(table["variant"] == "bf16") & (table["device"] == "cpu"), "status"] = "disturbed"
    figure = module.draw(table, use_style(samples.figure_config))
    assert "Timing disturbed on cpu: bf16" in " ".join(_texts(figure)).replace("\n", " ")
    figure.draw_without_rendering()


@pytest.mark.parametrize("module", FROM_SUMMARY)
def test_no_text_leaves_the_picture(module: Any, drawn_large: dict[Any, Figure]) -> None:
    _assert_inside(drawn_large[module])


def test_pareto_sets_size_against_speed_on_a_substitute(drawn_large: dict[Any, Figure]) -> None:
    texts = " ".join(_texts(drawn_large[pareto]))
    assert "Size against speed" in texts
    assert "cosine" not in texts
    (ax,) = drawn_large[pareto].axes
    bottom, top = ax.get_ylim()
    assert bottom > top  # smaller is better, and better is up
    (front,) = (line for line in ax.lines if line.get_gid() == pareto.FRONT)
    assert (np.diff(front.get_xdata()) <= 0).all()
    assert (np.diff(front.get_ydata()) <= 0).all()


@pytest.mark.parametrize("module", [fidelity])
def test_accuracy_figures_say_when_their_inputs_are_a_substitute(
    module: Any, drawn: dict[Any, Figure], drawn_large: dict[Any, Figure]
) -> None:
    warned = " ".join(_texts(drawn_large[module])).replace("\n", " ")
    assert "generated data set, seeded weights: accuracy says nothing about DINO" in warned
    assert "substitute" not in warned
    assert "says nothing" not in " ".join(_texts(drawn[module]))


def _label_boxes(ax: Axes) -> list[Bbox]:
    """Return where the names stand, after checking that they cover no name, no marker, and not the front."""
    boxes = [Text.get_window_extent(label) for label in ax.texts if isinstance(label, Annotation)]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    centres = [
        ax.transData.transform(line.get_xydata())[0] for line in ax.lines if line.get_marker() not in ("None", "")
    ]
    assert len(centres) >= len(boxes)
    assert not any(box.contains(*centre) for box in boxes for centre in centres)
    fronts = [line for line in ax.lines if line.get_gid() == pareto.FRONT]
    paths = [line.get_path().transformed(line.get_transform()) for line in fronts]
    assert not any(path.intersects_bbox(box, filled=False) for path in paths for box in boxes)
    return boxes


def test_pareto_labels_keep_apart(drawn: dict[Any, Figure]) -> None:
    for ax in drawn[pareto].axes:
        boxes = _label_boxes(ax)
        assert all(ax.get_window_extent().contains(*box.min) for box in boxes)


def test_pareto_gives_every_nine_of_a_cosine_as_much_room_and_says_where_it_ends(drawn: dict[Any, Figure]) -> None:
    figure = drawn[pareto]
    ax = figure.axes[0]
    heights = ax.transData.transform([(1, cosine) for cosine in (0.9, 0.99, 0.999, 0.9999)])[:, 1]
    np.testing.assert_allclose(np.diff(heights, 2), 0, atol=0.01)
    figure.draw_without_rendering()
    labels = dict(zip(ax.get_yticks(), (label.get_text() for label in ax.get_yticklabels()), strict=True))
    exact = [line for line in ax.lines if line.get_ydata()[0] == pareto.EXACT]  # fp32's cosine is 1
    assert exact
    assert labels[pareto.EXACT] == "≥ 0.99999"
    assert labels[0.99] == "0.99"


@pytest.mark.parametrize("module", [pareto, throughput])
def test_forty_variants_stay_readable(module: Any, samples: Samples) -> None:
    """Each named inside the picture, and no name over another."""
    one = _table(samples)
    one = one[(one["variant"] == "bf16") & (one["device"] == "cpu")]
    rng = np.random.default_rng(0)
    tables = [one.assign(variant=f"grid-{n:02d}-of-a-sweep") for n in range(39)]
    for table in tables:
        for kind in ("speedup", "throughput"):
            table[[column for column in table if column.startswith(kind)]] *= rng.uniform(0.5, 1.5)
        table[[column for column in table if column.startswith("cosine")]] = 1 - 10 ** -rng.uniform(1, 4)
    table = pd.concat([one.assign(variant="fp32"), *tables])
    config = samples.figure_config | {"variants": list(table["variant"].unique())}
    figure = module.draw(table, use_style(config))
    figure.draw_without_rendering()
    labels = [label for label in figure.axes[0].texts if isinstance(label, Annotation)]
    assert {label.get_text() for label in labels} == set(config["variants"])
    _label_boxes(figure.axes[0])
    assert figure.get_tightbbox().y0 >= 0


def test_spread_keeps_the_order_the_gap_and_the_top() -> None:
    heights = spread_apart([1.0, 1.1, 9.9, 10.0], 1.0, 10.0)
    assert all(upper - lower >= 1.0 - 1e-9 for lower, upper in pairwise(heights))
    assert heights[-1] <= 10.0
    assert spread_apart([1.0, 5.0], 1.0, 10.0) == [1.0, 5.0]


def _roofline(samples: Samples, **config: Any) -> Figure:
    """Draw peaks of 1, 2 and 4 TOP/s over models of 4 GMAC; of one variant the precisions are not known."""
    table = _table(samples)
    peaks = {"fp32": 1e12, "bf16": 2e12, "fp16": None, "int8": 4e12}
    machines = [
        {"device": device, "gemm_flops": peaks, "bandwidth_bytes_per_s": 5e10} for device in table["device"].unique()
    ]
    limits = table[["variant", "device", "batch_size"]].assign(gmacs=4.0, bound="compute")
    limits["operations_per_byte"] = 100.0 * limits["batch_size"]
    limits["limit_ms"] = (8.0 * limits["batch_size"]).where(limits["variant"] != "bf16")
    return roofline.draw(table, limits, machines, use_style(samples.figure_config | config))


def test_roofline_places_what_was_measured_under_the_roofs(samples: Samples) -> None:
    cpu, _ = _roofline(samples).axes
    (fp32,) = (line for line in cpu.lines if line.get_marker() == "o")
    assert list(fp32.get_xdata()) == [100, 1600]
    assert list(fp32.get_ydata()) == pytest.approx([8e9 / 56.1e-3, 8e9 / 54.2e-3])
    texts = [text.get_text() for text in cpu.texts]
    assert {"fp32: 1 TOP/s", "bf16: 2 TOP/s", "int8: 4 TOP/s", "memory: 50 GB/s"} <= set(texts)
    assert {"fp32, 15%", "bf16"} <= set(texts), "the share of the limit, where there is one"


def test_roofline_is_complete_and_keeps_inside(samples: Samples, substitute: Samples) -> None:
    texts = " ".join(_texts(_roofline(samples))).replace("\n", " ")
    assert [variant for variant in VARIANTS if variant not in texts] == []
    assert f"Not on cpu: fp16 ({NO_CPU})" in texts
    figure = _roofline(substitute, font_scale=1.3)
    _assert_inside(figure)


def test_audit_shows_conv2d_untouched_and_converted(samples: Samples) -> None:
    figure = audit.draw(_audits(samples), use_style(samples.figure_config))
    (ax,) = figure.axes
    column = [tick.get_text() for tick in ax.get_xticklabels()].index("Conv2d")
    tiles = {
        list(VARIANTS)[round(tile.get_y() + tile.get_height() / 2)]: tile.get_facecolor()
        for tile in ax.patches
        if round(tile.get_x() + tile.get_width() / 2) == column
    }
    assert tiles["int8-dynamic-linear"] == tiles["fp32"]
    assert tiles["int8-dynamic-linear-conv"] == tiles["int8-static"] != tiles["fp32"]
    assert tiles["bf16"] != tiles["int8-static"]


def test_audit_shares_a_tile_between_precisions(samples: Samples) -> None:
    audits = _audits(samples)
    linear = audits["int8-static"]["module"].str.endswith("fc2")
    audits["int8-static"].loc[linear, "became"] = "bfloat16"
    figure = audit.draw(audits, use_style(samples.figure_config))
    (ax,) = figure.axes
    tile = (0, list(VARIANTS).index("int8-static"))
    (text,) = [text for text in ax.texts if text.get_position() == tile]
    assert [line.partition(",")[0] for line in text.get_text().split("\n")] == ["36 int8 static", "12 bfloat16"]
    widths = [bar.get_width() for bar in ax.patches if bar.get_y() < tile[1] < bar.get_y() + 1 and bar.get_x() < 0.5]
    assert widths == pytest.approx([0.98 * 36 / 48, 0.98 * 12 / 48])
    figure.draw_without_rendering()
    assert text.get_window_extent().width < abs(np.diff(ax.transData.transform([(0, 0), (0.98, 0)])[:, 0])[0])


def test_audit_counts_what_differs_in_details_only_as_one(samples: Samples) -> None:
    audits = _audits(samples)
    static = audits["int8-static"]
    linear = static["kind"] == "Linear"
    static.loc[linear, "became"] = [f"int8 static, {n} copies of channels" for n in range(linear.sum())]
    (ax,) = audit.draw(audits, use_style(samples.figure_config)).axes
    tile = (0, list(VARIANTS).index("int8-static"))
    assert [text.get_text().split("\n")[0] for text in ax.texts if text.get_position() == tile] == ["48 int8 static"]


def test_missing_intervals_and_percentiles_are_left_out(samples: Samples) -> None:
    table = _table(samples)
    columns = [name for name in table if "_ci_" in str(name) or name in ("latency_p90_ms", "latency_p99_ms")]
    table[columns] = float("nan")
    style = use_style(samples.figure_config)
    for module in FROM_SUMMARY:
        figure: Figure = module.draw(table, style)
        figure.draw_without_rendering()
        assert not any("nan" in text for text in _texts(figure))


def test_figures_show_the_batch_size_of_the_config(samples: Samples, drawn: dict[Any, Figure]) -> None:
    assert "Latency at batch size 1" in _texts(drawn[latency])
    style = use_style(samples.figure_config | {"batch_size": 16})
    assert "Latency at batch size 16" in _texts(latency.draw(_table(samples), style))


def test_colours_and_markers_stay_with_the_variant_and_differ(samples: Samples) -> None:
    style = use_style(samples.figure_config)
    assert len({str(colour) for colour in style.colours.values()}) == len(VARIANTS)
    assert len(set(style.markers.values())) == len(VARIANTS)
    without_last = use_style(samples.figure_config | {"variants": list(VARIANTS)[:-1]})
    assert all(style.colours[variant] == colour for variant, colour in without_last.colours.items())


def _maps() -> dict[str, dict[str, np.ndarray]]:
    """Return maps of two images: alike but for int8-static, whose are even, and bf16, which has none."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 56, 56), dtype=np.uint8)
    maps = rng.dirichlet(np.ones(16), (2, 3)).reshape(2, 3, 4, 4).astype(np.float32)
    by_variant = {variant: {"images": images, "maps": maps} for variant in VARIANTS if variant != "fp16"}
    by_variant["int8-static"] = {"images": images, "maps": np.full_like(maps, 1 / 16)}
    by_variant["bf16"] = {"images": images, "reason": np.array("it computes attention in the dark")}
    return by_variant


@pytest.mark.parametrize("font_scale", [1.0, 1.3])
def test_attention_shows_every_map_or_why_there_is_none(font_scale: float, substitute: Samples) -> None:
    style = use_style(substitute.figure_config | {"font_scale": font_scale, "without_attention": {"fp16": NO_CPU}})
    figure = attention.draw(_maps(), style)
    texts = [text.replace("\n", "") for text in _texts(figure)]
    assert [variant for variant in VARIANTS if variant not in texts and variant not in ("fp16", "bf16")] == []
    foot = figure.get_supxlabel().replace("\n", " ")
    assert f"No map of fp16: {NO_CPU}." in foot
    assert "No map of bf16: it computes attention in the dark." in foot
    assert len([text for text in texts if text == "1.000"]) == 2 * 5  # two images by all but fp32 and int8-static
    assert texts.count("even") == 2
    _assert_inside(figure)


def test_attention_tells_an_architecture_without_maps(samples: Samples) -> None:
    images = np.zeros((1, 3, 56, 56), dtype=np.uint8)
    maps = {variant: {"images": images, "reason": np.array("vit_x has no [CLS] token")} for variant in VARIANTS}
    texts = _texts(attention.draw(maps, use_style(samples.figure_config)))
    assert "image" in texts
    assert any("fp16-dynamic: vit_x has no [CLS] token." in text for text in texts)


def test_the_colours_of_an_image_are_those_of_fp32(samples: Samples) -> None:
    """A variant that attends elsewhere must not get colours of its own."""
    maps = _maps()
    figure = attention.draw(maps, use_style(samples.figure_config | {"without_attention": {"fp16": NO_CPU}}))
    first = [ax.images[0] for ax in figure.axes if ax.images][1:7]
    reference = maps["fp32"]["maps"][0].mean(axis=0)
    assert {image.get_clim() for image in first} == {
        (float(reference.min()), float(np.percentile(reference, attention.PERCENTILE)))
    }
    np.testing.assert_allclose(first[0].get_array(), reference, rtol=1e-6)


def _tokens() -> dict[str, dict[str, np.ndarray]]:
    """Return the patches of two images: int8-static's are fp32's in the opposite order, bf16 has none."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 56, 56), dtype=np.uint8)
    tokens = rng.standard_normal((2, 16, 6)).astype(np.float32) * np.array([9, 5, 3, 1, 1, 1], dtype=np.float32)
    by_variant = {variant: {"images": images, "patches": tokens} for variant in VARIANTS if variant != "fp16"}
    by_variant["int8-static"] = {"images": images, "patches": tokens[:, ::-1]}
    by_variant["bf16"] = {"images": images, "reason": np.array("its file gives features only")}
    return by_variant


def test_patches_shows_every_variant_or_why_it_cannot_be_seen(substitute: Samples) -> None:
    style = use_style(substitute.figure_config | {"without_patches": {"fp16": NO_CPU}})
    figure = patches.draw(_tokens(), style)
    texts = [text.replace("\n", "") for text in _texts(figure)]
    assert [variant for variant in VARIANTS if variant not in texts and variant not in ("fp16", "bf16")] == []
    foot = figure.get_supxlabel().replace("\n", " ")
    assert f"No patches of fp16: {NO_CPU}. No patches of bf16: its file gives features only." in foot
    assert texts.count("1.0000") == 2 * 5
    _assert_inside(figure)


def test_a_variant_has_the_axes_and_the_range_of_fp32() -> None:
    """With axes of its own, a variant turned round or stretched would look like fp32."""
    reference = _tokens()["fp32"]["patches"]
    turned = np.roll(reference, 3, axis=2)  # all of its variance is where fp32 has little
    found = patches.colours({"fp32": reference, "turned": turned, "halved": reference / 2, "same": reference})
    assert found["fp32"].shape == (2, 4, 4, 3)
    spread = {name: own.std(axis=(0, 1, 2)) for name, own in found.items()}
    assert (spread["fp32"] > 0.15).all()
    assert (spread["turned"] < spread["fp32"]).all()
    np.testing.assert_array_equal(found["same"], found["fp32"])
    centred = reference - reference.mean((0, 1))
    first = np.linalg.svd(centred.reshape(-1, 6), full_matrices=False)[2][0]
    expected = (centred @ first).reshape(2, 4, 4)
    inner = np.abs(found["fp32"][..., 0] - 0.5) < 0.49  # what is cut is no longer proportional
    assert abs(np.corrcoef(found["fp32"][..., 0][inner], expected[inner])[0, 1]) > 0.9999
    assert abs(np.corrcoef(found["halved"][..., 0].ravel(), expected.ravel())[0, 1]) > 0.99


def test_files_are_the_same_every_time(substitute: Samples, tmp_path: Path) -> None:
    style: Style = use_style(substitute.figure_config)
    for name in ("first", "second"):
        paths = [tmp_path / f"{name}.{suffix}" for suffix in ("svg", "png", "pdf")]
        save(pareto.draw(_table(substitute), style), paths, dpi=60)
    for path in paths:
        first = path.with_stem("first").read_bytes()
        assert first == path.read_bytes()
        assert not any(mark in first for mark in (b"Date", b"matplotlib.org", b"<dc:date>"))


def test_distribution_shows_every_call_of_every_variant(samples: Samples) -> None:
    style = use_style(samples.figure_config)
    timings = [json.loads(path.read_text()) for path in samples.latency if path.stem == "batch1"]
    figure = distribution.draw(_table(samples), timings, style)
    figure.draw_without_rendering()
    texts = _texts(figure)
    assert texts.count("n 400") == len(timings)
    assert {"does not run on cpu", "does not run on cuda"} <= set(texts)
    medians = {round(line.get_ydata().mean()): line.get_xdata()[0] for line in figure.axes[0].lines[4::6]}
    assert medians[list(VARIANTS).index("bf16")] == pytest.approx(18.0 * 1.03, rel=0.01)


def test_scaling_compares_the_most_threads_with_the_fewest(samples: Samples) -> None:
    timings = [
        {"variant": variant, "threads": threads, "batch_size": 2, "throughput_ips": rate, "verdict": verdict}
        for variant, threads, rate, verdict in [
            ("bf16", 4, 90.0, "disturbed"), ("bf16", 1, 30.0, "ok"), ("fp32", 1, 10.0, "ok"), ("fp32", 4, 15.0, "ok")
        ]
    ]  # fmt: skip
    figure = scaling.draw(timings, use_style(samples.figure_config))
    texts = _texts(figure)
    assert {"fp32 1.50x", "bf16 3.00x"} <= set(texts)
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[1, 4], [1, 4]]
    assert any("Timing disturbed: bf16 with 4 threads" in text for text in texts)


def test_throughput_rings_the_best_batch_size(samples: Samples, drawn: dict[Any, Figure]) -> None:
    table, cpu = _table(samples), drawn[throughput].axes[0]
    rows = table[(table["device"] == "cpu") & (table["status"] != "unsupported")]
    best = rows.groupby("variant")["throughput_ips"].max()
    rings = [line for line in cpu.lines if line.get_markerfacecolor() == "none"]
    assert sorted(float(ring.get_ydata()[0]) for ring in rings) == pytest.approx(sorted(best))


def test_names_that_pandas_takes_for_missing_stay_names(samples: Samples, tmp_path: Path) -> None:
    table = _table(samples).assign(variant="NA")
    table.to_csv(tmp_path / "summary.csv", index=False)
    again = read_summary(tmp_path / "summary.csv")
    assert set(again["variant"]) == {"NA"}
    assert again["latency_p50_ms"].equals(table["latency_p50_ms"]), "numbers stay numbers, and empty cells missing"
