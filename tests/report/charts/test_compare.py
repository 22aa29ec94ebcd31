"""The charts of a comparison: effects of all cells, and the pairs behind a verdict."""

import math

import pytest
from msgspec.structs import replace

from gpubench import report
from gpubench.analysis.compare.compare import view
from gpubench.analysis.compare.verdicts import VERDICTS
from gpubench.report.charts import compare
from gpubench.report.sections import compare as sections_compare
from gpubench.suite.types import Rule
from tests.report import make, make_pairs, make_tunes
from tests.report.sections.test_compare import ROWS, RULE, both_arms, row


def valid(spec: dict, **data) -> str:
    """The specification as SVG; raises where it is no Vega-Lite."""
    import altair
    import vl_convert

    whole = {**spec, "width": 500, "datasets": data}
    altair.Chart.from_dict(whole, validate=True)
    svg: str = vl_convert.vegalite_to_svg(whole)
    return svg


def test_forest_draws_a_line_per_effect_worst_first():
    made = compare.forest(ROWS, RULE)
    effects = [c for c in sections_compare.ordered(ROWS) if c.ratio]
    assert [p["row"] for p in made["points"]] == [c.label for c in effects]
    assert [p["verdict"] for p in made["points"]] == [c.verdict for c in effects]
    svg = valid(made["spec"], points=made["points"])
    for c in effects:
        assert c.label[:20] in svg
    assert made["spec"]["height"] == made["step"] * len(effects)


def test_forest_looks_differ_in_shape_or_filling_and_not_in_colour_alone():
    looks = [(shape, filled) for _, shape, filled in compare.LOOKS.values()]
    assert len(set(looks)) == len(looks)
    assert set(compare.LOOKS) == set(VERDICTS)
    assert compare.KINDS["baseline"] != compare.KINDS["candidate"]


def test_forest_shades_the_margin_and_cuts_endless_intervals():
    made = compare.forest(ROWS, Rule(delta=0.05))
    band = made["spec"]["layer"][0]["layer"][0]["encoding"]
    assert band["x2"]["datum"] == -band["x"]["datum"] == pytest.approx(math.log(1.05))
    wild = compare.forest([*ROWS[:2], row("wild", "INCONCLUSIVE", 0.0, 9.0)], RULE)
    last = next(p for p in wild["points"] if p["row"] == "wild")
    assert last["beyond"] == ["left", "right"]
    assert last["high"] == pytest.approx(compare.WIDE * math.log(1.053))
    low, high = wild["spec"]["layer"][1]["encoding"]["x"]["scale"]["domain"]
    assert low < last["low"]
    assert last["high"] < high
    assert all(p["beyond"] == [] for p in wild["points"] if p["row"] != "wild")


@pytest.mark.parametrize("effect", [0.0, 0.004, 0.03, 0.3, 1.0, 9.0, 300.0])
def test_ticks_are_few_round_and_within_the_picture(effect):
    made = compare.forest([row("x", "REGRESSED", effect)], RULE)
    x = made["spec"]["layer"][1]["encoding"]["x"]
    ticks, (low, high) = x["axis"]["values"], x["scale"]["domain"]
    assert 3 <= len(ticks) <= 10
    assert 0 in ticks
    assert low <= min(ticks) <= max(ticks) <= high


def test_equal_labels_stay_two_lines():
    twice = [replace(ROWS[1], key=key) for key in ("a", "b")]
    rows = [p["row"] for p in compare.forest(twice, RULE)["points"]]
    assert rows == [ROWS[1].label, f"{ROWS[1].label} (b)"]


def test_pairs_are_drawn_by_the_metric_that_the_verdict_is_by():
    best, base = make_tunes.cell(batch_size=8, replicas=2), make_tunes.cell(batch_size=8)
    session = make_tunes.evidence(best, base, pairs=8)  # by images/s, of cells of latency
    (cell,) = compare.behind(view(*session))["cells"]
    (line,) = cell["lines"]
    heights = [p["y"] for p in cell["points"]]
    assert min(heights) < line["y"] < max(heights)


def test_pairs_are_drawn_for_what_is_not_unchanged():
    session = both_arms()
    both = view(*session)
    found, made = both.rows, compare.behind(both)
    assert [c["label"] for c in made["cells"]] == [
        c.label for c in sections_compare.split(found)[0]
    ]
    worst = made["cells"][0]
    key = next(c.key for c in found if c.label == worst["label"])
    records = [r for r in session[1].records if r.cell.key == key]
    assert [p["x"] for p in worst["points"]] == [r.repeat + 1 for r in records]
    assert worst["points"][0]["tip"]["order"] in ("ABBA", "BAAB")
    (line,) = worst["lines"]
    pairs = next(c.pairs for c in found if c.label == worst["label"])
    assert (line["x"], line["x2"]) == (0.6, pairs + 0.4)
    svg = valid(made["spec"], points=worst["points"], lines=worst["lines"])
    assert "pair, in the order measured" in svg


def test_pairs_of_two_backends_are_found():
    cells = [(make.cell(), make.cell(backend="openvino"))]
    base, candidate = make_pairs.arms(cells, pairs=16, effect=0.2)
    both = view(base, candidate)
    assert both.rows[0].baseline_key
    (cell,) = compare.behind(both)["cells"]
    assert len(cell["points"]) == 16
    assert "torch-eager -&gt; openvino" in report.render([base, candidate], "html")
