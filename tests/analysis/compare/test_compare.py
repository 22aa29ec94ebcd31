"""Two stored runs; the arms of an interleaved A/B are in test_interleaved.py."""

from collections import Counter

import numpy as np
import pytest
from msgspec import json
from msgspec.structs import replace

from gpubench.analysis import stats
from gpubench.analysis.compare import aa_history, compare
from gpubench.analysis.compare.verdicts import CODES, UNSTEADY, caveat, exit_code
from gpubench.analysis.summary import summarise
from gpubench.errors import InputError
from gpubench.machine import environment
from gpubench.records.record import FLAGS, Record, RecordFile
from gpubench.suite.types import Policy
from tests.report import make, make_pairs

CELLS = make.grid(backends=("torch-eager", "openvino"), batches=(1,), replicas=(1,))
QUIET = make_pairs.sessions(CELLS, aa_history.ENOUGH, sd=0.002)
"""A history in which sessions hardly differ."""
LOUD = make_pairs.sessions(CELLS, aa_history.ENOUGH, sd=0.08)


def run(seed: int, factor: float = 1.0, repeats: int = 12, **changes) -> RecordFile:
    changes = {"run_id": f"run-{seed}-{factor}", **changes}
    return make.run(CELLS, seed=seed, factor=factor, repeats=repeats, samples=40, **changes)


def verdicts(*args, **kwargs) -> list[str]:
    found = compare.compare(*args, **kwargs)
    assert all(c.code in CODES and c.reason for c in found)
    return [c.verdict for c in found]


# ------------------------------------------------------------------------------ with a history


def test_a_clear_slowdown_is_a_regression_in_both_scenarios():
    found = compare.compare(run(1), run(2, 1.3), history=QUIET)
    assert [(c.verdict, c.code) for c in found] == [("REGRESSED", "beyond-history")] * len(CELLS)
    assert {c.metric for c in found} == {"p50 [ns]", "images/s"}
    for c in found:
        wanted = 1.3 if c.metric == "p50 [ns]" else 1 / 1.3
        assert c.ratio == pytest.approx(wanted, rel=0.03)
        assert c.candidate == pytest.approx(c.baseline * c.ratio)
        assert c.low < c.ratio < c.high
        assert c.n == (12, 12)
        assert c.p < 0.01
        assert c.smallest_detectable < 0.3
        assert "8 A/A sessions" in c.reason
    assert exit_code(found) == 1
    assert caveat(found)


def test_a_clear_gain_is_an_improvement_and_passes():
    found = compare.compare(run(1, 1.3), run(2), history=QUIET)
    assert {c.verdict for c in found} == {"IMPROVED"}
    assert exit_code(found) == 0


def test_what_sessions_of_unchanged_code_do_is_no_alarm():
    found = compare.compare(run(1), run(2, 1.15), history=LOUD)
    assert {c.verdict for c in found} == {"INCONCLUSIVE"}
    assert {c.code for c in found} == {"wide-interval"}
    assert all(c.smallest_detectable > 0.3 for c in found)


def test_an_alarm_needs_more_than_the_largest_difference_of_unchanged_code():
    odd = make_pairs.sessions(CELLS, 1, sd=0, effect=0.35, name="odd")
    steady = make_pairs.sessions(CELLS, 150, sd=0.001)
    assert set(verdicts(run(1), run(2, 1.3), history=steady)) == {"REGRESSED"}
    found = compare.compare(run(1), run(2, 1.3), history=[*steady, *odd])
    assert {(c.verdict, c.code) for c in found} == {("INCONCLUSIVE", "within-history")}
    assert "slower by" in found[0].reason
    assert set(verdicts(run(1), run(2, 1.6), history=[*steady, *odd])) == {"REGRESSED"}


def test_with_a_history_equivalence_needs_its_wider_interval():
    base, candidate = run(1, repeats=40), run(2, repeats=40)
    free = compare.compare(base, candidate)
    assert {c.verdict for c in free} == {"EQUIVALENT"}
    assert all("what other sessions do is unknown" in c.reason for c in free)
    loud = compare.compare(base, candidate, history=LOUD)
    assert {c.verdict for c in loud} == {"INCONCLUSIVE"}
    for a, b in zip(free, loud, strict=True):
        assert b.low < a.low < a.high < b.high
        assert (a.ratio, a.smallest_detectable) == (b.ratio, None)
    alike = make_pairs.sessions(CELLS, 30, sd=0.001, within=0.001)
    assert set(verdicts(base, candidate, history=alike)) == {"EQUIVALENT"}


