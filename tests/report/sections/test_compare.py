"""A comparison in every format: what it says, what it draws, and that nothing is lost."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from msgspec.structs import replace

from gpubench import report
from gpubench.analysis import summary
from gpubench.analysis.compare import sequential_test
from gpubench.analysis.compare.compare import compare, view
from gpubench.analysis.compare.verdicts import CAVEAT, VERDICTS, Comparison
from gpubench.analysis.summary import run_names
from gpubench.records.record import Record
from gpubench.report import exports, formatting, github_actions, json_report, markdown, terminal
from gpubench.report.charts import compare as charts_compare
from gpubench.report.html import page
from gpubench.report.sections import compare as sections_compare
from gpubench.suite.types import Rule
from tests.analysis.compare import test_metrics
from tests.report import make, make_pairs
from tests.report.test_report import HOSTILE, Tags, plain

RULE = Rule()


def row(label: str, verdict: str, effect: float | None = None, half: float = 0.01, **changes):
    """A comparison whose cost changes by ``effect``, with an interval of +-``half``."""
    metric = changes.pop("metric", "p50 [ns]")
    values = {"key": label.replace(" ", "-"), "label": label, "metric": metric,
              "verdict": verdict, "interleaved": True}  # fmt: skip
    if effect is not None:
        logs = [math.log1p(effect) + x for x in (0.0, -half, half)]
        if metric != "p50 [ns]":
            logs = [-logs[0], -logs[2], -logs[1]]
        ratio, low, high = map(math.exp, logs)
        values |= {"baseline": 2e6, "candidate": 2e6 * ratio, "ratio": ratio, "low": low,
                   "high": high, "n": (20, 20), "pairs": 20, "pair_sd": 0.012,
                   "smallest_detectable": 0.031}  # fmt: skip
    return Comparison(**(values | changes))


SAID = "about 1.05x slower in 20 of 20 pairs, beyond 2 %: p = 0.0004 after correction"
ROWS = [
    row("torch-eager fp32 b4 x1 latency", "EQUIVALENT", 0.001, code="inside-margin"),
    row("onnxruntime fp32 b1 x1 latency", "REGRESSED", 0.053, 0.012, code="confirmed", reason=SAID),
    row("openvino bf16 b64 x2 throughput", "IMPROVED", -0.3, metric="images/s", code="confirmed"),
    row("torch-compile bf16 b64 x4 throughput transfer", "REGRESSED", 0.12, 0.03,
        metric="images/s", code="confirmed", reason=SAID),
    row("openvino fp32 b8 x2 latency num_streams=2 performance_hint=LATENCY", "INCONCLUSIVE", 0.01,
        0.2, code="wide-interval", reason="the interval reaches across \u00b12 %"),
    row("tensorrt fp16 b1 x1 latency", "MISSING", code="failed",
        reason="candidate: failed: out-of-memory (worker killed: 3.9 of 4.0 GiB used)"),
    row("torch-eager fp32 b8 x1 latency", "EQUIVALENT", -0.002, code="inside-margin"),
]  # fmt: skip
STORED = [replace(c, interleaved=False, pairs=0, pair_sd=None) for c in ROWS]


def both_arms():
    """An A/B with a regression, an improvement, and the rest unchanged or undecided."""
    cells = make.grid(backends=("torch-eager", "openvino"), batches=(1, 16), replicas=(1,))
    return make_pairs.arms(cells, effect={1: 0.08, 4: -0.2, 6: 0.02}, sd=0.01, seed=3)


@pytest.fixture(scope="module")
def session():
    return both_arms()


@pytest.fixture(scope="module")
def page_of_session(session):
    return report.render(session, "html")


# ------------------------------------------------------------------------------ words


def test_headline_says_what_decides_the_exit_code():
    assert sections_compare.headline(ROWS[1:3], RULE) == (
        "REGRESSED: 1 of 2 cells is slower: onnxruntime fp32 b1 x1 latency by 5.3 % [4.0, 6.6]"
    )
    assert sections_compare.headline(ROWS, RULE).startswith(
        "REGRESSED: 2 of 7 cells are slower, most of all torch-compile bf16 b64 x4 throughput "
        "transfer by 12.0 % ["
    )
    left = [c for c in ROWS if c.verdict != "REGRESSED"]
    assert sections_compare.headline(left, RULE) == (
        "MISSING: 1 of 5 cells is missing or failed: tensorrt fp16 b1 x1 latency: candidate: "
        "failed: out-of-memory (worker killed: 3.9 of 4.0 GiB used)"
    )
    left = [c for c in left if c.verdict != "MISSING"]
    assert sections_compare.headline(left, RULE).startswith(
        "INCONCLUSIVE: 1 of 4 cells is undecided: "
    )
    left = [c for c in left if c.verdict != "INCONCLUSIVE"]
    assert sections_compare.headline(left, RULE) == (
        "PASS: 1 of 3 cells is faster: openvino bf16 b64 x2 throughput takes 30.0 % less time "
        "[29.3, 30.7]; the others are unchanged within \u00b12 %"
    )
    assert (
        sections_compare.headline(left[::2], RULE)
        == "PASS: 2 of 2 cells are unchanged within \u00b12 %"
    )
    assert sections_compare.headline([], RULE).startswith(
        "MISSING: the two runs have nothing to compare"
    )
    apart = [replace(c, verdict="INCOMPARABLE", reason="differs: cpu.model") for c in ROWS]
    assert sections_compare.headline(apart, RULE).endswith("are not comparable: differs: cpu.model")


def test_what_differs_is_said_once_with_the_way_out():
    rows = [replace(c, interleaved=False, verdict="INCOMPARABLE", code="different-machine",
                    reason="differs: cpu.model a -> b") for c in ROWS]  # fmt: skip
    told = plain(terminal.comparison(rows, rule=RULE))
    assert told.count("cpu.model a -> b") == 2  # in the headline and in the table
    assert "--allow-different KEY" in told
    assert "--allow-different" not in plain(terminal.comparison(ROWS, rule=RULE))


def test_stored_runs_that_could_confirm_nothing_say_what_it_takes():
    blind = [replace(c, interleaved=False, smallest_detectable=None) for c in ROWS]
    assert "8 A/A sessions or more of this machine" in sections_compare.reach(blind)
    pairs = [replace(c, interleaved=True) for c in blind]  # few of them, but some have confirmed
    assert sections_compare.reach(pairs).startswith("From so few pairs it cannot be said how small")
    alike = [replace(c, verdict="EQUIVALENT") for c in pairs]
    assert sections_compare.reach(alike).endswith("a slowdown of any size, in any cell.")


@pytest.mark.parametrize(
    ("share", "half", "wanted"),
    [
        (0.0534, 0.0125, "+5.3 %"),
        (0.0534, 0.002, "+5.34 %"),
        (0.0534, 0.0002, "+5.340 %"),
        (0.0534, 1e-9, "+5.340 %"),
        (1.234, 0.15, "+123 %"),
        (-0.0001, 0.01, "0.0 %"),
        (12.5, None, "+1,250.0 %"),
        (0.5, 0.0, "+50.0 %"),
    ],
)
def test_effects_have_the_digits_that_their_interval_supports(share, half, wanted):
    assert sections_compare.percent(share, half, signed=True) == wanted


def test_an_effect_is_the_cost_so_less_throughput_is_slower():
    slower = row("x", "REGRESSED", 0.25, metric="images/s")
    assert slower.ratio == pytest.approx(0.8)
    assert sections_compare.effect(slower) == "+25.0 % [+23.8, +26.3]"
    assert sections_compare.effect(row("x", "REGRESSED", 0.25)) == sections_compare.effect(slower)
    assert sections_compare.effect(replace(slower, low=None, high=None)) == "+25.0 %"
    assert sections_compare.effect(ROWS[5]) == formatting.NOTHING


def test_the_effect_agrees_with_the_gate(session):
    for cell in charts_compare.behind(view(*session))["cells"]:
        (line,) = cell["lines"]
        deciding = tuple(p["y"] for p in cell["points"] if p["x"] < line["x2"])
        assert line["y"] == pytest.approx(sequential_test.shift(deciding).value, abs=1e-9)
        assert line["low"] < line["y"] < line["high"]


def test_what_is_clear_but_not_confirmed_leads_the_undecided():
    seen = "about 7.0x faster in 8 of 8 pairs; unconfirmed; about 5 pairs, 2 min 37 s more"
    rows = [
        row("torch-eager fp32 b1", "INCONCLUSIVE", 0.01, code="wide-interval", reason="wide"),
        row("openvino fp32 b1", "INCONCLUSIVE", -6 / 7, code="unconfirmed", reason=seen),
        row("openvino fp32 b8", "INCONCLUSIVE", 0.2, code="unconfirmed", reason="about 1.2x"),
    ]
    assert sections_compare.headline(rows, Rule()) == (
        f"INCONCLUSIVE: 3 of 3 cells are undecided, such as openvino fp32 b1: {seen}"
    )


def test_worst_comes_first_and_nothing_is_lost():
    made = sections_compare.ordered(ROWS)
    assert [c.verdict for c in made] == sorted((c.verdict for c in ROWS), key=list(VERDICTS).index)
    assert [c.label.split()[0] for c in made[:2]] == ["torch-compile", "onnxruntime"]
    changed, unchanged = sections_compare.split(ROWS)
    assert changed + unchanged == made
    assert {c.verdict for c in unchanged} == {"EQUIVALENT"}
    assert sections_compare.folded(unchanged, RULE) == (
        "EQUIVALENT: 2 cells unchanged within \u00b12 %; no interval reaches beyond 1.2 %"
    )


def test_what_could_have_been_found_and_the_exit_code_are_said():
    assert "3.1 % 95 times in 100; 1 of 7 cells could not" in sections_compare.reach(ROWS)
    assert "3.1 % (best cell) to 4.0 % (worst" in sections_compare.reach(
        [ROWS[0], replace(ROWS[1], smallest_detectable=0.04)]
    )
    assert "any size" in sections_compare.reach([ROWS[5]])
    assert sections_compare.exit_words(ROWS) == "Exit code 1: a confirmed regression."
    assert sections_compare.exit_words(ROWS, 0).startswith(
        "Exit code 0, as --fail-on has it; without it 1"
    )
    for code in sections_compare.EXIT:
        found = {0: ROWS[:1], 1: ROWS[1:2], 3: ROWS[4:5], 4: ROWS[5:6]}[code]
        assert sections_compare.exit_words(found).startswith(
            f"Exit code {code}: {sections_compare.EXIT[code]}"
        )


def test_arms_are_known_by_their_session_in_any_order(session):
    base, candidate = session
    assert sections_compare.arms([candidate, base]) == (base, candidate)
    assert sections_compare.arms([base]) is None
    assert sections_compare.arms([base, base]) is None
    other = replace(candidate.header.pairing, session="another")
    stranger = replace(candidate, header=replace(candidate.header, pairing=other))
    assert sections_compare.arms([base, stranger]) is None
    assert sections_compare.arms([make.run([make.cell()], samples=5)] * 2) is None
    own = replace(base.header.pairing, rule=Rule(delta=0.1))
    begun = replace(base, header=replace(base.header, pairing=own))
    agreeing = replace(candidate, header=replace(candidate.header, pairing=replace(
        candidate.header.pairing, rule=own.rule)))  # fmt: skip
    assert view(begun, agreeing).rule == own.rule
    assert view(begun, stranger).rule == Rule()
    assert view(begun, stranger, delta=0.1).rule == own.rule


def test_an_ab_without_a_result_is_no_comparison_of_stored_runs():
    lost = make_pairs.arms([make.cell()], pairs=3, change=lambda record, arm: None)
    found = compare(*lost)
    assert [c.verdict for c in found] == ["MISSING"]
    said = " ".join(sections_compare.notes(found, RULE))
    assert "Interleaved A/B" in said
    assert "stored runs" not in said
    assert "any size, in any cell" in said


def test_the_headline_knows_what_fail_on_made_of_the_exit_code():
    faster = [c for c in ROWS if c.verdict in ("IMPROVED", "EQUIVALENT", "INCONCLUSIVE")]
    said = sections_compare.headline(faster, RULE, 1)
    assert said.startswith("IMPROVED: 1 of 4 cells is faster: openvino")
    assert "unchanged" not in said  # one is undecided
    assert sections_compare.headline(faster, RULE, 3).startswith("INCONCLUSIVE")
    sure = [c for c in faster if c.verdict != "INCONCLUSIVE"]
    assert sections_compare.headline(sure, RULE, 0).startswith("PASS")


def test_no_text_from_outside_is_a_workflow_command():
    evil = "boom\n::stop-commands::x\n  ::error::y ##[add-mask]z std::bad_alloc"
    rows = [replace(ROWS[5], reason=evil), replace(ROWS[4], reason=evil)]
    for width in range(40, 160, 7):
        said = plain(terminal.comparison(rows), width)
        assert not [line for line in said.splitlines() if line.lstrip().startswith("::")]
        assert "##[" not in said
    assert "std::bad_alloc" in said
    dead = Record(cell=make.cell(), repeat=0, status="failed", kind="error", reason=evil)
    run = replace(make.run([make.cell()], samples=5), records=[dead])
    for said in (plain(terminal.summary([run]), 100), report.render([run], "text")):
        assert not [line for line in said.splitlines() if line.lstrip().startswith("::")]


# ------------------------------------------------------------------------------ terminal


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("rows", [ROWS, STORED], ids=["pairs", "stored"])
def test_terminal_says_the_verdict_first_and_breaks_no_word(width, rows):
    made = plain(terminal.comparison(rows), width)
    lines = made.splitlines()
    assert lines[0].startswith("REGRESSED: 2 of 7 cells are slower")
    assert max(map(len, lines)) <= width
    words = set(made.split())
    for c in rows:
        if c.verdict != "EQUIVALENT":
            assert set(c.label.split()) <= words
    wanted = {"+5.3", "-30.0", "+12.0", "wide-interval:", "confirmed:", "failed:"}
    assert wanted <= words
    assert "2 REGRESSED, 1 MISSING, 1 INCONCLUSIVE, 1 IMPROVED, 2 EQUIVALENT" in made
    assert (CAVEAT in " ".join(made.split())) == (rows is STORED)
    assert ("pair sd" in made) == (rows is ROWS)


def test_terminal_has_a_line_per_cell_at_120_columns():
    lines = plain(terminal.comparison(ROWS), 120).splitlines()
    found = next(line for line in lines if line.startswith("REGRESSED     onnxruntime"))
    wanted = ["REGRESSED", "onnxruntime", "fp32", "b1", "x1", "latency", "2.000", "ms", "2.106",
              "ms", "+5.3", "%", "[+4.0,", "+6.6]", "20", "1.2", "%", "3.1", "%"]  # fmt: skip
    assert found.split() == wanted
    assert lines[lines.index(found) + 1].strip() == f"confirmed: {SAID}"


def test_terminal_folds_unchanged_rows_into_a_line_and_unfolds_them():
    folded = plain(terminal.comparison(ROWS), 120)
    assert "b4 x1 latency" not in folded
    assert "EQUIVALENT: 2 cells unchanged within \u00b12 %; " in folded
    assert "(gpubench compare --all lists them)" in folded
    unfolded = plain(terminal.comparison(ROWS, everything=True), 120)
    assert "b4 x1 latency" in unfolded
    assert "--all" not in unfolded
    calm = plain(terminal.comparison(ROWS[:1]), 120)
    assert calm.startswith("PASS: 1 of 1 cell is unchanged")


def test_terminal_shows_the_rule_it_was_given():
    made = " ".join(plain(terminal.comparison(ROWS, rule=Rule(delta=0.05, alpha=0.02))).split())
    assert "within \u00b15 %" in made
    assert "at most 2 % (alpha)" in made


def test_terminal_shows_what_compare_finds():
    cells = make.grid(backends=("torch-eager",), batches=(1,), replicas=(1,))
    base, slow = (make.run(cells, seed=s, repeats=8, factor=f) for s, f in ((1, 1.0), (2, 1.3)))
    found = compare(base, slow)
    worst = sorted({c.verdict for c in found}, key=list(VERDICTS).index)[0]
    made = plain(terminal.comparison(found))
    assert made.startswith(f"{worst}: 2 of 2 cells are ")
    assert CAVEAT in " ".join(made.split())
    assert plain(terminal.comparison([])).startswith("MISSING")


# ------------------------------------------------------------------------------ other formats


def test_markdown_folds_unchanged_rows_and_keeps_every_cell():
    made = markdown.comparison(ROWS)
    assert made.startswith("**REGRESSED: 2 of 7 cells are slower")
    before, _, fold = made.partition("<details>")
    assert before.count("\n| ") == 6  # head and five rows
    assert fold.partition("</details>")[0].count("\n| EQUIVALENT") == 2
    assert CAVEAT in markdown.comparison(STORED)
    assert CAVEAT not in made
    assert markdown.comparison([]).startswith("**MISSING")


def test_markdown_escapes_labels_and_reasons():
    evil = replace(ROWS[1], label=HOSTILE, reason=HOSTILE)
    for made in (markdown.comparison([evil]), markdown.comparison([evil, ROWS[0]])):
        assert "<script" not in made
        assert "<img" not in made
        assert "[x](y)" not in made
        rows = [line for line in made.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1


def test_json_has_every_field_and_what_the_codes_mean():
    made = json.loads(json_report.comparisons(ROWS, rule=Rule(delta=0.03)))
    assert made["exit_code"] == 1
    assert made["headline"].startswith("REGRESSED: 2 of 7")
    assert made["counts"] == {"REGRESSED": 2, "MISSING": 1, "INCONCLUSIVE": 1, "IMPROVED": 1,
                              "EQUIVALENT": 2}  # fmt: skip
    assert made["rule"]["delta"] == 0.03
    assert made["note"] == ""
    assert set(made["codes"]) == {c.code for c in ROWS}
    assert [set(c) for c in made["comparisons"]] == [set(Comparison.__struct_fields__)] * 7
    assert json.loads(json_report.comparisons(STORED))["note"] == CAVEAT
    assert json.loads(json_report.comparisons(ROWS, code=0))["exit_code"] == 0


@pytest.mark.parametrize("kind", ["text", "md", "json", "html"])
def test_reports_of_both_arms_begin_with_the_verdict(session, kind):
    made = report.render(session, kind)
    assert (made == report.render(session[::-1], kind)) == (kind == "html")
    wanted = sections_compare.headline(compare(*session), RULE)
    assert wanted in made.replace("\\", "").replace("\n", " ")
    if kind == "md":
        assert made.index("REGRESSED") < made.index("**fastest**")
    if kind == "text":
        assert made.startswith("REGRESSED")


# ------------------------------------------------------------------------------ the page


class Text(HTMLParser):
    """Text of the page by the id of the innermost section around it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.at, self.found = [""], {}
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        if tag in ("section", "details"):
            self.at.append(dict(attrs).get("id") or self.at[-1])

    def handle_endtag(self, tag):
        if tag in ("section", "details"):
            self.at.pop()

    def handle_data(self, data):
        self.found[self.at[-1]] = self.found.get(self.at[-1], "") + data


