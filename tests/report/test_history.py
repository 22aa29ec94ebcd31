import json
import re

import pytest
from msgspec.structs import replace

from gpubench.analysis.history import trend as analysis
from gpubench.analysis.history.trend import States, Trend
from gpubench.errors import InputError
from gpubench.records.record import Record, RecordFile
from gpubench.report import history
from gpubench.report.charts import history as charts_history
from gpubench.suite.types import Rule
from tests.report import make
from tests.report.browser import Browser, executable
from tests.report.make_pairs import sessions
from tests.report.test_report import HOSTILE, Tags

CELLS = [make.cell(batch_size=n) for n in (1, 2)] + [make.cell(scenario="throughput")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files(cells=CELLS, changed=1, after: int = 8, run_id: str = "{}") -> list[RecordFile]:
    """12 runs, then some in which the first cells are 8 % slower."""
    made = []
    before = sessions(cells, 12, 0.004)
    slow, same = (sessions(cells, after, 0.004, seed=1, effect=e) for e in (0.08, 0.0))
    later = [
        replace(a, records=[x if x.cell in cells[:changed] else y
                            for x, y in zip(a.records, b.records, strict=True)])
        for a, b in zip(slow, same, strict=True)
    ]  # fmt: skip
    for n, f in enumerate([*before, *later]):
        where = f.header.environment | {"directory": {"commit": COMMIT if n == 12 else None}}
        head = replace(f.header, run_id=run_id.format(f"run-{n}"), environment=where,
                       started=f"2026-01-{n + 1:02}T06:00:00Z")  # fmt: skip
        made.append(replace(f, header=head))
    return made


@pytest.fixture(scope="module")
def trends() -> list[Trend]:
    made = files()
    made[2] = replace(made[2], records=[replace(r, flags=["DRIFT"]) for r in made[2].records])
    dead = Record(cell=CELLS[2], repeat=0, status="failed", kind="crash", reason="signal 11")
    made[3] = replace(made[3], records=[r for r in made[3].records if r.cell != CELLS[2]] + [dead])
    return analysis.trends(made)


@pytest.mark.parametrize("form", history.FORMATS)
def test_every_format_says_what_where_and_since_when(trends, form):
    made = history.render(trends, form, notes=["one file is damaged"])
    assert made == history.render(trends, form, notes=["one file is damaged"])
    assert "1 change in 1 of 3 cells over 20 runs." in made.replace("\\", "")
    for word in ("2026-01-13", "run-12", COMMIT[:10], "one file is damaged", "failed: crash"):
        assert word in made.replace("\\", "")
    assert CELLS[0].label in made


def test_a_row_per_run_and_cell_worst_first(trends):
    changes, runs = history.tables(trends, Rule())
    assert [row[:2] for row in changes.rows] == [["slower", CELLS[0].label]]
    effect = changes.rows[0][2]
    assert re.fullmatch(r"\+[78]\.\d % \[\+[78]\.\d, \+8\.\d\]", effect)
    assert len(runs.rows) == 3 * 20
    assert [row[0] for row in runs.rows[:20]] == [CELLS[0].label] * 20
    marked = [row for row in runs.rows if row[6]]
    assert [row[2] for row in marked] == ["run-12"]
    assert marked[0][5].startswith("+")
    lost = next(row for row in runs.rows if row[7] == ["failed: crash"])
    assert (lost[0], lost[4]) == (CELLS[2].label, "failed")
    assert sum(row[7] == ["DRIFT"] for row in runs.rows) == 3


def test_throughput_that_falls_is_an_effect_above_zero():
    found = analysis.trends(files(CELLS[::-1]))
    assert (found[0].metric, found[0].changes[0].slower) == ("images/s", True)
    changes, runs = history.tables(found, Rule())
    assert changes.rows[0][2].startswith("+")
    assert all(row[5].startswith("+") for row in runs.rows[12:20])


def test_the_terminal_tells_a_cell_at_one_glance(monkeypatch):
    found = analysis.trends(files(changed=1))
    made = history.render(found, "text")
    rows = made.partition("Cells")[2].splitlines()
    changed, *others = [line for line in rows if line.startswith(" torch-eager")]
    before, after = history.course(found[0]).split("|")
    assert (len(before), len(after)) == (12, 8)
    assert max(before) < min(after)  # bars sort as they look
    assert f"{before}|{after}" in changed
    assert all("|" not in line and "█" not in line for line in others)  # noise is no change
    assert found[0].points[0].started[:10] not in made  # every run is for the other formats
    for form in ("md", "html", "json"):
        assert history.render(found, form).replace("\\", "").count("run-2") >= 3
    monkeypatch.setattr(history, "LATEST", 3)
    assert len(history.course(found[0])) == 3


def test_one_run_is_not_several():
    assert "3 cells over 1 run." in history.headline(analysis.trends(files()[:1]), Rule())[0]


def test_cells_that_move_are_counted_as_cells():
    two = States(fast=1e6, slow=2e6, switches=4, at_slow=[])
    moving = [replace(analysis.trends(files()[:1])[0], label=f"cell {n}", states=two)
              for n in range(history.MOST + 1)]  # fmt: skip
    said = history.headline(moving, Rule())
    assert "1 more cell with a drift, or with two states." in said


def test_without_a_change_it_says_so():
    made = history.render(analysis.trends(files(changed=0)), "text")
    assert made.startswith("No change is shown in 3 cells over 20 runs.\nLasting changes of 2")
    assert "Changes" not in made
    few = history.render(analysis.trends(files()[:5]), "text", rule=Rule(delta=0.05))
    assert "Too few runs to look for changes in 3 of 3 cells: 6 are needed" in " ".join(few.split())


@pytest.mark.parametrize(("after", "told"), [(1, "run"), (2, "2 runs"), (0, "")])
def test_the_latest_runs_are_told_before_they_can_be_a_change(after, told):
    lines = history.headline(analysis.trends(files(after=after)), Rule())
    assert lines[0].startswith("No change is shown")
    said = [line for line in lines if line.startswith("The latest ")]
    assert len(said) == bool(told)
    if told:
        name = CELLS[0].label
        assert said[0].startswith(f"The latest {told} of {name}: slower by ")


def test_a_repair_is_not_behind():
    """Slower, then as before: changes, but no cell is behind its best level."""
    made = files(after=12)
    tail = [replace(f, header=replace(f.header, run_id=f"late-{n}",
                                      started=f"2026-02-{n + 1:02}T06:00:00Z"))
            for n, f in enumerate(made[:12])]  # fmt: skip
    lines = history.headline(analysis.trends([*made, *tail]), Rule())
    assert lines[0].startswith("2 changes")
    assert not any("behind" in line for line in lines)


def test_cells_that_look_alike_are_told_apart():
    a, b = make.cell(), make.cell(model="resnet50")
    both = analysis.trends(files([a, b], changed=0))
    assert {n.partition(" | ")[2] for n in history.names(both)} == {
        "resnet18 (probe), digits, cpu", "resnet50 (probe), digits, cpu"
    }  # fmt: skip
    other = [replace(f, header=replace(f.header, fingerprint="beef", run_id=f"x{n}"))
             for n, f in enumerate(files([a], changed=0))]  # fmt: skip
    two = analysis.trends([*files([a], changed=0), *other])
    assert {n.rpartition(" | ")[2] for n in history.names(two)} == {"machine f00d", "machine beef"}
    cores = analysis.trends(files([a, make.cell(cores=2)], changed=0))
    assert len(set(history.names(cores))) == 2


def test_bad_input_is_an_input_error(trends):
    with pytest.raises(InputError, match="'pdf'; choose one of text, html, md, json"):
        history.render(trends, "pdf")
    with pytest.raises(InputError, match="no run has measured"):
        history.render([], "text")


def test_json_reads_back(trends):
    made = json.loads(history.render(trends, "json", rule=Rule(delta=0.03), notes=["x"]))
    assert made["rule"] == {"delta": 0.03, "alpha": 0.01}
    assert made["notes"] == ["x"]
    worst = made["trends"][0]
    assert worst["label"] == CELLS[0].label
    assert worst["changes"][0]["at"] == 12
    assert [level["first"] for level in worst["levels"]] == [0, 12]
    assert worst["points"][12]["commit"] == COMMIT


def hostile() -> list[Trend]:
    return analysis.trends(files([make.cell(), make.cell(backend=HOSTILE)], run_id=HOSTILE + "{}"))


def test_html_is_one_file_and_escapes_every_untrusted_string():
    made = history.render(hostile(), "html", notes=[HOSTILE])
    assert len(made.encode()) < 3_000_000
    tags = Tags(made).seen
    assert not [t for t, a in tags if t == "img" or "onerror" in a or "src" in a]
    assert [a.get("type") for t, a in tags if t == "script"] == ["application/json", None, None]
    assert "{{7*7}}" in made
    assert "<noscript><style>.chart, " in made  # no dead controls


def test_markdown_escapes_and_the_terminal_does_not_interpret():
    made = history.render(hostile(), "md", notes=[HOSTILE])
    assert "<script" not in made
    assert "[x](y)" not in made
    cell = make.cell(backend="[bold red]x[/]")
    assert "[bold red]x[/]" in history.render(analysis.trends(files([cell])), "text")


def test_charts_are_valid_vega_lite_and_hold_every_value(trends):
    import altair
    import vl_convert

    for trend in trends:
        spec = charts_history.chart(trend)
        altair.Chart.from_dict(spec, validate=True)
        assert "<svg" in vl_convert.vegalite_to_svg(spec | {"width": 400})
        values = [p for p in trend.points if p.value.value]
        assert [p["x"] for p in spec["datasets"]["points"]] == [
            trend.points.index(p) + 1 for p in values
        ]
    svg = vl_convert.vegalite_to_svg(charts_history.chart(trends[0]) | {"width": 700})
    for word in ("2026-01-01", "2026-01-13", COMMIT[:7]):  # of the axis, the change among them
        assert f">{word}<" in svg
    drawn = charts_history.chart(trends[0])["datasets"]
    assert drawn["changes"] == [{"x": 12.5, "side": "slower"}]
    assert [(x["x"], x["x2"]) for x in drawn["levels"]] == [(0.6, 12.4), (12.6, 20.4)]
    assert [p["x"] for p in drawn["points"] if p["state"] == "flagged"] == [3]


@pytest.mark.skipif(
    executable() is None, reason="no Chromium on the PATH: apt-get install chromium"
)
def test_the_page_draws_and_stays_at_home(tmp_path):
    many = [make.cell(batch_size=n) for n in range(1, 21)]
    path = tmp_path / "history.html"
    path.write_text(history.render(analysis.trends(files(many, changed=2)), "html"))
    program = executable()
    assert program
    profile = tmp_path / "profile"
    profile.mkdir()
    with Browser(program, profile) as browser:
        browser.view(1280, 900)
        browser.open(path.as_uri())
        assert browser.evaluate("window.ready") == 12
        drawn = "document.querySelectorAll('.chart svg').length"
        assert browser.evaluate(drawn) == 12
        browser.evaluate("document.querySelector('details.item').open = true")
        browser.evaluate("new Promise(done => setTimeout(done, 500))")
        assert browser.evaluate(drawn) == 13
        browser.view(390, 844)
        browser.open(path.as_uri())
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        bad = [
            e
            for e in browser.events
            if e["method"] == "Runtime.exceptionThrown"
            or (e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error")
        ]
        assert bad == []
        assert {e["params"]["request"]["url"] for e in browser.events
                if e["method"] == "Network.requestWillBeSent"} == {path.as_uri()}  # fmt: skip
