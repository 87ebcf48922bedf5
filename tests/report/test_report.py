"""The page is one file, says first what a reader must know first, and escapes what it is given."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dinoquant.report.columns import NAMES
from dinoquant.report.page import machines
from samples import NO_CPU, VARIANTS, Samples, render_page, write_samples, write_tables


def _samples(root: Path, **options: Any) -> Samples:
    samples = write_samples(root, **options)
    write_tables(samples)
    return samples


def _page(samples: Samples) -> str:
    return render_page(samples)[0]


def _short(samples: Samples) -> str:
    return render_page(samples)[1]


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
        if tag not in ("meta", "img", "link", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def test_page_is_complete_in_itself(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path, devices=("cpu", "cuda")))
    page = Page(html)
    assert page.open == []
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in page.addresses)
    assert "url(" not in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_policy_lets_in_the_page_s_own_style_and_script_and_nothing_else(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed["default-src"] == "'none'"
    for directive, tag in (("style-src", "style"), ("script-src", "script")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert allowed[directive] == f"'sha256-{digest}'"
    assert " style=" not in html
    assert not re.search(r"<[^>]* on\w+=", html)


def test_substitute_is_announced_before_anything_else(tmp_path: Path) -> None:
    text = [line.strip() for line in Page(_page(_samples(tmp_path, substitute=True))).text if line.strip()]
    first = text.index("Made with a substitute: generated data set and seeded weights.")
    assert text[1] == "Quantizing vit_small_patch16_224.dino"
    assert first < text.index(next(line for line in text if line.startswith("Speed and size only")))
    assert "say nothing about DINO" in text[first + 1]
    assert "Only speeds and sizes are real" in text[first + 1]
    assert "The run that tells is make run" in text[first + 1]


def test_on_a_substitute_accuracy_stands_among_all_columns_only(tmp_path: Path) -> None:
    for substitute, shown in ((True, False), (False, True)):
        html = _page(_samples(tmp_path / str(substitute), substitute=substitute))
        table = html[html.index('class="data matter"') :]
        assert ("cosine to fp32" in table[: table.index("</table>")]) == shown
        assert ('<th scope="col" class="number">cosine to fp32' in html) == shown


def test_real_inputs_have_no_banner(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    assert 'class="banner"' not in html
    assert "substitute" not in html


def test_the_answer_comes_first_with_its_reasons(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    text = html[html.index("<header>") : html.index('<section id="table">')]
    assert "On cpu, batch 1, deploy bf16: 18.00 ms (17.73 to 18.36) per call, 3.12x as fast as fp32" in text
    assert "int8-dynamic-per-channel saves 3.30 ms per call" in text
    assert "results/recommended/cpu.py" in text
    rows = re.findall(r'<th scope="row">([^<]+)<small>([^<]+)', text)
    assert rows == [
        ("bf16", "recommended"),
        ("fp16-dynamic", "runner-up, more faithful"),
        ("fp32", "baseline"),
        ("int8-dynamic-linear-conv", "the notebook&#39;s int8, smallest"),
        ("int8-static", "fastest"),
    ]
    assert "Noise floor of this run: 2.0 % on cpu at batch size 1, 2.0 % on cpu at batch size 16." in text


def test_every_row_is_in_the_table(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    table = html[html.index('id="rows"') : html.index('id="figures"')]
    assert table.count('<tr class="ok"') == 15
    assert table.count('<tr class="ok pick"') == 1
    assert table.count('<tr class="unsupported"') == 2
    assert table.count(f"unsupported<small>{NO_CPU}") == 2
    assert re.search(r"18\.00<small>17\.73 to 18\.36</small>", table)
    cells = {len(re.findall("<t[dh]", row)) for row in table.split("<tr")[1:]}
    assert len(cells) == 1  # no row spans columns, so that sorting and hiding meet the same cell in each


def test_columns_of_which_nothing_was_measured_are_left_out(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    table = html[html.index('id="rows"') :]
    headings = table[: table.index("</thead>")]
    assert "with preprocessing, ms" in headings
    assert "mJ per image" not in headings
    assert "probe" not in headings


def test_a_doubtful_timing_is_explained(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    assert "No timing is in doubt." in _page(samples)
    path = next(path for path in samples.latency if path.match("bf16/batch1.json"))
    _rewrite(path, verdict="wide", verdict_reason="calls became 9 % slower")
    write_tables(samples)
    html = _page(samples)
    assert "bf16 on cpu, batch size 1, is wide: calls became 9 % slower" in html
    doubt = '<details class="banner"><summary>The timing of bf16 is wide</summary>calls became 9 % slower.</details>'
    assert doubt in html


def test_every_column_of_the_summary_is_explained(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path))
    guide = re.findall(r"<code>(\w+)</code>", html[html.index('class="data guide"') :])
    assert [name for name in NAMES if name not in guide] == []


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
        "results/latency/cpu/fp32/batch1.json",
        "patch_embed.proj",
    ):
        assert fact in text, fact


def test_the_short_form_says_the_same(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    lines = _short(samples).splitlines()
    assert lines[2].startswith("**On cpu, batch 1, deploy bf16: 18.00 ms (17.73 to 18.36) per call, 3.12x as fast")
    table = [line for line in lines if line.startswith("| ")]
    assert [line.split(" | ")[0].lstrip("| ") for line in table[2:]] == list(VARIANTS)
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert "![How long a call takes: median" in "\n".join(lines)
    assert "(figures/latency.png)" in "\n".join(lines)
    assert any(
        line.startswith("> Made with a substitute: generated data set and seeded weights.")
        for line in _short(_samples(tmp_path / "substitute", substitute=True)).splitlines()
    )


def test_the_short_form_is_escaped(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    summary = samples.root / "summary.csv"
    summary.write_text(summary.read_text().replace(NO_CPU, "a | b <script>alert(1)</script> [x](http://y) `z`"))
    text = _short(samples)
    assert r"a \| b \<script\>alert(1)\</script\> \[x\](http://y) \`z\`" in text
    assert "<script" not in text.replace(r"\<script", "")


def test_seeded_weights_have_no_receipt(tmp_path: Path) -> None:
    html = _page(_samples(tmp_path, substitute=True))
    assert "<h3>Data set archive</h3>" in html
    assert "<h3>Checkpoint</h3>" not in html


def test_audits_follow_the_order_of_the_variants(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    samples.audits.reverse()
    modules = _page(samples).partition('<section id="modules">')[2]
    assert re.findall(r"<summary><strong>([^<]+)", modules) == list(VARIANTS)


def test_classes_that_lose_most(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    rows = [
        {"wnid": f"n{i}", "queries": 50, "knn_top1": 60.0, "knn_top1_fp32": 60.0 + drop, "drop": drop}
        | {"drop_ci_low": drop - 4, "drop_ci_high": drop + 4}
        for i, drop in enumerate([24.0, 4.5, 3.5, *[0.0] * 9, -5.0])
    ]
    _rewrite(samples.accuracy[1], per_class=rows)
    classes = _page(samples).partition('<section id="classes">')[2].partition("</section>")[0]
    shown = classes.partition("</details>")[0]
    assert "of 13 classes 2 lose and 1 gain by more than their intervals" in shown
    assert re.findall(r'<th scope="row">(n\d+)', shown) == [f"n{i}" for i in range(10)]
    assert "24.0<small>20.0 to 28.0" in shown
    assert "<strong>fp32</strong>" not in classes


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
    write_tables(samples)
    assert "deploy bf16: 18.00 ms per call, 3.12x as fast as fp32, 2.0x smaller" in _page(samples)


def test_rows_of_several_machines_carry_a_note(tmp_path: Path) -> None:
    samples = _samples(tmp_path)
    assert "were timed on" not in _page(samples)
    summary = samples.root / "summary.csv"
    summary.write_text(summary.read_text().replace(",node1,", ",node2,", 1))
    for page in (_page(samples), _short(samples)):
        assert "The rows were timed on 2 machines: 1 on node2" in page


def test_machines_are_told_apart() -> None:
    timing = {"variant": "bf16", "device": "cpu", "batch_size": 1}
    one, other = {"node": "a", "affinity": [0, 1], "git": None}, {"node": "b", "affinity": None, "git": None}
    known = machines([timing | {"machine": one}, timing | {"machine": other}, timing | {"machine": one}])
    assert [entries for entries, _ in known] == [
        {"node": "a", "affinity": "0, 1", "commit": None},
        {"node": "b", "affinity": None, "commit": None},
    ]
    assert [len(names) for _, names in known] == [2, 1]