@pytest.mark.parametrize("change", [{"fingerprint": "beef"}, {"pairing": True}])
def test_a_history_of_something_else_does_not_count(change):
    if "pairing" in change:
        change = {"pairing": make_pairs.arms(CELLS, 2)[0].header.pairing}
    other = [replace(f, header=replace(f.header, **change)) for f in QUIET]
    found = compare.compare(run(1), run(2, 1.3), history=other)
    assert {c.code for c in found} == {"no-history"}


def test_neither_the_two_runs_nor_a_copy_count_as_history():
    short = QUIET[1:]
    base, candidate = run(1), run(2, 1.3)
    for extra in ([base], [candidate], [short[0]]):
        found = compare.compare(base, candidate, history=[*short, *extra])
        assert {c.code for c in found} == {"no-history"}
    assert set(verdicts(base, candidate, history=[*short, run(3)])) == {"REGRESSED"}


def test_each_cell_has_its_own_history():
    half = make_pairs.sessions(CELLS[:1], aa_history.ENOUGH, sd=0.002)
    found = compare.compare(run(1), run(2, 1.3), history=half)
    assert [c.verdict for c in found] == ["REGRESSED"] + ["INCONCLUSIVE"] * (len(CELLS) - 1)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("sd", [0.01, 0.03])
def test_false_alarms_of_the_history_rule_stay_below_alpha(sd, heavy):
    """2,000 comparisons of a suite of four cells, 200 histories x 10; alpha 1 % of the suite.

    Heavy tails are Student's t with three degrees of freedom: no bound holds for these, so they
    may cost five times as much.
    """
    cells = [make.cell(batch_size=n) for n in (1, 2, 4, 8)]
    alarms = 0
    for seed in range(200):
        files = make_pairs.sessions(cells, aa_history.ENOUGH + 20, sd, seed, heavy=heavy)
        limits = aa_history.limits(aa_history.by_cell(files[: aa_history.ENOUGH]))
        with pytest.MonkeyPatch.context() as patch:  # they are the same for ten comparisons
            patch.setattr(aa_history, "limits", lambda _, found=limits: found)
            for n in range(aa_history.ENOUGH, aa_history.ENOUGH + 20, 2):
                found = compare.compare(files[n], files[n + 1])
                alarms += any(c.verdict in ("REGRESSED", "IMPROVED") for c in found)
    assert alarms <= 2000 * 0.01 * (5 if heavy else 1)


# ------------------------------------------------------------------------------ without one


def test_without_a_history_a_slowdown_is_a_warning_at_most():
    for factor, words in ((1.3, "warning: looks slower by 30"), (1 / 1.3, "warning: looks faster")):
        found = compare.compare(run(1), run(2, factor), history=QUIET[1:])
        assert {(c.verdict, c.code) for c in found} == {("INCONCLUSIVE", "no-history")}
        assert all(c.reason.startswith(words[:22]) for c in found)
        assert all(c.reason.endswith("7 of the 8 A/A sessions needed") for c in found)
        assert all(c.p is None and c.smallest_detectable is None for c in found)
        assert exit_code(found) == 3


def test_the_same_file_is_equivalent():
    found = compare.compare(run(1), run(1))
    assert {(c.verdict, c.code) for c in found} == {("EQUIVALENT", "inside-margin")}
    assert all(c.ratio == pytest.approx(1) for c in found)


def test_two_sets_of_the_same_machine_never_alarm():
    seen = Counter(v for seed in range(40) for v in verdicts(run(seed), run(1000 + seed)))
    assert set(seen) == {"EQUIVALENT", "INCONCLUSIVE"}


def test_noise_is_inconclusive_not_a_pass():
    rng = np.random.default_rng(0)

    def noisy() -> RecordFile:
        records = [make.record(c, n, rng, launch=0.2, samples=40) for n in range(3) for c in CELLS]
        return RecordFile("x", make.header(CELLS), records)

    found = compare.compare(noisy(), noisy())
    assert {(c.verdict, c.code) for c in found} == {("INCONCLUSIVE", "wide-interval")}
    assert exit_code(found) == 3


def test_one_repeat_is_never_enough():
    for history in ((), QUIET):
        found = compare.compare(run(1, repeats=1), run(2, 3.0), history=history)
        assert {(c.verdict, c.code) for c in found} == {("INCONCLUSIVE", "few-repeats")}
        assert "1 repeat in the baseline" in found[0].reason


