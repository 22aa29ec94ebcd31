"""What a search is read as: from hand-made records whose answers are known."""

import math
import re

import pytest
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.compare import compare
from gpubench.analysis.history import trend
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import problems, summarise
from gpubench.analysis.tables import tune
from gpubench.analysis.tables.run import of_cells
from gpubench.analysis.tune import result
from gpubench.errors import InputError
from gpubench.records.record import Record
from gpubench.report.sections import recommendation
from gpubench.suite.goal import Goal, Limit, Metric
from tests.report import make, make_tunes

LATENCY = Metric("latency")
LIMITED = Goal(Metric("throughput"), (Limit(LATENCY, 9e6),))


@pytest.fixture(scope="module")
def file():
    return make_tunes.tune(explored=60)


@pytest.fixture(scope="module")
def found(file):
    return result.view(file)


def fastest(cells, limit_ns=math.inf):
    """By the truth, of configurations with right answers."""
    kept = [c for c in cells if not make_tunes.wrong(c) and make_tunes.truth(c) <= limit_ns]
    return max(kept, key=lambda c: c.total_batch / make_tunes.truth(c))


def test_only_a_search_can_be_read(file):
    with pytest.raises(InputError, match="not a search"):
        result.view(make.run([make.cell()]))


def test_the_recommended_one_is_the_fastest_with_right_answers(file, found):
    assert found.best.cell == fastest(file.header.planned[:60])
    assert found.base.cell.key in found.search.baseline
    assert found.verdict is None
    assert not found.paired


def test_a_limit_leaves_out_what_is_too_slow():
    file = make_tunes.tune(goal=LIMITED)
    assert result.view(file).best.cell == fastest(file.header.planned, 9e6)


def test_the_gain_is_that_of_the_pairs_and_the_verdict_the_gates(found):
    best, base = found.best.cell, found.base.cell
    proof = make_tunes.evidence(best, base)
    seen = result.view(found.file, proof)
    truth = make_tunes.truth(base) / base.total_batch / make_tunes.truth(best) * best.total_batch
    assert seen.paired
    assert seen.gain.low < truth < seen.gain.high
    assert seen.gain.value == pytest.approx(truth, rel=0.01)
    assert (seen.verdict.verdict, seen.verdict.code) == ("IMPROVED", "confirmed")


@pytest.mark.parametrize("pairs", [1, 3, 5])
def test_a_few_pairs_say_more_than_one_repeat_and_give_no_interval(found, pairs):
    assert found.gain.low is None
    proof = make_tunes.evidence(found.best.cell, found.base.cell, pairs=pairs)
    seen = result.view(found.file, proof)
    assert (seen.paired, seen.gain.n, seen.gain.low) == (True, pairs, None)
    assert seen.gain.value == pytest.approx(found.gain.value, rel=0.01)
    assert (seen.verdict.pairs, seen.won) == (pairs, (pairs, pairs))
    gain = recommendation.lines(found.file, proof)[1]
    assert re.search(r": [\d.]+ \(no interval: \d+ pairs?\) times the images/s", gain)
    said = f"better in {pairs} of {units.count(pairs, 'pair')} of an interleaved A/B (INCONCLUSIVE"
    assert said in gain  # one turn an arm: however far apart, a few pairs decide nothing


def test_a_gain_without_an_interval_says_so(found):
    assert recommendation.times(Estimate(value=44.0, n=1, why="1 repeat")).endswith(
        " (no interval: 1 repeat)"
    )


def test_without_an_ab_the_gain_is_of_the_searchs_own_rounds(found):
    best, base = found.best.cell, found.base.cell
    truth = make_tunes.truth(base) / base.total_batch / make_tunes.truth(best) * best.total_batch
    assert found.gain.value == pytest.approx(truth, rel=0.05)


def test_an_ab_of_another_configuration_proves_nothing(found):
    other = next(c for c in found.file.header.planned if c != found.best.cell)
    assert result.view(found.file, make_tunes.evidence(other, found.base.cell)).verdict is None


def test_gains_of_latency_are_above_one_where_less_time_is_taken():
    file = make_tunes.tune(make_tunes.space((1,), (1,)), Goal(LATENCY))
    found = result.view(file)
    truth = make_tunes.truth(found.base.cell) / make_tunes.truth(found.best.cell)
    assert found.gain.value == pytest.approx(truth, rel=0.05)
    assert result.view(file, make_tunes.evidence(found.best.cell, found.base.cell)).gain.value > 1


def test_the_default_may_be_the_best():
    cells = [c for c in make_tunes.space((1, 8), (1,)) if c.backend == "torch-eager"]
    file = make_tunes.tune([c for c in cells if c.precision == "fp32"])
    found = result.view(file)
    assert found.best.cell == found.base.cell
    assert found.gain.value == 1


def test_everything_is_counted_once(found):
    counts = result.tally(found)
    assert sum(counts.values()) == len(found.standings) == 72
    assert counts["ruled-out"] == 12
    assert len(result.measured(found)) == 60
    assert result.spent_s(found) == pytest.approx(1.7 * (60 + 4 * 8))