def test_page_begins_with_the_verdict_and_folds_both_runs(session, page_of_session):
    found = compare(*session)
    ids = [a["id"] for _, a in Tags(page_of_session).seen if "id" in a]
    order = ["verdict", "effects", "forest", "cells", "behind", "runs", "measurements",
             "samples", "again", "environment"]  # fmt: skip
    assert [i for i in ids if i in order] == order
    said = Text(page_of_session).found["verdict"]
    assert sections_compare.headline(found, RULE) in said
    assert "Exit code 1: a confirmed regression." in said
    assert '<h2 class="headline"' in page_of_session
    assert "ref=main; 2026-" in said
    for file in session:
        assert f"raw records: {file.path}" in said
    assert "95 times in 100" in said
    assert "delta" in said
    assert "ref=main" in said
    assert "ref=feature" in said
    runs = page_of_session.partition('<details class="fold" id="runs">')[2]
    assert ">Latency</th>" in runs
    assert len(page_of_session.encode()) < 3_000_000


def test_both_runs_are_called_baseline_and_candidate(session, page_of_session):
    assert "baseline: torch-eager" in page_of_session  # samples over time
    assert session[0].header.run_id in page_of_session  # once, beside the arm
    for names, files in (
        (["candidate", "baseline"], session[::-1]),
        (["ab-session-baseline"], session[:1]),
        (["ab-session-baseline", "other-candidate"], [session[0], _other(session[1])]),
    ):
        assert run_names(files) == names