@pytest.mark.parametrize(
    ("flag", "code"),
    [("DRIFT", "unsteady"), ("FEW-SAMPLES", "unsteady"), ("THROTTLED", "invalid-machine")],
)
def test_what_is_flagged_in_most_repeats_gets_no_verdict(flag, code):
    """One flagged repeat forbids nothing."""
    assert set(UNSTEADY) <= set(FLAGS)
    base, candidate = run(1), run(2, 1.5)
    once = [replace(r, flags=[flag]) if not r.repeat else r for r in candidate.records]
    odd = compare.compare(base, replace(candidate, records=once), history=QUIET)
    assert {c.verdict for c in odd} == {"REGRESSED"}
    shaky = replace(candidate, records=[
        replace(r, flags=[flag], replicas=[replace(s, durations_ns=s.durations_ns[:4])
                                           for s in r.replicas]) for r in candidate.records
    ])  # fmt: skip
    for other in (shaky, replace(base, records=shaky.records)):
        found = compare.compare(base, other, history=QUIET)
        assert {(c.verdict, c.code) for c in found} == {("INCONCLUSIVE", code)}


def test_after_a_second_stage_the_spread_is_that_of_the_pilot():
    policy = Policy(repeats=3, max_repeats=12)
    staged = [make.run(CELLS, seed=s, repeats=12, samples=40, policy=policy) for s in (1, 2)]
    sides = [summarise([file]) for file in staged]
    for row, b, c in zip(compare.compare(*staged), *sides, strict=True):
        values = list(b.values.values()), list(c.values.values())
        assert row.low == pytest.approx(stats.welch(*values, (3, 3)).estimate().low, rel=1e-12)
        assert row.low != pytest.approx(stats.welch(*values).estimate().low, rel=1e-6)


def test_another_machine_is_incomparable_unless_allowed():
    base = run(1)
    libraries = base.header.environment["libraries"]
    changed = {"commit": "other", "libraries": libraries | {"torch": "3"}}
    other = run(1, fingerprint="beef", environment=base.header.environment | changed)
    found = compare.compare(base, other, history=QUIET)
    assert {(c.verdict, c.code) for c in found} == {("INCOMPARABLE", "different-machine")}
    torch = libraries["torch"]  # a commit is what one compares
    assert found[0].reason == f"differs: libraries.torch {torch} -> 3"
    assert exit_code(found) == 3
    for allowed in ("libraries.torch", "libraries"):
        assert set(verdicts(base, other, allow_different=[allowed])) == {"EQUIVALENT"}
    assert set(verdicts(base, other, allow_different=["libraries.tor"])) == {"INCOMPARABLE"}


@pytest.mark.parametrize("name", ["lib", "", "librarys.torch"])
def test_a_name_that_no_environment_has_cannot_be_allowed(name):
    with pytest.raises(InputError, match="no such part of the environment; expected one of cpu"):
        compare.compare(run(1), run(2), allow_different=[name])


def test_machines_of_a_run_are_compared_by_rank():
    one = run(1).header.environment
    two = one | {"libraries": one["libraries"] | {"torch": "3"}}

    def told(*nodes, **options):
        print_ = environment.fingerprint_of(nodes)
        other = run(1, fingerprint=print_, environment=nodes[0], nodes=list(nodes))
        base = run(1, fingerprint=environment.fingerprint_of([one, one]), nodes=[one, one])
        return compare.machine_differences(base, other, **options)

    torch = one["libraries"]["torch"]
    assert told(one, one) == []
    assert told(one, two) == [f"node 1: libraries.torch {torch} -> 3"]
    assert told(one, two, allow_different=["libraries"]) == []
    assert told(one, one, one) == ["machines 2 -> 3"]


def test_a_fingerprint_that_nothing_explains_is_said():
    [words] = compare.machine_differences(run(1), run(1, fingerprint="beef"))
    assert "-> beef, though no entry" in words


# ------------------------------------------------------------------------------ holes


def test_cells_on_one_side_only_are_missing_either_way():
    base = run(1)
    half = make.run(CELLS[:1], seed=2, repeats=12, samples=40)
    for pair in ((base, half), (half, base)):
        found = compare.compare(*pair, history=QUIET)
        assert [c.verdict for c in found].count("MISSING") == len(CELLS) - 1
        assert {c.code for c in found if c.verdict == "MISSING"} == {"not-planned"}
        assert exit_code(found) == 4


