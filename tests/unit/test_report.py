"""The page is one file, says first what a reader must know first, and escapes what it is given."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dinoquant.report import answer, machines, read_table, render_report
from dinoquant.summary import COLUMNS, summarise, write_summary
from samples import NO_CPU, VARIANTS, Samples, write_samples


def _samples(root: Path, **options: Any) -> Samples:
    samples = write_samples(root, **options)
    table = summarise(
        *(samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models), samples.summary_config
    )
    write_summary(table, root / "summary.csv")
    (root / "latency.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    return samples


def _page(samples: Samples) -> str:
    return render_report(
        summary=samples.root / "summary.csv",
        audits=samples.audits,
        figures=[samples.root / "latency.svg"],
        archive=samples.archive,
        dataset=samples.dataset,
        checkpoint=samples.checkpoint,
        info=samples.info,
        latency=samples.latency,
        variants=list(VARIANTS),
        config=samples.config,
    )


def _rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class Page(HTMLParser):
    """Collects what a page fetches, and checks that its elements close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path, devices=("cpu", "cuda")))
    page = Page(html)
    assert page.open == []
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in page.addresses)
    assert "<script" not in html
    assert "url(" not in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_substitute_is_announced_before_anything_else(tmp_path: Path) -> None:
    text = [line.strip() for line in Page(_page(_samples(tmp_path, substitute=True))).text if line.strip()]
    assert text[1] == "Made with a substitute: generated data set and seeded weights."  # text[0] is the title
    assert "say nothing about DINO" in text[2]
    assert "Only speeds and sizes are real" in text[2]


def test_real_inputs_have_no_banner(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    assert 'class="banner"' not in html
    assert "substitute" not in html


def test_every_row_is_in_the_table(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    table = html[html.index('id="table"') : html.index('id="modules"')]
    assert table.count('<tr><th scope="row">') == 16
    assert table.count('<tr class="unsupported">') == 2
    assert table.count(f"unsupported: {NO_CPU}") == 2
    assert re.search(r"18\.00<small>17\.73 to 18\.36</small>", table)


def test_every_column_of_the_summary_is_explained(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    guide = re.findall(r"<code>(\w+)</code>", html[html.index('class="data guide"') :])
    assert [name for name in COLUMNS if name not in guide] == []


def test_provenance_is_shown(tmp_path: Path) -> None:
    text = " ".join(Page(_page(_samples(tmp_path))).text)
    for fact in (
        "0123456789abcdef0123456789abcdef01234567, with uncommitted changes",
        "AMD EPYC 9B45",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "dino_deitsmall16_pretrain.pth",
        "temperature: 0.07",
        "n01443537_7.JPEG",
        "timm's own normalization for this architecture differs",
        "bf16 on cpu, batch size 16",  # whose warm-up had not settled
        "results/latency/cpu/fp32/batch1.json",
        "patch_embed.proj",
    ):
        assert fact in text, fact


def test_seeded_weights_have_no_receipt(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path, substitute=True))
    assert "<h3>Data set archive</h3>" in html
    assert "<h3>Checkpoint</h3>" not in html


def test_audits_follow_the_order_of_the_variants(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    samples.audits.reverse()
    assert re.findall(r"<summary><strong>([^<]+)", _page(samples)) == list(VARIANTS)


def test_all_text_is_escaped(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    attack = "<img src=https://example.org/x onerror=alert(1)>"
    _rewrite(samples.dataset, skipped=[{"member": attack, "error": attack}])
    _rewrite(samples.info, note=attack)
    _rewrite(samples.archive, source=attack)
    samples.config["dataset"]["source"] = attack
    summary = samples.root / "summary.csv"
    summary.write_text(summary.read_text().replace(NO_CPU, attack))
    html = _page(samples)
    assert attack not in html
    assert html.count("&lt;img src=https://example.org/x onerror=alert(1)&gt;") == 7


def test_page_does_without_intervals(tmp_path: Path) -> None:
    samples = write_samples(tmp_path)
    for path in samples.latency:
        _rewrite(path, **{f"{name}_{end}": None for name in ("speedup_ci",) for end in ("low", "high")})
        _rewrite(path, latency_p50_ci_low_ms=None, latency_p50_ci_high_ms=None)
    table = summarise(
        *(samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models), samples.summary_config
    )
    write_summary(table, tmp_path / "summary.csv")
    (tmp_path / "latency.svg").write_text("<svg/>")
    assert "is bf16: 3.12 times as fast, 18.0 ms" in _page(samples)


def test_answer_is_the_fastest_close_variant(tmp_path: Path) -> None:
    rows = read_table(_samples(tmp_path, devices=("cpu", "cuda")).root / "summary.csv")
    assert answer(rows, "cpu", 16) == (
        "On cpu at batch size 16, the fastest variant that stays close to fp32 (mean cosine of 0.99 or more) is bf16: "
        "3.03 times as fast (2.97 to 3.09), 286.4 ms and 43.5 MB, at a cosine of 0.9999."
    )
    assert answer(rows, "cuda", 1).endswith("Not judged, as its accuracy was not measured: fp16.")


def test_answer_recommends_nothing_that_is_far_from_fp32(tmp_path: Path) -> None:
    rows = read_table(_samples(tmp_path).root / "summary.csv")
    far = [row for row in rows if row["variant"].startswith(("fp32", "int8-dynamic", "int8-static"))]
    sentence = answer(far, "cpu", 1)
    assert "no variant that is faster than fp32 stays close to it" in sentence
    assert "int8-dynamic-per-channel comes closest to fp32, at a cosine of 0.9003: 3.82 times as fast" in sentence


def test_answer_when_nothing_is_faster_or_measured(tmp_path: Path) -> None:
    rows = read_table(_samples(tmp_path).root / "summary.csv")
    slow = [row for row in rows if row["variant"] in ("fp32", "int8-weight-only")]
    assert answer(slow, "cpu", 1) == "On cpu at batch size 1, no variant is faster than fp32."
    unclear = [row | {"speedup": "1.05", "speedup_ci_low": "0.97"} for row in slow]
    assert answer(unclear, "cpu", 1) == "On cpu at batch size 1, no variant is faster than fp32."
    unmeasured = [row | {"cosine_mean": ""} for row in rows if row["variant"] == "bf16"]
    assert "can be recommended. Not judged" in answer(unmeasured, "cpu", 1)


def test_machines_are_told_apart() -> None:
    timing = {"variant": "bf16", "device": "cpu", "batch_size": 1}
    one, other = {"node": "a", "affinity": [0, 1], "git": None}, {"node": "b", "affinity": None, "git": None}
    found = machines([timing | {"machine": one}, timing | {"machine": other}, timing | {"machine": one}])
    assert [entries for entries, _ in found] == [
        {"node": "a", "affinity": "0, 1", "commit": None},
        {"node": "b", "affinity": None, "commit": None},
    ]
    assert [len(names) for _, names in found] == [2, 1]
