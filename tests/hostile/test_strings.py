"""One record file in which every text is hostile, through every format and command."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from gpubench import escape
from gpubench.analysis.tables import pipeline
from gpubench.cli import terminal as cli_terminal
from gpubench.records.reader import read
from gpubench.records.record import Record
from gpubench.report import exports
from gpubench.report.html import templating
from tests.hostile import files
from tests.hostile.commands import acting, commanding, gpubench
from tests.report import browser as browsing
from tests.report import make

EVIL = (
    "=1+1|`x`</script><script>window.owned=1</script><img src=x onerror=window.owned=1>'\""
    "\x1b[2J\x1b]0;owned\x07\x9b31m\r\n::error title=x::owned\n##[group]x\t\u202egnirts\u2066"
    "\u2028{{7*7}}[x](javascript:window.owned=1)[/b]%0A::add-mask::x @all http://evil.example "
    "www.evil.example #1 \x00\x85\ufeff\U000e0041"
)
FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", " =1", "\n=1", "\uff1d1"]
CHOSEN = {"status", "scenario", "device", "precision", "boundary", "dispatch", "arm",
          "loader", "thumbnail", "source", "input", "sharing", "cache",
          "max_latency"}  # fmt: skip
"""Fields whose words msgspec checks."""


def poisoned(value: Any, words: Callable[[str], str], at: files.Path_ = ()) -> Any:
    """``value`` with every text, and every name of a free table, replaced by ``words(of it)``."""
    if isinstance(value, dict):
        free = {"environment", "facts", "options", "prepare_ns", "stages_ns", "nodes"} & {*at}
        known = {"gpubench", "os", "python", "memory", "directory", "cpu", "gpus", "libraries",
                 "variables", "version", "kernel", "total_bytes", "images_skipped",
                 "labelling"}  # fmt: skip
        known |= {"path", "loader", "loader_cores", "session_cores", "skipped", "kind", "session",
                  *pipeline.NAMES}  # fmt: skip
        return {
            (words(k) if free and k not in known else k): poisoned(v, words, (*at, k))
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [poisoned(v, words, at) for v in value]
    if isinstance(value, str) and at and at[-1] not in CHOSEN:
        return words(value)
    return value


def write(path: Path, header: Any, records: list[Any], words: Callable[[str], str]) -> Path:
    header = poisoned(header, words)
    header["suite"]["axes"]["device"] = "auto"
    return files.write(path, header, [poisoned(r, words) for r in records])


def keep_kind(words: Callable[[str], str]) -> Callable[[str], str]:
    """Backends, models and so on stay apart: joined by what they were."""
    return lambda old: f"{words(old)}{old}" if old else words(old)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and (beside it) the arms of an A/B, both poisoned."""
    place = tmp_path_factory.mktemp("strings")
    header, records = files.run()
    write(place / "run" / "records.jsonl", header, records, keep_kind(lambda _: EVIL))
    for (h, rs), arm in zip(files.arms(), ("baseline", "candidate"), strict=True):
        evil = keep_kind(lambda _: EVIL)
        made = write(place / "ab" / arm / "records.jsonl", h, rs, evil)
        assert EVIL not in made.read_text()  # as JSON escapes
    return place / "run"


def ok(*words: object) -> str:
    code, out, err = gpubench(*words)
    assert code in (0, 1, 3, 4), err
    for text in (out, err):
        assert not acting(text), acting(text)
    return out


def test_every_text_is_poisoned(run: Path) -> None:
    """The test's own tool: what is left clean is a word that must be one of a few."""
    file = read(run)
    seen: list[tuple[files.Path_, str]] = []
    for value in (files.plain(file.header), *map(files.plain, file.records)):
        for at in files.places(value):
            inner: Any = value
            for key in at:
                inner = inner[key]
            if isinstance(inner, str):
                seen.append((at, inner))
    clean = {
        at[-1] for at, text in seen if not text.startswith("=1+1|") and not isinstance(at[-1], int)
    }
    assert clean <= CHOSEN | {""}, clean
    assert len(seen) > 100


# ------------------------------------------------------------------------------ terminals


