"""The report in a real browser, on a phone and on a desktop; skips where there is no Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from escnet_bench.report import find_results, read_result
from escnet_bench.report.page import report_page
from tests.bench.browser import Browser, find_browser
from tests.bench.result_files import conditions, latency, latency_row, parity, write
from tests.shared import ROOT

EVIL = "<script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">"
LONG = "an-implementation-with-a-name-that-has-no-end-and-no-space-" * 4


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All committed results, and files that are as awkward as can be."""
    folder = tmp_path_factory.mktemp("report")
    rows = [
        latency_row(implementation=name, p50_ms=100.0 + index, categories=count)
        for index, name in enumerate([EVIL, LONG, *(f"way-{i}" for i in range(12))])
        for count in (1, 19, 150, 847)
    ]
    awkward = latency(*rows, conditions=conditions(cpu=LONG + EVIL))
    extra = [write(folder / "a.json", awkward), write(folder / "b.json", parity())]
    results = find_results([str(ROOT / "benchmarks" / "results"), *map(str, extra)])
    path = folder / "report.html"
    page = report_page([read_result(file, name) for name, file in results])
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_fits_its_width(browser: Browser, page: Path, width: int) -> None:
    browser.show(page, width)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    # Nothing is cut off either, but in the boxes that scroll.
    outside = browser.value(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll table, svg')"
        " && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML"
        ".slice(0, 80))"
    )
    assert outside == []


@pytest.mark.slow
def test_charts_can_be_read_on_a_phone(browser: Browser, page: Path) -> None:
    browser.show(page, 360)
    heights = (
        "[...document.querySelectorAll('svg text')].map(o => o.getBoundingClientRect().height)"
    )
    assert browser.value(f"{heights}.length") > 100
    assert browser.value(f"Math.min(...{heights})") >= 10  # a line box; letters of 9 px and more
    # Labels stay inside their drawing.
    over = browser.value(
        "[...document.querySelectorAll('svg text')].filter(one => {"
        " const box = one.getBoundingClientRect(),"
        " all = one.closest('svg').getBoundingClientRect();"
        " return box.right > all.right + 3 || box.left < all.left - 3 })"
        ".map(one => one.textContent)"
    )
    assert over == []


@pytest.mark.slow
def test_labels_of_a_chart_do_not_lie_on_each_other(browser: Browser, page: Path) -> None:
    browser.show(page, 1280)
    pairs = browser.value(
        "[...document.querySelectorAll('svg')].flatMap(svg => {"
        " const boxes = [...svg.querySelectorAll('.label')].map(one =>"
        "   [one.getBoundingClientRect(), one.textContent]);"
        " return boxes.flatMap(([a, x], i) => boxes.slice(i + 1).filter(([b]) =>"
        "   a.left < b.right && b.left < a.right && a.top + 5 < b.bottom && b.top + 5 < a.bottom"
        " ).map(([, y]) => x + ' / ' + y)) })"
    )
    assert pairs == []


@pytest.mark.slow
def test_nothing_is_fetched_and_nothing_runs(browser: Browser, page: Path) -> None:
    browser.requests.clear()
    browser.show(page, 1280)
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.value("document.scripts.length + document.images.length") == 0
    assert browser.value("document.title") == "ESC-Net: measured"
    assert "document.title='caught'" in browser.value("document.body.textContent")


@pytest.mark.slow
def test_it_follows_light_and_dark_mode(browser: Browser, page: Path) -> None:
    colours = []
    for dark in (False, True):
        browser.show(page, 1280, dark=dark)
        colours.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 22, 27)"]
