"""The five lines of a search, and its JSON."""

import csv
import io
import json
import re

import pytest
from msgspec.structs import replace

from gpubench import escape, report
from gpubench.analysis.tune import result
from gpubench.records.parity import Answers
from gpubench.records.record import Record
from gpubench.report import exports, github_actions, markdown, terminal
from gpubench.report.sections import recommendation
from gpubench.suite.goal import Goal, Limit, Metric
from tests.report import make, make_tunes
from tests.report.test_report import HOSTILE, plain

LATENCY = Metric("latency")
LIMITED = Goal(Metric("throughput"), (Limit(LATENCY, 9e6),))


@pytest.fixture(scope="module")
def file():
    return make_tunes.tune(goal=LIMITED, explored=66)


@pytest.fixture(scope="module")
def proof(file):
    found = result.view(file)
    return make_tunes.evidence(found.best.cell, found.base.cell)


def test_what_how_much_answers_limits_and_what_was_tried(file, proof):
    what, gain, answers, limits, tried, failed = recommendation.lines(file, proof)
    assert what == "Recommended: onnxruntime int8, batch 1, 4 replicas"
    assert re.match(
        r"Throughput 2,\d+ images/s \[2,\d+, 2,\d+\]: 20\.\d+ \[20\.\d+, 20\.\d+\] times the "
        r"images/s of today's default \(torch-eager fp32, batch 32, 1 replica: 1\d\d images/s.*\); "
        r"IMPROVED in an interleaved A/B of \d+ pairs$",
        gain,
    )
    assert answers.startswith("Answers: 100.0 % match the fp32 reference; accuracy 93.8 % [")
    assert "p50 latency <= 9.00 ms is kept: 1.5" in limits
    assert "one repeat in 100 would show" in limits
    assert tried.startswith("Measured 66 of 72 configurations, of 3 of 3 backends, in ")
    assert failed == "Failed or left out: 3 configurations: answers outside the tolerance"
    assert "6 ruled out unmeasured" in tried
    assert re.search(r"\d+\.\d % of the roofline, bound by compute: [\d,]+ images/s$", tried)


def test_peaks_that_were_measured_in_a_bad_moment_bound_nothing(file):
    def slow(r: Record) -> Record:
        return replace(r, ceiling=r.ceiling and replace(r.ceiling, flops_per_s=1e12))

    lines = recommendation.lines(make_tunes.tune(goal=LIMITED, explored=66, change=slow))
    assert "; more than the measured peaks allow: the machine was busy while" in lines[-2]


def test_without_an_ab_it_says_so(file):
    assert recommendation.lines(file)[1].endswith(
        "from the search's own rounds: no A/B has confirmed it"
    )


@pytest.mark.parametrize(
    ("objective", "words"),
    [(LATENCY, "times faster than today's default"),
     (Metric("memory"), "times less memory than today's default"),
     (Metric("energy"), "times less energy than today's default")],
)  # fmt: skip
def test_every_objective_has_its_words_and_its_unit(objective, words):
    def counted(r: Record) -> Record:
        scale = make_tunes.factor(r.cell)
        energy = {"joules": 300.0 * scale, "seconds": 6.0, "source": "rapl"}
        each = [replace(s, peak_host_bytes=int(scale * (400 << 20))) for s in r.replicas]
        return replace(r, telemetry={"energy": energy}, replicas=each)

    made = make_tunes.tune(make_tunes.space((1, 8), (1,)), Goal(objective), change=counted)
    gain = recommendation.lines(made)[1]
    assert words in gain
    unit = {"latency": r"(ms|us)", "memory": "MiB", "energy": "J/image"}[objective.kind]
    assert re.search(rf"^\S+.* [\d.,]+ m?{unit}", gain)


def test_the_default_as_its_own_best_is_said():
    cells = [c for c in make_tunes.space((1, 8), (1,)) if c.backend == "torch-eager"]
    lines = recommendation.lines(make_tunes.tune([c for c in cells if c.precision == "fp32"]))
    assert lines[1].endswith("this is today's default: nothing tried was better")


