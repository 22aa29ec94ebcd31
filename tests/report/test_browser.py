"""The HTML report in a real headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubench import report
from tests.report import make
from tests.report.browser import Browser, executable
from tests.report.test_report import hostile

pytestmark = pytest.mark.skipif(
    executable() is None, reason="no Chromium on the PATH: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = executable()
    assert program
    with Browser(program, tmp_path_factory.mktemp("profile")) as made:
        yield made


def show(browser: Browser, path: Path, files: list) -> None:
    path.write_text(report.render(files, "html"), encoding="utf-8")
    browser.events.clear()
    browser.open(path.as_uri())
    browser.evaluate("window.ready")


def troubles(browser: Browser) -> list[object]:
    bad = []
    for event in browser.events:
        params = event["params"]
        if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            bad.append(params["args"])
        elif event["method"] == "Runtime.exceptionThrown":
            bad.append(params["exceptionDetails"])
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            bad.append(params["entry"])
    return bad


def requests(browser: Browser) -> set[str]:
    return {e["params"]["request"]["url"] for e in browser.events
            if e["method"] == "Network.requestWillBeSent"}  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_draws_sorts_filters_and_stays_at_home(browser, tmp_path, scheme):
    path = tmp_path / "report.html"
    browser.view(1280, 900, scheme)
    show(browser, path, [make.realistic(samples=60)])
    assert browser.evaluate("document.querySelectorAll('.chart svg').length") == 4
    assert browser.evaluate("document.querySelectorAll('#chart-latency path').length") > 20

    column = "[...document.querySelectorAll('#latency-per-batch tbody tr')]"
    value = f"{column}.map(r => r.cells[4].dataset.v)"
    header = "document.querySelectorAll('#latency-per-batch th')[4]"
    before = [float(v) for v in browser.evaluate(value)]
    browser.evaluate(f"{header}.querySelector('button').click()")
    after = [float(v) for v in browser.evaluate(value)]
    assert before != sorted(before)
    assert after == sorted(before)
    assert browser.evaluate(f"{header}.getAttribute('aria-sort')") == "ascending"
    browser.evaluate(f"{header}.querySelector('button').click()")
    assert [float(v) for v in browser.evaluate(value)] == sorted(before, reverse=True)

    box = "document.querySelector('#latency-per-batch input')"
    browser.evaluate(f"{box}.value = 'openvino bf16'; {box}.dispatchEvent(new Event('input'))")
    assert browser.evaluate(f"{column}.filter(r => !r.hidden).length") == 12

    marks = "document.querySelectorAll('#chart-latency .mark-symbol path').length"
    count = browser.evaluate(marks)
    browser.evaluate("document.querySelector('#series button').click()")
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    assert browser.evaluate(marks) < count

    shot = browser.screenshot()
    assert shot.startswith(b"\x89PNG")
    assert len(shot) > 20_000
    assert troubles(browser) == []
    assert requests(browser) == {path.as_uri()}


def test_hostile_strings_run_nothing(browser, tmp_path):
    path = tmp_path / "hostile.html"
    browser.view(1280, 900)
    show(browser, path, [hostile()])
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert not [e for e in browser.events if e["method"] == "Page.javascriptDialogOpening"]
    assert troubles(browser) == []
    assert requests(browser) == {path.as_uri()}


def test_phone_has_no_sideways_scroll_and_print_is_a_pdf(browser, tmp_path):
    browser.view(390, 844)
    show(browser, tmp_path / "phone.html", [make.realistic(samples=60)])
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.pdf().startswith(b"%PDF")
    assert troubles(browser) == []
