"""The page is one file, says first what a reader must know first, and escapes what it is given."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dinoquant.files import read_rows
from dinoquant.recommend import recommend
from dinoquant.report import machines, render_report
from dinoquant.summary import COLUMNS, summarise, write_summary
from samples import NO_CPU, VARIANTS, Samples, write_samples


def _samples(root: Path, **options: Any) -> Samples:
    return _written(write_samples(root, **options))


def _written(samples: Samples) -> Samples:
    """Write what the page is made from."""
    root = samples.root
    table = summarise(
        *(samples.latency, samples.footprint, samples.accuracy, samples.audits, samples.models), samples.summary_config
    )
    write_summary(table, root / "summary.csv")
    (root / "latency.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    found = recommend(read_rows(root / "summary.csv"), samples.recommend_config)
    (root / "recommendation.json").write_text(json.dumps(found))
    return samples


def _page(samples: Samples) -> str:
    return render_report(
        summary=samples.root / "summary.csv",
        recommendation=samples.root / "recommendation.json",
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
    samples = _samples(tmp_path)
    ends = [
        f"{name}_ci_{end}{unit}" for name, unit in [("speedup", ""), ("latency_p50", "_ms")] for end in ("low", "high")
    ]
    for path in samples.latency:
        _rewrite(path, **dict.fromkeys(ends))
    assert "deploy bf16: 3.12x as fast as fp32, 2.0x smaller" in _page(_written(samples))


def test_machines_are_told_apart() -> None:
    timing = {"variant": "bf16", "device": "cpu", "batch_size": 1}
    one, other = {"node": "a", "affinity": [0, 1], "git": None}, {"node": "b", "affinity": None, "git": None}
    found = machines([timing | {"machine": one}, timing | {"machine": other}, timing | {"machine": one}])
    assert [entries for entries, _ in found] == [
        {"node": "a", "affinity": "0, 1", "commit": None},
        {"node": "b", "affinity": None, "commit": None},
    ]
    assert [len(names) for _, names in found] == [2, 1]
