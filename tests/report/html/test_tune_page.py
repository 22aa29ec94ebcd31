"""The page of a search: what it says, what it draws, and that text from outside stays text."""

import json
import re

import pytest
from msgspec.structs import replace

from gpubench import report
from gpubench.analysis.tune import result
from gpubench.cli.main import cli
from gpubench.errors import InputError
from gpubench.records.record import RECORDS, encode
from gpubench.report.charts import tune
from gpubench.report.html import tune_page
from gpubench.suite.goal import Goal, Limit, Metric
from tests.report import make, make_tunes
from tests.report.test_report import HOSTILE, Tags

LIMITED = Goal(Metric("throughput"), (Limit(Metric("latency"), 9e6), Limit(Metric("memory"), 4e9)))


@pytest.fixture(scope="module")
def file():
    return make_tunes.tune(goal=LIMITED, explored=66)


@pytest.fixture(scope="module")
def proof(file):
    found = result.view(file)
    return make_tunes.evidence(found.best.cell, found.base.cell)


@pytest.fixture(scope="module")
def made(file, proof):
    return tune_page.render(file, proof)


def data(page: str):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_the_same_bytes_every_time_and_small(file, proof, made):
    assert made == report.render([file], "html", proof)
    assert len(made.encode()) < 3_000_000
    for tag, attributes in Tags(made).seen:
        assert "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"


def test_the_recommendation_comes_first_with_its_commands(made):
    first = made.index("Recommended: onnxruntime int8, batch 1, 4 replicas")
    assert first < made.index("gpubench run reports/tune-1/best.toml")
    assert first < made.index("gpubench deploy reports/tune-1/best.toml -o model")
    for words in ("times the images/s of today&#39;s default", "of the roofline, bound by",
                  "Evidence", "Throughput against latency",
                  "Pareto front", "Not chosen", "Search again", "Environment"):  # fmt: skip
        assert first < made.index(words, first), words
    assert "gpubench tune resnet18" in made


def test_charts_have_text_for_who_cannot_see_them(made):
    charts = [a for t, a in Tags(made).seen if a.get("role") == "img"]
    assert len(charts) >= 3
    assert all(len(a["aria-label"]) > 20 for a in charts)


def test_points_are_those_of_the_view(file, made):
    found, [chart] = result.view(file), data(made)["tune"]["charts"]
    front = chart["points"]
    timed = [s for s in found.standings if found.summaries[s.cell.key].timed]
    assert len(front) == len(timed)
    assert sum(p["front"] for p in front) == len(result.front(found))
    assert [p["state"] for p in front].count("best") == 1


@pytest.mark.parametrize("objective", [Metric("throughput"), Metric("latency", 0.9)])
def test_chart_specifications_are_valid_vega_lite(objective):
    import altair
    import vl_convert

    goal = Goal(objective, (*LIMITED.limits, Limit(Metric("throughput"), 5.0)))
    file = make_tunes.tune(make_tunes.space((1, 8), (1, 2)), goal)
    [chart] = tune.build(result.view(file))["charts"]
    spec = chart["spec"] | {"data": {"name": "points", "values": chart["points"]}, "width": 400}
    altair.Chart.from_dict(spec, validate=True)
    assert "<svg" in vl_convert.vegalite_to_svg(spec)


@pytest.mark.parametrize(
    "changes",
    [{"explored": 0, "ended": False}, {"explored": 0}, {"explored": 3, "rounds": 0},
     {"goal": Goal(Metric("energy"))},
     {"goal": Goal(Metric("throughput"), (Limit(Metric("latency"), 1e3),))}],
)  # fmt: skip
def test_searches_that_found_little_have_a_page(changes):
    made = tune_page.render(make_tunes.tune(make_tunes.space((1, 8), (1, 2)), **changes))
    assert any(word in made for word in ("No recommendation", "Nothing keeps", "Undecided: "))
    assert 'style="--v: var(--good)"' not in made
    assert "best.toml" not in made
    assert "Not chosen" in made


def test_another_run_is_an_input_error():
    with pytest.raises(InputError, match="not a search"):
        tune_page.render(make.run([make.cell()]))


def test_hostile_text_stays_text():
    cells = [replace(c, model=HOSTILE, images=HOSTILE,
                     options={HOSTILE: HOSTILE} if c.options else {})
             for c in make_tunes.space((1, 8), (1,))]  # fmt: skip
    file = make_tunes.tune(cells, path=f"{HOSTILE}/records.jsonl")
    suite = replace(file.header.suite, name=HOSTILE, description=HOSTILE)
    bad = [replace(r, reason=HOSTILE, status="failed") if n % 5 == 4 else r
           for n, r in enumerate(file.records)]  # fmt: skip
    file = type(file)(file.path, replace(file.header, suite=suite), bad, [HOSTILE])
    made = tune_page.render(file)
    tags = Tags(made).seen
    assert not [t for t, a in tags if t == "img" or "onerror" in a]
    assert [a.get("type") for t, a in tags if t == "script"] == ["application/json", None, None]
    assert data(made)["tune"]["charts"]
    assert "{{7*7}}" in made


def test_the_command_reads_a_searchs_directory_with_its_evidence(tmp_path, file, proof):
    from click.testing import CliRunner

    where = {tmp_path: file} | {
        tmp_path / "evidence" / arm: each
        for arm, each in zip(("baseline", "candidate"), proof, strict=True)
    }
    for place, each in where.items():
        place.mkdir(parents=True, exist_ok=True)
        lines = [encode("header", each.header), *(encode("record", r) for r in each.records)]
        (place / RECORDS).write_bytes(b"".join(lines))
    out = tmp_path / "tune.html"
    done = CliRunner().invoke(cli, ["report", str(tmp_path), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "IMPROVED in an interleaved A/B" in out.read_text()
    told = CliRunner().invoke(cli, ["report", str(tmp_path)]).output
    assert "IMPROVED in an interleaved A/B" in " ".join(told.split())