def test_what_an_interrupted_search_did_not_reach_is_not_missing():
    file = make_tunes.tune(explored=20, ended=False)
    statuses = {s.status for s in summarise([file])}
    assert "not reached" in statuses
    assert "missing" not in statuses
    assert result.tally(result.view(file))["unmeasured"] == 52


def test_a_gain_is_confirmed_by_a_verdict_or_needs_none(found):
    def proven(pairs):
        proof = make_tunes.evidence(found.best.cell, found.base.cell, pairs=pairs)
        return not result.view(found.file, proof).unconfirmed

    assert (not found.unconfirmed, proven(1), proven(None)) == (False, False, True)
    slow = result.view(make_tunes.tune(goal=LIMITED))
    assert slow.verdict is None
    assert not slow.unconfirmed, "today's default breaks the limit"


def test_where_nothing_keeps_the_limits_the_nearest_is_named():
    file = make_tunes.tune(goal=Goal(Metric("throughput"), (Limit(LATENCY, 1e5),)))
    found = result.view(file)
    assert found.best is None
    assert found.leader is None
    near = result.closest(found)
    right = [c for c in file.header.planned if not make_tunes.wrong(c)]
    assert near.cell == min(right, key=make_tunes.truth)
    beyond = make_tunes.truth(near.cell) / 1e5 - 1
    assert result.excess(near.limits[0]) == pytest.approx(beyond, rel=0.05)


def test_a_leader_that_was_not_measured_again_is_not_recommended():
    found = result.view(make_tunes.tune(rounds=0, explored=9, ended=False))
    assert found.best is None
    assert found.leader is not None


def test_a_search_without_a_record_has_an_empty_view():
    file = make_tunes.tune(explored=0, ended=False)
    found = result.view(file)
    assert (found.best, found.leader, found.base) == (None, None, None)
    assert result.closest(found) is None
    assert result.front(found) == set()


def replace_records(file, records):
    return type(file)(file.path, file.header, records, file.notes)


def test_the_front_is_of_right_answers_and_nothing_beats_it(found):
    front, times = result.front(found), result.times(found)
    points = {
        key: (times[key], s.throughput.value) for key, s in found.summaries.items() if s.ranked
    }
    assert found.best.cell.key in front
    for key, (time, rate) in points.items():
        beaten = any(
            (t <= time and r > rate) or (t < time and r == rate) for t, r in points.values()
        )
        assert (key in front) != beaten


def test_the_front_is_of_the_latency_that_the_search_is_about():
    p99 = Metric("latency", 0.99)
    goal = Goal(Metric("throughput"), (Limit(Metric("memory"), 1e12), Limit(p99, 1e12)))
    found = result.view(make_tunes.tune(make_tunes.space((1, 8), (1,)), goal))
    assert result.latency_of(found.goal) == p99
    for key, ns in result.times(found).items():
        assert ns > found.summaries[key].p50.value
    assert result.latency_of(Goal(Metric("throughput"))) == Metric("latency")
    assert result.latency_of(Goal(p99)) == p99


def test_tables_name_everything_that_was_not_chosen_and_why(found):
    made = {t.title: t for t in tune.build(found)}
    assert list(made) == ["Pareto front", "Not chosen"]
    others = made["Not chosen"]
    assert len(others.rows) == 71
    names = [c.name for c in others.columns]
    outcomes = [row[names.index("outcome")] for row in others.rows]
    assert outcomes.count("ruled out") == 12
    assert outcomes.count("failed") == sum(s.status == "failed" for s in found.standings)
    assert all(row[names.index("why")] for row in others.rows)
    front = made["Pareto front"]
    shares = [row[[c.name for c in front.columns].index("of the roofline")] for row in front.rows]
    assert all(0 < share.value < 1.5 for share in shares)


# ------------------------------------------------------------------------------ other readers


def test_ruled_out_is_no_problem_in_a_table_but_is_told_of(file):
    summaries = summarise([file])
    assert sum(p.status == "ruled-out" for p in problems(summaries)) == 12
    failed = Record(cell=file.header.planned[0], repeat=0, status="failed", kind="crash")
    made = of_cells(summarise([replace_records(file, [failed, *file.records[1:]])]))
    table = next(t for t in made if t.title == "Skips and failures")
    assert not any(["ruled-out"] in row for row in table.rows)
    assert table.notes[0].startswith("12 more cells of a search were not measured")


def test_two_searches_are_compared_in_what_both_measured():
    first = make_tunes.tune(explored=20, seed=1)
    second = make_tunes.tune(explored=30, seed=2, ended=False)
    rows = compare.compare(first, second)
    both = {c.key for c in first.header.planned[:20]}
    assert {row.key for row in rows} == both
    assert not any(row.verdict == "MISSING" for row in rows)


def test_history_leaves_out_what_no_search_measured():
    files = [
        replace_header(make_tunes.tune(explored=10, seed=n), run_id=f"tune-{n}") for n in range(2)
    ]
    assert len(trend.trends(files)) == 10


def replace_header(file, **changes):
    return type(file)(file.path, replace(file.header, **changes), file.records, file.notes)