def test_a_cell_of_the_same_name_that_differs_unseen():
    runs = [make.run([make.cell(images=images)], samples=5) for images in ("a", "b")]
    assert {c.reason for c in compare.compare(*runs)} == {
        f"{side}: not planned; the one that reads the same there differs in images"
        for side in ("baseline", "candidate")
    }


def lame(file: RecordFile, **changes) -> RecordFile:
    """Its first cell has a single record, and that is no result."""
    dead = Record(**{"cell": CELLS[0], "repeat": 0, "status": "failed", **changes})
    return replace(file, records=[*(r for r in file.records if r.cell != CELLS[0]), dead])


def test_what_has_no_result_is_missing_with_its_reason():
    good = run(1)
    crashed = lame(run(2), kind="crash", reason="signal 11")
    skipped = lame(run(2), status="unavailable", reason="no GPU")
    lost = replace(good, records=[r for r in good.records if r.cell != CELLS[0]])
    for base, candidate, code, reason in (
        (good, crashed, "failed", "candidate: failed: crash (signal 11)"),
        (crashed, good, "failed", "baseline: failed: crash (signal 11)"),
        (good, skipped, "skipped", "candidate: unavailable (no GPU)"),
        (skipped, crashed, "failed",
         "baseline: unavailable (no GPU); candidate: failed: crash (signal 11)"),
        (good, lost, "no-record", "candidate: no record"),
    ):  # fmt: skip
        found = compare.compare(base, candidate)
        assert (found[0].verdict, found[0].code, found[0].reason) == ("MISSING", code, reason)
        assert exit_code(found) == 4
    twice = compare.compare(crashed, crashed)
    assert (twice[0].verdict, twice[0].code) == ("MISSING", "failed")
    assert len(twice) == len(CELLS)


def test_a_repeat_that_broke_is_no_pass():
    base, candidate = run(1), run(2)
    dead = Record(cell=CELLS[0], repeat=11, status="failed", kind="timeout")
    torn = [r for r in candidate.records if (r.cell, r.repeat) != (CELLS[0], 11)]
    found = compare.compare(base, replace(candidate, records=[*torn, dead]))
    assert (found[0].verdict, found[0].code) == ("MISSING", "failed")
    assert found[0].reason.startswith("candidate: 1 of 12 failed: timeout")
    assert found[0].ratio
    slow = run(2, 1.5)
    torn = [r for r in slow.records if (r.cell, r.repeat) != (CELLS[0], 11)]
    found = compare.compare(base, replace(slow, records=[*torn, dead]), history=QUIET)
    assert found[0].verdict == "REGRESSED"
    assert "1 of 12 failed" in found[0].reason


def test_replicas_that_never_ran_together_are_missing_and_say_so():
    base = make.run([make.cell(scenario="throughput", replicas=2)], samples=40)
    apart = [
        replace(r, flags=["NO-COMMON-WINDOW"], replicas=[
            replace(s, start_ns=n * make.S, end_ns=(n + 1) * make.S)
            for n, s in enumerate(r.replicas)])
        for r in base.records
    ]  # fmt: skip
    found = compare.compare(base, replace(base, records=apart))
    assert [(c.verdict, c.code) for c in found] == [("MISSING", "no-value")]
    assert found[0].reason == "candidate: no value: NO-COMMON-WINDOW"


def test_wrong_answers_are_missing_however_fast():
    base, candidate = run(1), run(2, 0.5)
    wrong = [replace(r, status="failed", kind="parity") for r in candidate.records]
    assert set(verdicts(base, replace(candidate, records=wrong), history=QUIET)) == {"MISSING"}


def test_skips_on_both_sides_are_left_out():
    skip = Record(cell=CELLS[0], repeat=0, status="unavailable", reason="no GPU", remedy="buy one")
    file = RecordFile("x", make.header(CELLS[:1]), [skip])
    assert compare.compare(file, file) == []


# ------------------------------------------------------------------------------ the rest


def test_verdicts_are_deterministic_to_the_byte():
    def made() -> bytes:
        return json.encode(compare.compare(run(1), run(2, 1.03), history=LOUD[::-1] + QUIET))

    assert made() == made()


def test_a_wider_margin_forgives():
    assert set(verdicts(run(1), run(2, 1.1), delta=0.3, history=QUIET)) == {"EQUIVALENT"}