def test_where_nothing_keeps_the_limits_the_closest_and_by_how_much():
    goal = Goal(Metric("throughput"), (Limit(LATENCY, 5e5),))
    file = make_tunes.tune(make_tunes.space((1,), (1,)), goal)
    head, near, default, answers, tried, _ = recommendation.lines(file)
    assert head.startswith("Nothing keeps the limits (p50 latency <= 500 us); closest: ")
    assert re.search(r"p50 latency <= 500 us is broken: \d+ us; \d+\.\d % beyond the limit$", near)
    assert default.startswith("Today's default, torch-eager fp32, batch ")
    assert answers.startswith("Answers: ")
    assert "break a limit" in tried


def test_a_limit_that_is_missed_by_far_is_told_as_a_factor():
    file = make_tunes.tune(goal=Goal(Metric("throughput"), (Limit(LATENCY, 1e4),)))
    assert re.search(r"; \d\d\.\d times the limit$", recommendation.lines(file)[1])


def test_one_backend_alone_is_never_recommended():
    lines = recommendation.lines(make_tunes.tune(rounds=3, explored=9, ended=False))
    assert lines[0].startswith("No recommendation: 1 of 3 backends measured, a longer --budget")
    assert "so far: torch-eager fp32, batch " in lines[0]
    assert lines[-1].startswith("Measured 9 of 72 configurations, of 1 of 3 backends, in ")
    assert lines[-1].endswith("63 not reached; not one of onnxruntime, openvino was reached")


def test_backends_that_were_ruled_out_unmeasured_do_not_count_as_measured():
    lines = recommendation.lines(make_tunes.tune(rounds=3, explored=9))
    assert ", of 1 of 3 backends, in " in lines[-1]
    assert "not one of" not in lines[-1]


def test_interrupted_searches_recommend_nothing_yet():
    lines = recommendation.lines(make_tunes.tune(rounds=0, explored=30, ended=False))
    assert lines[0].startswith("No recommendation yet: onnxruntime ")
    assert "42 not reached; not one of openvino was reached" in lines[-1]


def test_that_nothing_keeps_the_limits_is_undecided_while_something_was_not_measured():
    goal = Goal(Metric("throughput"), (Limit(LATENCY, 5e5),))
    for changes, said in (({"ended": False, "explored": 60}, "; 9 configurations not reached; "),
                          ({"rounds": 0}, "; closest: ")):  # fmt: skip
        head = recommendation.lines(make_tunes.tune(goal=goal, **changes))[0]
        assert head.startswith(
            "Undecided: nothing measured so far is shown to keep the limits (p50"
        )
        assert said in head


def test_where_everything_broke_the_most_frequent_reason_is_named():
    cells = make_tunes.space((1,), (1,))

    def crashed(r: Record) -> Record:
        return replace(r, status="failed", kind="crash", reason="signal 4", replicas=[])

    lines = recommendation.lines(make_tunes.tune(cells, rounds=0, change=crashed))
    assert lines[0] == "No recommendation: nothing could be measured"
    assert lines[-1] == f"Failed or left out: {len(cells)} configurations: signal 4"
    assert recommendation.lines(make_tunes.tune(cells, explored=0, ended=False))[0] == (
        "No recommendation: nothing was measured"
    )


def test_json_reads_back_and_says_the_same(file, proof):
    body = json.loads(escape.encoded(recommendation.to_json(file, proof)))
    assert body["lines"] == recommendation.lines(file, proof)
    best = result.view(file).best.cell
    assert body["recommendation"]["key"] == best.key
    assert body["recommendation"]["outcome"] == "best"
    assert body["verdict"]["verdict"] == "IMPROVED"
    assert body["gain"]["low"] > 20
    assert body["tried"]["ruled-out"] == 6
    assert len(body["configurations"]) == 72
    assert best.key in body["front"]
    assert body["roofline"]["binds"] == "compute"
    assert body["commands"][0] == "gpubench run reports/tune-1/best.toml"
    whole = json.loads(report.render([file], "json", proof))
    assert whole["recommendation"] == body


