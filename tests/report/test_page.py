"""The page in a real browser: it asks for nothing, complains of nothing, and its table sorts and filters."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser
from samples import NO_CPU, render_page, write_samples, write_tables

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to look at the page with")

ATTACK = "<img src=https://example.org/x onerror=console.log(1)><script>console.log(2)</script>"
SHOWN = "[...document.querySelectorAll('#rows tbody tr:not([hidden])')]"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two devices, a doubtful timing, and a reason that means harm."""
    root = tmp_path_factory.mktemp("page")
    samples = write_samples(root, devices=("cpu", "cuda"), substitute=True)
    doubtful = next(path for path in samples.latency if path.match("cpu/bf16/batch1.json"))
    doubt = {"verdict": "disturbed", "verdict_reason": "1.0 of 2 processors were used by others"}
    doubtful.write_text(json.dumps(json.loads(doubtful.read_text()) | doubt))
    write_tables(samples)
    summary = root / "summary.csv"
    summary.write_text(summary.read_text().replace(NO_CPU, ATTACK))
    path = root / "report.html"
    path.write_text(render_page(samples)[0])
    return path


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(started: Browser, page: Path) -> Browser:
    """The page, freshly loaded, on a wide and light screen."""
    started.show()
    started.open(page)
    return started


def shown(browser: Browser, column: int) -> list[str]:
    """Return the cells of a column, as far as their rows are shown, from top to bottom."""
    values: list[str] = browser.run(f"{SHOWN}.map((row) => row.cells[{column}].dataset.value)")
    return values


def column_of(browser: Browser, heading: str) -> int:
    headings = browser.run("[...document.querySelectorAll('#rows thead th')].map((cell) => cell.textContent)")
    return int(headings.index(heading))


def click(browser: Browser, column: int) -> None:
    browser.run(f"document.querySelectorAll('#rows thead button')[{column}].click()")


def enter(browser: Browser, control: str, value: str) -> None:
    browser.run(f"{control}.value = {value!r}; {control}.dispatchEvent(new Event('input'))")


def test_it_asks_for_nothing_and_complains_of_nothing(browser: Browser, page: Path) -> None:
    requests = [event["request"]["url"] for event in browser.reported("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.reported("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []


def test_no_other_script_runs(browser: Browser) -> None:
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.harm = true'}))"
    )
    assert browser.run("window.harm === undefined")
    assert any("Content Security Policy" in event["entry"]["text"] for event in browser.reported("Log.entryAdded"))


def test_a_heading_sorts_by_number_with_what_is_missing_last(browser: Browser) -> None:
    column = column_of(browser, "p50, ms")
    before = shown(browser, column)
    click(browser, column)
    ascending = shown(browser, column)
    click(browser, column)
    descending = shown(browser, column)
    numbers = sorted(float(value) for value in before if value)
    assert [float(value) for value in ascending if value] == numbers
    assert [float(value) for value in descending if value] == numbers[::-1]
    missing = before.count("")
    assert missing > 0
    assert ascending[-missing:] == descending[-missing:] == [""] * missing
    sorts = browser.run("[...document.querySelectorAll('#rows [aria-sort]')].map((cell) => cell.ariaSort)")
    assert sorts == ["descending"]


def test_names_are_sorted_as_text(browser: Browser) -> None:
    click(browser, 0)
    assert shown(browser, 0) == sorted(shown(browser, 0))


def test_filters_combine(browser: Browser) -> None:
    assert len(shown(browser, 0)) == 36
    enter(browser, "text", "INT8 weight")
    assert set(shown(browser, 0)) == {"int8-weight-only"}
    enter(browser, "device", "cuda")
    enter(browser, "batch", "16")
    assert (shown(browser, 0), shown(browser, 1), shown(browser, 2)) == (["int8-weight-only"], ["cuda"], ["16"])
    assert browser.run("count.textContent").startswith("1 of 36 rows")
    enter(browser, "text", "no such thing")
    assert shown(browser, 0) == []


def test_more_columns_on_demand(browser: Browser) -> None:
    visible = "[...document.querySelectorAll('#rows thead th')].filter((cell) => cell.offsetWidth > 0).length"
    few = browser.run(visible)
    browser.run("document.getElementById('all').click()")
    assert few == 7  # those of accuracy are not among them, as this page is about a substitute
    assert browser.run(visible) == browser.run("document.querySelectorAll('#rows thead th').length") > 20


@pytest.mark.parametrize("window", [{"width": 390, "height": 844}, {"width": 718, "media": "print"}, {"width": 1280}])
def test_nothing_is_wider_than_the_window(browser: Browser, window: dict) -> None:
    browser.show(**window)
    assert browser.run("document.documentElement.scrollWidth") <= window["width"]


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (400, 900)])
def test_the_first_screen_has_the_answer_the_figure_and_the_rows_that_matter(
    started: Browser, tmp_path: Path, width: int, height: int
) -> None:
    samples = write_samples(tmp_path)
    write_tables(samples)
    (tmp_path / "report.html").write_text(render_page(samples)[0])
    started.show(width=width, height=height)
    started.open(tmp_path / "report.html")
    boxes = "[...document.querySelectorAll('.answer, #figure-pareto .card, .matter')]"
    tops = started.run(f"{boxes}.map((box) => box.getBoundingClientRect().top)")
    assert len(tops) == 3
    assert max(tops) < height
    sides = started.run(
        f"{boxes}.flatMap((box) => [...Object.values(box.getBoundingClientRect().toJSON())].slice(4, 8))"
    )
    lefts, rights = sides[3::4], sides[1::4]
    assert min(lefts) < 0.04 * width
    assert 0.96 * width < max(rights) <= width
    scrolled = (
        "[...document.querySelectorAll('.card, .overview .scroll')].filter((box) => box.scrollWidth > box.clientWidth)"
    )
    assert started.run(f"{scrolled}.length") == 0


def test_on_paper_no_row_is_cut_and_headings_are_repeated(browser: Browser) -> None:
    browser.show(width=718, media="print")
    styles = browser.run("[...document.querySelectorAll('tbody tr')].map((row) => getComputedStyle(row).breakInside)")
    assert set(styles) == {"avoid"}
    assert browser.run("getComputedStyle(document.querySelector('#rows thead')).display") == "table-header-group"
    # Chromium leaves a block's text out of the repeated headings.
    assert browser.run("getComputedStyle(document.querySelector('#rows thead button')).display") == "contents"


def test_dark_where_that_is_asked_for_and_white_on_paper(browser: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.show(scheme="dark")
    assert browser.run(paper) == "rgb(20, 24, 28)"
    assert browser.run("getComputedStyle(document.querySelector('.drawing')).filter").startswith("invert")
    browser.show(scheme="dark", media="print")
    assert browser.run(paper) == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.drawing')).filter") == "none"
    assert browser.run("document.querySelector('.tools').offsetHeight") == 0