def _other(file):
    """The same arm of another A/B."""
    pairing = replace(file.header.pairing, session="other")
    return replace(file, header=replace(file.header, pairing=pairing, run_id="other-candidate"))


def test_page_lists_every_cell_once(session, page_of_session):
    found = compare(*session)
    section = re.search(r'<section class="table" id="cells">.*?</section>', page_of_session, re.S)
    rows = re.findall(r"<tbody>(.*?)</tbody>", section[0], re.S)
    count = [body.count("<tr ") for body in rows]
    changed, unchanged = sections_compare.split(found)
    assert count == [len(changed), len(unchanged)]
    assert f"EQUIVALENT: {len(unchanged)} cells unchanged" in section[0]
    assert f"{len(found)} rows" in section[0]


def test_page_of_two_stored_runs_has_the_caveat_and_repeats():
    cells = make.grid(backends=("torch-eager",), batches=(1, 4), replicas=(1,))
    base, slow = (make.run(cells, seed=s, repeats=5, factor=f, run_id=str(s), samples=30)
                  for s, f in ((1, 1.0), (2, 1.3)))  # fmt: skip
    both = view(base, slow, delta=0.03)
    found, made = both.rows, page.comparison(both, code=0)
    assert CAVEAT in made
    assert "\u00b13 %" in made
    assert "as --fail-on has it" in made
    drawn = charts_compare.behind(both)["cells"]
    assert [[p["kind"] for p in cell["points"]] for cell in drawn] == [
        ["baseline"] * 5 + ["candidate"] * 5
    ] * len(found)
    centre = [sum(p["y"] for p in cell["points"][:5]) for cell in drawn]
    assert centre == pytest.approx([0.0] * len(found), abs=1e-9)