def test_json_of_a_search_that_found_nothing():
    file = make_tunes.tune(goal=Goal(Metric("throughput"), (Limit(LATENCY, 1e4),)))
    body = json.loads(escape.encoded(recommendation.to_json(file)))
    assert body["recommendation"] is None
    assert body["commands"] == []
    assert body["closest"]["beyond"][0]["share"] > 10


@pytest.mark.parametrize("kind", ["text", "md"])
def test_reports_of_a_search_begin_with_what_it_recommends(file, proof, kind):
    made = report.render([file], kind, proof)
    assert made == report.render([file], kind, proof)
    assert "Recommended: onnxruntime int8, batch 1, 4 replicas" in made
    assert made.index("Recommended:") < made.index("fastest")
    assert "6 ruled out" in made


def test_the_summary_counts_what_was_ruled_out_and_does_not_list_it(file):
    told = plain(terminal.summary([file]))
    assert "6 ruled out" in told
    assert "by the roofline" not in told


def test_hostile_text_stays_text():
    cells = [replace(c, model=HOSTILE, options={HOSTILE: HOSTILE} if c.options else {})
             for c in make_tunes.space((1, 8), (1,))]  # fmt: skip
    file = make_tunes.tune(cells, path=f"{HOSTILE}/records.jsonl")
    lines = recommendation.lines(file)
    assert len(lines) == 7
    assert lines[2].startswith("Not told apart from onnxruntime int8, batch 8, 1 replica")
    assert lines[2].endswith("; of those within 1 % the simplest is recommended")
    assert "<script" not in markdown.render([file]).split("<details>")[0]
    assert recommendation.commands(file)[0].startswith("gpubench run '")


def test_several_runs_have_no_recommendation(file):
    assert recommendation.told([file, make.run([make.cell()])], None) == []


def test_exports_skip_what_was_ruled_out_and_say_so_once(file):
    cases = exports.text(exports.export([file], "junit", None), "junit")
    assert cases.count("<skipped") == 6
    assert 'errors="0"' in cases
    told = exports.left_out([file], "bencher")
    assert told[-1] == "6 cells that a search did not measure"
    assert not any("ruled-out" in line for line in told)


def test_github_is_told_of_failures_not_of_what_was_ruled_out(file):
    told = "\n".join(github_actions.run_commands([file]))
    assert "::error" in told
    assert "ruled-out" not in told
    assert "6 ruled out" in github_actions.run_summary([file])


def test_csv_has_a_line_for_what_was_not_measured():
    file = make_tunes.tune(explored=60, ended=False)
    rows = list(csv.DictReader(io.StringIO(report.render([file], "csv"))))
    assert len({r["cell"] for r in rows if r["status"] == "not reached"}) == 12


@pytest.mark.parametrize(
    ("given", "told"),
    [([3, 1, 3], " on 3 pictures (digits)"),
     ([3, 3], " on 2 pictures (digits, all of one class: it tells little)"), (None, "")],
)  # fmt: skip
def test_which_pictures_were_answered_is_told(file, given, told):
    found = result.view(file)
    summary = found.summaries[found.best.cell.key]
    asked = given and Answers(pictures="0" * 64, given=given, labels=[-1] * len(given))
    records = [
        replace(r, parity=r.parity and replace(r.parity, answers=asked)) for r in summary.records
    ]
    summaries = {found.best.cell.key: replace(summary, records=records)}
    line = recommendation.answers(replace(found, summaries=summaries), found.best)
    assert line.startswith(f"Answers: 100.0 % match the fp32 reference{told}")
    assert line[len(f"Answers: 100.0 % match the fp32 reference{told}")] == ";"