def test_terminal_output_holds_nothing_that_acts(run: Path, tmp_path: Path) -> None:
    for words in (
        ["report", run],
        ["report", run.parent / "ab"],
        ["compare", run, run, "--cache-dir", tmp_path / "c"],
        ["compare", run.parent / "ab", "--all", "--cache-dir", tmp_path / "c"],
        ["history", run],
    ):
        out = ok(*words)
        assert len(out) > 500
        assert not commanding(out), commanding(out)
        assert r"\x1b[2J" in out


def test_no_line_begins_with_a_command_wherever_it_is_broken(tmp_path: Path) -> None:
    """A word too long for its column is broken anywhere, and what follows begins a line."""
    header, records = files.run()
    for n in range(400, 550):
        cell = records[1]["cell"] | {"options": {"n": n}}
        reason = f"{'x' * n}::error::owned"
        records.append(records[1] | {"cell": cell, "reason": reason, "remedy": reason[::-1]})
    path = files.write(tmp_path / "records.jsonl", header, records)
    for words in (["report", path], ["compare", path, path, "--cache-dir", tmp_path / "c"]):
        out = ok(*words)
        assert not commanding(out), commanding(out)[:3]
        assert "xxxx" in out


def test_a_terminal_gets_colours_and_nothing_else() -> None:
    """What Rich itself writes are the only escape sequences."""
    from rich.text import Text

    screen = cli_terminal.console()
    screen._force_terminal, screen.file = True, io.StringIO()
    screen.print(Text(EVIL, style="bold"), EVIL, markup=False)
    rest = re.sub(r"\x1b\[[0-9;]*m", "", screen.file.getvalue())
    assert not acting(rest), acting(rest)
    assert r"\x1b[2J" in rest


def test_colours_of_a_library_are_left_out_and_make_nothing_else_act() -> None:
    assert escape.visible("\x1b[1;31m[E:onnxruntime]\x1b[m broke") == "[E:onnxruntime] broke"
    assert escape.visible("\x1b\x1b[m[2J") == r"\x1b[2J"