def test_page_escapes_hostile_comparisons():
    file = make.run([make.cell()], samples=5)
    evil = [replace(c, label=HOSTILE, reason=HOSTILE, code=HOSTILE) for c in ROWS]
    made = page.comparison(replace(view(file, file), rows=evil))
    tags = Tags(made).seen
    assert not [t for t, a in tags if t == "img" or "onerror" in a]
    assert [a.get("type") for t, a in tags if t == "script"] == ["application/json", None, None]
    assert "{{7*7}}" in made


def test_a_note_of_both_arms_stands_once_on_the_page():
    both = [replace(make.run([make.cell()], samples=5), notes=["of both", only]) for only in "ab"]
    made = page.comparison(view(*both))
    notes = re.findall(r'<p class="note">(.*?)</p>', made)
    assert [n for n in notes if n in ("of both", "a", "b")] == ["of both", "a", "b"]


def test_page_of_nothing_compared_is_a_page():
    file = make.run([make.cell()], samples=5)
    made = page.comparison(replace(view(file, file), rows=[]))
    assert "nothing to compare" in made
    assert 'id="effects"' not in made


def test_the_command_of_an_arm_compares_again():
    words = ["/x/gpubench", "ab", "ci", "--baseline", "backend=a", "-o", "out", "--json", "-q"]
    base, _ = make_pairs.arms([make.cell()], pairs=4, baseline={"command": words})
    wanted = "gpubench ab ci --baseline backend=a -q"
    assert formatting.command(base.header, "k") == wanted
    assert formatting.resume(base.header, "out") == (
        "gpubench ab ci --baseline backend=a --json -q --resume -o out"
    )


