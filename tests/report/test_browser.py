"""The HTML report in a real headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gpubench import report
from gpubench.analysis.compare.compare import view
from gpubench.analysis.tune import result
from gpubench.records.record import RecordFile
from gpubench.report import html
from gpubench.report.html import page, tune_page
from tests.analysis import scaled
from tests.report import make, make_pairs, make_pipelines, make_tunes
from tests.report.browser import Browser, executable
from tests.report.test_report import HOSTILE, hostile

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
    show_page(browser, path, report.render(files, "html"))


def show_page(browser: Browser, path: Path, made: str) -> None:
    path.write_text(made, encoding="utf-8")
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


def settle(browser: Browser, action: str) -> None:
    """Do it, and wait until what it draws is drawn."""
    browser.evaluate(action)
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    browser.evaluate("window.ready")


def count(browser: Browser, selector: str) -> int:
    return int(browser.evaluate(f"document.querySelectorAll({selector!r}).length"))


def requests(browser: Browser) -> set[str]:
    return {e["params"]["request"]["url"] for e in browser.events
            if e["method"] == "Network.requestWillBeSent"}  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_draws_sorts_filters_and_stays_at_home(browser, tmp_path, scheme):
    path = tmp_path / "report.html"
    browser.view(1280, 900, scheme)
    show(browser, path, [make.realistic(samples=60)])
    assert browser.evaluate("document.querySelectorAll('#charts .chart svg').length") == 3
    assert browser.evaluate("document.querySelectorAll('#chart-throughput path').length") > 20

    column = "[...document.querySelectorAll('#measurements tbody tr')]"
    heads = "[...document.querySelectorAll('#measurements thead tr:last-child th')]"
    at = f"{heads}.findIndex(h => h.textContent.trim() === 'p50')"
    value = f"{column}.map(r => r.cells[{at}].dataset.v)"
    header = f"{heads}[{at}]"
    before = [float(v) for v in browser.evaluate(value)]
    browser.evaluate(f"{header}.querySelector('button').click()")
    after = [float(v) for v in browser.evaluate(value)]
    assert before != sorted(before)
    assert after == sorted(before)
    assert browser.evaluate(f"{header}.getAttribute('aria-sort')") == "ascending"
    browser.evaluate(f"{header}.querySelector('button').click()")
    assert [float(v) for v in browser.evaluate(value)] == sorted(before, reverse=True)

    marks = "document.querySelectorAll('#chart-throughput .mark-symbol path').length"
    count = browser.evaluate(marks)
    box = "document.querySelector('#filter')"
    settle(browser, f"{box}.value = 'openvino bf16'; {box}.dispatchEvent(new Event('input'))")
    assert browser.evaluate(f"{column}.filter(r => !r.hidden).length") == 12
    assert browser.evaluate("document.querySelectorAll('.ranks li:not([hidden])').length") < 8
    assert 0 < browser.evaluate(marks) < count
    assert browser.evaluate("location.search") == "?filter=openvino+bf16"
    settle(browser, "document.querySelector('[name=Accuracy]').click()")
    link = browser.evaluate("location.href") + f"#cell={make.cell().key}"
    browser.open("about:blank")
    browser.open(link)
    browser.evaluate("window.ready")
    assert browser.evaluate(f"{column}.filter(r => !r.hidden).length") == 12
    assert browser.evaluate("document.querySelector('[name=Accuracy]').checked")
    settle(browser, "document.querySelector('#series button').click()")  # the name filters instead
    assert browser.evaluate(f"{box}.value") == "torch-eager fp32"
    assert browser.evaluate("document.querySelector(':target').innerText") == make.cell().key

    shot = browser.screenshot()
    assert shot.startswith(b"\x89PNG")
    assert len(shot) > 20_000
    assert troubles(browser) == []
    assert {url.partition("?")[0] for url in requests(browser)} <= {path.as_uri(), "about:blank"}


def test_every_section_is_named_in_the_bar_and_only_series_of_the_picture_in_the_legend(
    browser, tmp_path
):
    browser.view(1280, 900)
    show(browser, tmp_path / "path.html", [make_pipelines.run()])
    bar = "document.querySelector('nav')"
    assert browser.evaluate(f"{bar}.scrollWidth <= {bar}.clientWidth")
    links = "[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))"
    assert browser.evaluate(f"{links}.every(id => document.getElementById(id))")
    assert count(browser, "#charts") == 0  # one batch size: the ranking says it
    sizes = make.grid(backends=("torch-eager", "openvino"), replicas=(1,), batches=(1, 4, 16))
    other = make.grid(backends=("onnxruntime",), replicas=(1,), batches=(1, 4, 16))
    cells = [*(replace(c, model="resnet50") for c in other), *sizes]
    show(browser, tmp_path / "sizes.html", [make.run(cells, samples=20)])
    chips = "[...document.querySelectorAll('#series button')].filter(b => b.checkVisibility())"
    name = "document.querySelector('#controls select').selectedOptions[0].textContent"
    first = (browser.evaluate(f"{chips}.length"), browser.evaluate(name))
    choose = "choice = document.querySelector('#controls select'); choice.value = 1; "
    settle(browser, choose + "choice.dispatchEvent(new Event('change'))")
    both = {first, (browser.evaluate(f"{chips}.length"), browser.evaluate(name))}
    assert {n for n, _ in both} <= {1, 2, 4}
    assert len({name for _, name in both}) == 2
    assert troubles(browser) == []


def test_without_scripts_the_page_has_no_dead_controls_and_no_empty_charts(
    browser, tmp_path, session
):
    browser.view(1280, 900)
    path = tmp_path / "still.html"
    path.write_text(report.render(list(session), "html"), encoding="utf-8")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(path.as_uri())
        browser.call("DOM.enable")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        for selector in ("#forest", "#filter", "#behind .chart", ".command .copy"):
            found = browser.call("DOM.querySelector", nodeId=root, selector=selector)
            with pytest.raises(RuntimeError, match="box model"):  # what is not shown has none
                browser.call("DOM.getBoxModel", nodeId=found["nodeId"])
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_strings_run_nothing(browser, tmp_path):
    path = tmp_path / "hostile.html"
    browser.view(1280, 900)
    show(browser, path, [hostile()])
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert not [e for e in browser.events if e["method"] == "Page.javascriptDialogOpening"]
    assert troubles(browser) == []
    assert requests(browser) == {path.as_uri()}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_search_draws_its_charts_and_fits(browser, tmp_path, width, scheme):
    file, path = make_tunes.tune(make_tunes.space((1, 8), (1, 2))), tmp_path / "tune.html"
    found = result.view(file)
    proof = make_tunes.evidence(found.best.cell, found.base.cell, pairs=8)
    browser.view(width, 900, scheme)
    show_page(browser, path, tune_page.render(file, proof))
    assert count(browser, "#tune-front svg") == 1
    assert count(browser, "#tune-front .mark-symbol path") >= 4
    assert count(browser, "#evidence svg .mark-symbol path") >= 8
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    settle(browser, "document.getElementById('runs').open = true")
    assert count(browser, "#measurements tbody tr") > 0
    assert troubles(browser) == []
    assert requests(browser) == {path.as_uri()}


def test_shortfalls_read_well_wide_and_narrow(browser, tmp_path):
    slow = [
        *scaled.records(scaled.cell(), [100]),
        *scaled.records(scaled.cell(4), [80, 80, 80, 48]),
    ]
    browser.view(1280, 900)
    show(browser, tmp_path / "shortfalls.html", [scaled.file(slow)])
    assert count(browser, "#shortfalls .item") == 1
    bars, size = "[...document.querySelectorAll('.bar')]", "getComputedStyle(b).backgroundSize"
    assert browser.evaluate(f"{bars}.map(b => {size})") == ["68% 100%", "32% 100%"]
    assert "replica 3 (cpu:3)" in browser.evaluate("document.querySelector('.causes').innerText")
    browser.view(390, 844)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert troubles(browser) == []


def test_phone_has_no_sideways_scroll_and_print_is_a_pdf(browser, tmp_path):
    browser.view(390, 844)
    show(browser, tmp_path / "phone.html", [make.realistic(samples=60)])
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.pdf().startswith(b"%PDF")
    assert troubles(browser) == []


@pytest.fixture(scope="module")
def session() -> tuple[RecordFile, RecordFile]:
    cells = make.grid(backends=("torch-eager", "openvino"), batches=(1, 4, 16), replicas=(1,))
    effect = {n: 0.1 + 0.01 * n for n in range(8)} | {8: -0.2}
    return make_pairs.arms(cells, effect=effect, sd=0.01, seed=3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_comparison_draws_its_effects_and_pairs_and_the_runs_when_opened(
    browser, tmp_path, session, scheme
):
    path = tmp_path / "ab.html"
    browser.view(1280, 900, scheme)
    show(browser, path, list(session))
    assert count(browser, "#forest svg") == 1
    assert count(browser, "#forest .mark-symbol path") == 12
    said = browser.evaluate("document.querySelector('#forest').textContent")
    assert "torch-eager fp32 b16 x1 throughput" in said
    assert count(browser, "#behind details") == 9
    assert count(browser, "#behind details[open] svg.marks") == 6
    settle(browser, "[...document.querySelectorAll('#behind details')].at(-1).open = true")
    assert count(browser, "#behind svg.marks") == 7

    assert count(browser, "#runs svg.marks") == 0
    settle(browser, "document.querySelector('nav a[href=\"#runs\"]').click()")
    assert browser.evaluate("document.getElementById('runs').open")
    assert count(browser, "#charts svg.marks") == 2  # one replica: nothing scales

    rows = "[...document.querySelectorAll('#cells tbody tr')].filter(r => r.checkVisibility())"
    assert browser.evaluate(f"{rows}.length") == 9
    box = "document.querySelector('#filter')"
    browser.evaluate(f"{box}.value = 'equivalent'; {box}.dispatchEvent(new Event('input'))")
    assert browser.evaluate(f"{rows}.length") == 3
    assert browser.evaluate("document.querySelector('#cells .shown').textContent") == "3 of 12 rows"

    first = "document.querySelector('#cells tbody').rows[0].cells[2].dataset.v"
    before = float(browser.evaluate(first))
    browser.evaluate("document.querySelectorAll('#cells th button')[2].click()")
    assert float(browser.evaluate(first)) < 0 < before
    assert troubles(browser) == []
    assert requests(browser) == {path.as_uri()}


def test_long_forest_is_drawn_in_full_when_asked_for(browser, tmp_path):
    cells = make.grid(backends=("torch-eager",), batches=tuple(range(1, 46)), replicas=(1,),
                      scenarios=("latency",))  # fmt: skip
    browser.view(1280, 900)
    show(browser, tmp_path / "long.html", list(make_pairs.arms(cells, pairs=4, samples=5)))
    assert count(browser, "#forest .mark-symbol path") == 40
    said = browser.evaluate("document.querySelector('#forest-all').textContent")
    assert said == "Draw all 45 cells (the first 40 are drawn)"
    settle(browser, "document.querySelector('#forest-all').click()")
    assert count(browser, "#forest .mark-symbol path") == 45
    assert not browser.evaluate("document.querySelector('#forest-all').checkVisibility()")
    assert troubles(browser) == []


def test_comparison_on_a_phone_and_with_hostile_labels(browser, tmp_path, session):
    browser.view(390, 844)
    show(browser, tmp_path / "phone.html", list(session))
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    effect = "document.querySelectorAll('#cells th')[2]"  # to be seen without scrolling sideways
    assert browser.evaluate(f"{effect}.textContent.trim()") == "effect"
    assert browser.evaluate(f"{effect}.getBoundingClientRect().right") <= 400
    labels = browser.evaluate("document.querySelector('#forest').textContent")
    assert "torch-eager fp32 b16 x1throughput" in labels.replace("\n", "")  # two lines
    assert "\u2026" not in labels  # none is cut off
    found = [replace(c, label=HOSTILE, reason=HOSTILE) for c in view(*session).rows]
    show_page(browser, tmp_path / "evil.html", page.comparison(replace(view(*session), rows=found)))
    assert count(browser, "img") == 0
    assert count(browser, "#forest .mark-symbol path") == 12
    assert browser.pdf().startswith(b"%PDF")
    assert troubles(browser) == []


def test_samples_are_drawn_when_their_cell_is_opened(browser, tmp_path):
    file = make.run([make.cell(device="cuda", replicas=2), make.cell()], samples=60)
    times = [0.1 * n for n in range(6)]
    series = {"t_s": times, "sm_mhz": [1980.0] * 5 + [1500.0], "temperature_c": [60] * 6}
    telemetry = {"gpus": [make.GPU | {"index": n, "series": series} for n in range(2)],
                 "turns_s": [0.0]}  # fmt: skip
    records = [
        replace(r, telemetry=telemetry) if r.cell.device == "cuda" else r for r in file.records
    ]
    browser.view(1280, 900)
    show(browser, tmp_path / "samples.html", [replace(file, records=records)])
    assert count(browser, "#samples svg.marks") == 0
    opened = "document.querySelectorAll('#samples .item')[{}].open = true"
    settle(browser, opened.format(0))
    assert count(browser, "#samples svg.marks") == 3
    said = browser.evaluate("document.querySelector('#samples .item').textContent")
    for text in ("one batch (ms)", "SM clock (MHz)", "temperature (\u00b0C)", "repeat 2"):
        assert text in said
    assert count(browser, "#samples .item:first-child .mark-line path") == 3 * 2 * 3
    names = "[...document.querySelectorAll('#samples .swatches li')].map(i => i.textContent)"
    assert browser.evaluate(names) == ["replica or GPU 0", "replica or GPU 1"]
    settle(browser, opened.format(1))
    assert count(browser, "#samples svg.marks") == 4
    assert len(browser.evaluate(names)) == 2  # one replica needs no legend
    assert troubles(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_stages_are_bars_and_thumbnails_are_pictures(browser, tmp_path, width, scheme):
    path = tmp_path / "path.html"
    browser.view(width, 900, scheme)
    show(browser, path, [make_pipelines.run()])
    assert count(browser, ".stages li") == 2 * 9
    assert count(browser, ".stages .track i") == 2 * 9 * 7
    assert count(browser, ".stages .track b") == 9  # overlapped
    first = "document.querySelector('.stages')"
    assert "onnxruntime, turbo" in browser.evaluate(f"{first}.textContent")
    longest = f"Math.max(...[...{first}.querySelectorAll('.track')].map(t => "
    longest += "t.lastElementChild.getBoundingClientRect().right - t.getBoundingClientRect().left))"
    shown = browser.evaluate(f"{first}.querySelector('.track').getBoundingClientRect().width")
    assert browser.evaluate(longest) == pytest.approx(shown, rel=0.02)
    assert count(browser, "#pipeline .swatches li") == 7
    sizes = "[...document.querySelectorAll('#differing img')].map(i => i.naturalWidth)"
    settle(browser, "document.querySelectorAll('#differing details').forEach(d => {d.open = true})")
    assert browser.evaluate(sizes) == [48] * 9
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.pdf().startswith(b"%PDF")
    assert troubles(browser) == []
    assert requests(browser) - {u for u in requests(browser) if u[:5] == "data:"} == {path.as_uri()}


def test_hostile_thumbnails_and_names_of_pictures_do_nothing(browser, tmp_path):
    evil = [make_pipelines.disagreements(make_pipelines.cells()[0])[0]] * 2
    evil = [replace(evil[0], name=HOSTILE, answer=HOSTILE), replace(evil[1], thumbnail=HOSTILE)]
    file = make_pipelines.run(make_pipelines.cells(decoders=("pil",)), repeats=1)
    stranger = {"decoder": HOSTILE}
    records = [
        replace(
            r, cell=replace(r.cell, **stranger), parity=replace(r.parity, disagreements=evil),
            facts={"pipeline": {HOSTILE: HOSTILE, "loader": {"kind": HOSTILE, "skipped": HOSTILE}}},
        )
        for r in file.records
    ]  # fmt: skip
    header = replace(file.header, planned=[r.cell for r in records])
    browser.view(1280, 900)
    show(browser, tmp_path / "evil.html", [replace(file, header=header, records=records)])
    settle(browser, "document.querySelectorAll('#differing details').forEach(d => {d.open = true})")
    pictures = browser.evaluate("[...document.images].map(i => i.alt)")
    assert set(pictures) == {f"Thumbnail of {HOSTILE}".replace("\u2028", "\\u2028")}
    browser.evaluate(
        "document.querySelectorAll('#pipeline svg path').forEach(e => "
        "e.dispatchEvent(new MouseEvent('mousemove', {bubbles: true})))"
    )
    assert not [e for e in browser.events if e["method"] == "Page.javascriptDialogOpening"]
    assert troubles(browser) == []


def test_the_one_page_is_one_sheet_and_loads_nothing(browser, tmp_path):
    path = tmp_path / "sheet.html"
    browser.view(1400, 900)
    cells = make.grid(replicas=(1,), batches=(1, 8), scenarios=("latency",))
    path.write_text(html.render([make.run(cells, samples=20)], one_page=True), encoding="utf-8")
    browser.events.clear()
    browser.open(path.as_uri())
    assert browser.evaluate("document.documentElement.scrollHeight") <= 900
    assert browser.pdf().count(b"/Type /Page\n") == 1
    assert troubles(browser) == []
    assert requests(browser) == {path.as_uri()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "pipeline", "machines", "skipped"])
def test_five_answers_are_on_the_first_screen_and_nothing_is_cut_off(browser, tmp_path, kind):
    cells = make.grid(replicas=(1,), batches=(1, 8))
    files = {
        "run": [make.realistic(samples=60)],
        "pipeline": [make_pipelines.run()],
        "machines": [make.run(cells, samples=40),
                     make.run(cells, samples=40, run_id="other", fingerprint="beef",
                              environment={"cpu": {"model": "Other CPU 7", "cores": 64}})],
        "skipped": [make.run([], run_id="none", planned=cells)],
    }[kind]  # fmt: skip
    path = tmp_path / "first.html"
    answers = ("#answer .headline", "#right", "#trust", "#next .command", "#next .copy")
    for width, height in ((1400, 900), (390, 844)):
        browser.view(width, height)
        show(browser, path, files)
        for name in answers:
            box = f"document.querySelector({name!r}).getBoundingClientRect()"
            sides = browser.evaluate(f"(b => [b.left, b.top, b.right, b.bottom])({box})")
            assert min(sides) >= 0, name
            assert sides[2] <= width, name
            assert sides[3] <= height, name
            assert sides[3] - sides[1] >= 14, name  # and is to be seen
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.view(1280, 900)
    show(browser, path, files)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.evaluate(f"{wide}.map(e => e.getAttribute('aria-label'))") == []
    assert troubles(browser) == []