def test_a_run_that_is_watched_says_nothing_that_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress, on a terminal and in a log: cells, steps, reasons."""
    from gpubench.run import progress

    cell = make.cell(backend=EVIL)
    dead = Record(cell=cell, repeat=0, status="failed", kind=EVIL, reason=EVIL, remedy=EVIL)
    for terminal in (False, True):
        screen = cli_terminal.console()
        screen.file = io.StringIO()
        screen._force_terminal = terminal
        watcher = (progress.Live if terminal else progress.Lines)(screen)
        with watcher:
            watcher.begin(0)
            watcher.task(cell, EVIL, 3.0)
            watcher.begin(2)
            watcher.task(cell, EVIL, 3.0)
            watcher.recorded(dead)
        written = screen.file.getvalue()
        rest = re.sub(r"\x1b\[[0-9;?]*[mKAlh]|\r", "", written)
        assert not acting(rest), acting(rest)
        assert r"\x1b[2J" in rest
        if not terminal:
            assert not commanding(written), commanding(written)


def test_an_error_says_nothing_that_acts(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[2J\n::error::b"
    folder.mkdir()
    for words in (["report", folder], ["history", folder], ["export", folder, "-f", "csv"],
                  ["compare", folder, folder], ["plan", folder / "x.toml"]):  # fmt: skip
        code, _, err = gpubench(*words)
        assert code == 2
        assert not acting(err), acting(err)
        assert not commanding(err), commanding(err)


def test_doctor_says_nothing_that_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpubench.run import doctor

    found = doctor.Report(
        [doctor.Section("x", [doctor.Check(EVIL, "warn", EVIL, EVIL)])], {EVIL: EVIL}
    )
    screen = cli_terminal.console()
    screen.file = io.StringIO()
    screen.print(found)
    for text in (screen.file.getvalue(), escape.document(found)):
        assert not acting(text), acting(text)
    assert json.loads(escape.document(found))["environment"] == {EVIL: EVIL}


# ------------------------------------------------------------------------------ files


class Tags(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("pages")
    made = {
        "run": ["report", run],
        "ab": ["report", run.parent / "ab"],
        "history": ["history", run],
    }
    for name, words in made.items():
        ok(*words, "-f", "html", "-o", out / f"{name}.html")
    ok("compare", run.parent / "ab", "-o", out / "compare.html")
    return {path.stem: path for path in out.glob("*.html")}


@pytest.mark.parametrize(
    "text", [EVIL, "\\", '"\\u202e"', "\\\u202e", "\t\n\b/", "\x7f\u00ad", "é €"]
)
def test_what_a_script_draws_is_what_a_reader_may_see(text: str) -> None:
    assert json.loads(escape.drawn({text: [text, 1]})) == {
        escape.visible(text): [escape.visible(text), 1]
    }


def test_pages_hold_no_tag_of_a_stranger(pages: dict[str, Path]) -> None:
    for path in pages.values():
        body = path.read_text()
        tags = Tags(body.replace(templating.vega()[0], "")).seen
        assert not [
            t for t, a in tags if t in ("img", "iframe") or any(k.startswith("on") for k in a)
        ]
        scripts = [a.get("type") for t, a in tags if t == "script"]
        assert scripts == ["application/json", None, None], path
        assert not [a for _, a in tags if str(a.get("href", "#"))[:1] not in "#d"]
        own = body.replace(templating.vega()[0], "")
        assert not acting(own), acting(own)
        data = re.search(
            r'<script type="application/json" id="data">(.*?)</script>', own, re.DOTALL
        )
        assert data
        drawn = strings(json.loads(data[1])).replace("\0", "\n")
        assert EVIL[:10] in drawn
        assert not acting(drawn), acting(drawn)
        assert r"\u202egnirts" in drawn


@pytest.mark.skipif(not browsing.executable(), reason="no Chromium on the PATH")
def test_pages_run_no_script_of_a_stranger(pages: dict[str, Path], tmp_path: Path) -> None:
    with browsing.Browser(str(browsing.executable()), tmp_path) as browser:
        for path in pages.values():
            browser.open(path.as_uri())
            browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
            assert browser.evaluate("window.ready") >= 0
            browser.evaluate("new Promise(done => setTimeout(done, 300))")
            for mark in ("path", "circle", ".mark-symbol path"):
                browser.evaluate(
                    f"document.querySelectorAll('svg {mark}').forEach(e => "
                    "e.dispatchEvent(new MouseEvent('mousemove', {bubbles: true})))"
                )
            assert browser.evaluate("window.owned") is None
            assert browser.evaluate("document.querySelectorAll('img, iframe').length") == 0
            asked = {e["params"]["request"]["url"] for e in browser.events
                     if e["method"] == "Network.requestWillBeSent"}  # fmt: skip
            assert asked <= {p.as_uri() for p in pages.values()}
        assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def test_markdown_keeps_its_tables_and_makes_no_link(run: Path) -> None:
    for words in (["report", run], ["report", run.parent / "ab"], ["history", run]):
        text = ok(*words, "-f", "md")
        outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"<(script|img)", outside)
        assert not re.search(r"(?<!\\)\[x\]|(?<!\\)@all|https?://|www\.|(?<!\\)`", outside)
        widths: set[int] = set()
        for line in outside.splitlines():
            if line.startswith("|--"):
                widths = {line.count("|")}
            elif line.startswith("| ") and widths:
                assert {len(re.findall(r"(?<!\\)\|", line))} == widths
            else:
                widths = set()


def test_fences_of_markdown_cannot_be_closed(tmp_path: Path) -> None:
    header, records = files.run()
    path = write(tmp_path / "records.jsonl", header, records, lambda _: "````\n`````\n# x")
    text = ok("report", path, "-f", "md")
    assert not re.search(
        r"^# x", re.sub(r"^(`{3,})\w+\n.*?^\1$", "", text, flags=re.S | re.M), re.M
    )


def formulas(cells: list[str]) -> list[str]:
    """What a spreadsheet would compute, numbers apart."""
    found = [
        c for c in cells if c.lstrip(" \t\r\n")[:1] in "=+-@\uff1d\uff0b\uff0d\uff20" and c.strip()
    ]
    return [c for c in found if not re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", c)]


@pytest.mark.parametrize("formula", [EVIL, *FORMULAS])
def test_no_cell_of_csv_is_a_formula(formula: str, tmp_path: Path) -> None:
    header, records = files.run()
    path = write(tmp_path / "records.jsonl", header, records, keep_kind(lambda _: formula))
    for command in ("report", "export"):
        rows = list(csv.DictReader(io.StringIO(ok(command, path, "-f", "csv"))))
        assert rows
        assert not formulas([c for row in rows for c in row.values()])
        assert not formulas(list(rows[0]))
        numbers = [row["value"] if command == "report" else row["samples"] for row in rows]
        assert any(float(n) > 0 for n in numbers if n)  # numbers stay numbers


@pytest.mark.parametrize(
    "words",
    [
        ["report", "-f", "json"],
        ["history", "-f", "json"],
        ["export", "-f", "bencher"],
        ["export", "-f", "pytest-benchmark"],
    ],
)
def test_json_reads_back_what_was_written(words: list[str], run: Path) -> None:
    assert EVIL in strings(json.loads(ok(words[0], run, *words[1:])))


def strings(value: Any) -> str:
    """Every text in it, keys too, one after another."""
    if isinstance(value, dict):
        return "\0".join(strings(x) for pair in value.items() for x in pair)
    if isinstance(value, list):
        return "\0".join(map(strings, value))
    return str(value)


def test_two_files_for_github_action_benchmark(run: Path, tmp_path: Path) -> None:
    ok("export", run, "-f", "github-action-benchmark", "-o", tmp_path)
    for path in tmp_path.glob("*.json"):
        assert EVIL in strings(json.loads(path.read_text()))
        assert not acting(path.read_text()), acting(path.read_text())


def test_junit_is_xml(run: Path) -> None:
    for place in (run, run.parent / "ab"):
        text = ok("export", place, "-f", "junit")
        root = ET.fromstring(text)  # noqa: S314 (our own)
        cases = root.findall(".//testcase")
        assert cases
        assert all(c.attrib["name"] for c in cases)
        assert not root.findall(".//script")


def test_parquet_holds_the_words_as_they_are(run: Path, tmp_path: Path) -> None:
    import pandas as pd

    ok("export", run, "-f", "parquet", "-o", tmp_path / "x.parquet")
    assert pd.read_parquet(tmp_path / "x.parquet")["backend"].str.startswith("=1+1|").all()


def test_openmetrics_has_one_sample_a_line(run: Path, tmp_path: Path) -> None:
    ok("export", run, "-f", "openmetrics", "-o", tmp_path / "x.txt")
    *lines, end = (tmp_path / "x.txt").read_text().splitlines()
    samples = [line for line in lines if not line.startswith(("# TYPE ", "# UNIT ", "# HELP "))]
    assert samples
    assert end == "# EOF"
    for line in samples:
        assert re.fullmatch(r'gpubench_\w+\{cell="(?:[^"\\]|\\.)*"\} [\d.e-]+', line), line
        assert not acting(line), acting(line)


def test_github_is_told_in_single_lines_without_commands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpubench.report import github_actions

    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    out = ok("compare", run.parent / "ab", "--github", "--cache-dir", tmp_path / "c")
    file = read(run)
    lines = [x for x in out.splitlines() if x.lstrip().startswith("::")]
    lines += github_actions.run_commands([file])
    assert lines
    for line in lines:
        assert re.fullmatch(r"::(error|warning) title=[^:,\n]*::[^\n]*", line), line
        assert not acting(line), acting(line)
    for text in (summary.read_text(), github_actions.run_summary([file])):
        assert not acting(text), acting(text)
        assert not re.search(r"<(script|img)|(?<!\\)@all|https?://", text)


def test_exports_are_all_here() -> None:
    """A new format needs a test above."""
    assert set(exports.FORMATS) == {
        "pytest-benchmark", "github-action-benchmark", "bencher", "openmetrics", "junit", "csv",
        "parquet",
    }  # fmt: skip