@pytest.mark.parametrize(("verdict", "said"), [("INCONCLUSIVE", True), ("INCOMPARABLE", False)])
def test_a_history_is_advised_only_where_it_would_help(verdict: str, said: bool) -> None:
    row = Comparison(key="k", label="cell", metric="p50 [ns]", verdict=verdict, code="", reason="")
    assert (sections_compare.NEEDS_HISTORY in sections_compare.reach([row])) is said


@pytest.fixture
def summarised(monkeypatch):
    """How often a cell was summarised."""
    seen, own = [], summary.Summary

    def counting(**fields):
        seen.append(fields["cell"].key)
        return own(**fields)

    monkeypatch.setattr(summary, "Summary", counting)
    return seen


@pytest.mark.parametrize("kind", report.FORMATS)
def test_a_report_of_an_ab_summarises_every_cell_of_each_arm_once(session, summarised, kind):
    report.render(list(session), kind)
    assert sorted(summarised) == sorted(c.key for f in session for c in f.header.planned)


def test_the_end_of_an_ab_is_told_from_one_view(session, summarised):
    both = view(*session)
    page.comparison(both, 1)
    for told in (
        terminal.comparison,
        json_report.comparisons,
        markdown.comparison,
        github_actions.summary,
    ):
        told(both.rows, rule=both.rule, code=1)
    both.arms.unfinished()
    exports.export(session, "junit", both)
    assert sorted(summarised) == sorted(c.key for f in session for c in f.header.planned)


# ------------------------------------------------------------------------------ beside speed


@pytest.fixture(scope="module")
def judged():
    """An A/B whose candidate needs more memory, and answers otherwise."""
    wrong = test_metrics.answering(range(80))
    words = ["memory", "accuracy", "agreement", "size"]
    return view(*test_metrics.arms(words, candidate=wrong, memory=1.2))


def test_a_headline_joins_what_became_worse_of_one_cell(judged):
    said = sections_compare.headline(judged.rows, judged.rule)
    assert re.fullmatch(
        r"REGRESSED: 3 of 5 verdicts are worse, most of all torch-eager fp32 b1 x1 latency: "
        r"20\.\d+ % \[[\d., ]+\] more host memory, 8\.0 points \[[\d., ]+\] less accurate and "
        r"80 of 1,000 answers changed",
        said,
    )
    slow = row("x", "REGRESSED", 0.051, 0.008)
    few = test_metrics.found(["accuracy"], candidate=test_metrics.answering((1, 5, 9)))["accuracy"]
    alone = replace(row("x", "INCONCLUSIVE", -0.05), low=None, high=None)
    assert sections_compare.phrase(alone) == "5.0 % faster (undecided)"
    both = [slow, replace(few, key=slow.key, label="x")]
    assert sections_compare.headline(both, RULE) == (
        "REGRESSED: 1 of 2 verdicts is worse: x: 5.1 % [4.3, 5.9] slower and 3 of 1,000 answers "
        "changed (undecided)"
    )


def test_every_format_names_the_metric(judged):
    rows, rule = judged.rows, judged.rule
    head = ["verdict", "cell", "metric", "baseline", "candidate", "effect", "pairs"]
    made = plain(terminal.comparison(rows, rule=rule), 130)
    assert any(line.split()[:7] == head for line in made.splitlines())
    assert "accuracy \u00b10.5 points" in " ".join(made.split())
    assert "more in 19 of 19 pairs" in made
    assert "| REGRESSED | torch-eager fp32 b1 x1 latency | accuracy |" in markdown.comparison(rows)
    assert sum("latency%2C accuracy::" in line for line in github_actions.commands(rows)) == 1
    cases = re.findall(b'testcase name="([^"]+)"', exports.export(
        test_metrics.arms(["size"]), "junit", judged)[""])  # fmt: skip
    assert len(set(cases)) == len(cases) == 5
    assert json.loads(json_report.comparisons(rows))["comparisons"][1]["judged"] != "speed"
    assert "metric" in page.comparison(judged)
    assert "each within its margin" in made
    assert [p["row"] for p in charts_compare.forest(rows, rule)["points"]] == [rows[0].label]
