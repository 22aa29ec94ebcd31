"""The arms of an interleaved A/B through `compare`."""

import math
import re
from statistics import median

import pytest
from msgspec import json
from msgspec.structs import replace

from gpubench.analysis import stats
from gpubench.analysis.compare import paired, sequential_test
from gpubench.analysis.compare.compare import compare, view
from gpubench.analysis.compare.paired import pair_of
from gpubench.analysis.compare.verdicts import CODES, Comparison, caveat, exit_code
from gpubench.analysis.summary import summarise
from gpubench.errors import InputError
from gpubench.records.record import Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.suite.types import Rule
from tests.report import make, make_pairs
from tests.report.make_pairs import arms

CELLS = make.grid(backends=("torch-eager", "openvino"), batches=(1,), replicas=(1,))
EAGER, OTHER = make.cell(), make.cell(backend="onnxruntime")


def judged(*args, **kwargs) -> list[Comparison]:
    found = compare(*arms(*args, **kwargs))
    assert all(c.code in CODES and c.reason for c in found)
    return found


# ------------------------------------------------------------------------------ verdicts


def test_identical_arms_are_equivalent_in_both_scenarios():
    found = judged(CELLS)
    assert [(c.verdict, c.code) for c in found] == [("EQUIVALENT", "inside-margin")] * len(CELLS)
    assert [c.label for c in found] == [c.label for c in CELLS]
    assert exit_code(found) == 0
    assert caveat(found) == ""


def test_a_slowdown_is_confirmed_and_every_field_is_filled():
    files = arms(CELLS, effect={1: 0.08}, sd=0.015)
    found = compare(*files)
    assert [c.verdict for c in found].count("REGRESSED") == 1
    assert exit_code(found) == 1
    row, d = found[1], differences(*files, CELLS[1])
    assert len(d) >= 9
    assert (row.pairs, row.n) == (len(d), (len(d), len(d)))
    assert row.ratio == pytest.approx(math.exp(sequential_test.shift(tuple(d)).value))
    assert row.ratio == pytest.approx(1.08, abs=0.02)
    assert row.candidate == pytest.approx(row.baseline * row.ratio, rel=0.02)  # two medians
    assert row.low < row.ratio < row.high
    assert row.pair_sd == pytest.approx(0.015, rel=0.5)
    assert row.p < 0.01
    assert 0.02 < row.smallest_detectable < 0.1
    assert (row.code, row.baseline_key, row.metric) == ("confirmed", "", "p50 [ns]")
    assert row.key == CELLS[1].key


def differences(base: RecordFile, candidate: RecordFile, cell) -> list[float]:
    before = {r.repeat: r for r in base.records if r.cell == cell}
    after = (r for r in candidate.records if r.cell == cell and r.repeat in before)
    return [pair_of(before[r.repeat], r).d for r in after]


def test_throughput_is_shown_as_images_per_second():
    cell = make.cell(scenario="throughput", batch_size=4)
    row = judged([cell], effect=0.25)[0]
    assert (row.verdict, row.metric) == ("REGRESSED", "images/s")
    assert row.ratio == pytest.approx(1 / 1.25, rel=0.02)
    assert row.low < row.ratio < row.high
    assert row.baseline == pytest.approx(4e9 / make.batch_ns(cell), rel=0.1)
    assert judged([cell], effect=-0.2)[0].verdict == "IMPROVED"


def test_the_numbers_are_those_of_the_pairs_that_were_judged():
    files = arms([EAGER], 13, sd=0.005, seed=3)  # seven were enough, no later one counts
    row, d = compare(*files)[0], differences(*files, EAGER)
    assert (row.verdict, row.pairs, len(d)) == ("EQUIVALENT", 7, 13)
    assert row.ratio == pytest.approx(math.exp(sequential_test.shift(tuple(d[:7])).value))


def test_the_rule_is_the_sessions_own():
    files = arms([EAGER], effect=0.06, rule=Rule(delta=0.1))
    assert compare(*files)[0].verdict == "EQUIVALENT"
    assert compare(*files, delta=0.1, alpha=0.01)[0].verdict == "EQUIVALENT"
    with pytest.raises(InputError, match=r"delta 0\.02: this A/B was measured for 0\.1"):
        compare(*files, delta=0.02)
    with pytest.raises(InputError, match=r"alpha 0\.05"):
        compare(*files, alpha=0.05)


def test_environments_that_differ_on_purpose_are_no_obstacle():
    other = {"fingerprint": "beef", "environment": {"libraries": {"torch": "3"}}}
    assert {c.verdict for c in judged(CELLS, candidate=other)} == {"EQUIVALENT"}


def test_arms_of_two_sessions_are_two_stored_runs():
    first, _ = arms(CELLS, 8)
    _, second = arms(CELLS, 8, session="another", seed=1)
    found = compare(first, second)
    assert caveat(found)
    assert all(c.pairs == 0 for c in found)


def test_verdicts_are_deterministic_to_the_byte_and_free_of_record_order():
    base, candidate = arms(CELLS, effect=0.05, sd=0.03)
    made = json.encode(compare(base, candidate))
    assert json.encode(compare(*arms(CELLS, effect=0.05, sd=0.03))) == made
    back = sorted(candidate.records, key=lambda r: r.repeat)
    assert json.encode(compare(base, replace(candidate, records=back))) == made


@pytest.mark.parametrize("turn", [False, True])
def test_arms_that_do_not_fit_together_are_input_errors(turn):
    base, candidate = arms(CELLS, 2)
    with pytest.raises(InputError, match="baseline first"):
        compare(candidate, base) if turn else compare(base, base)
    short = replace(candidate.header, planned=CELLS[:1])
    with pytest.raises(InputError, match="plan 4 and 1 cells: measure again"):
        compare(base, replace(candidate, header=short))
    pairing = replace(candidate.header.pairing, rule=Rule(delta=0.5))
    with pytest.raises(InputError, match="by different rules"):
        compare(base, replace(candidate, header=replace(candidate.header, pairing=pairing)))


@pytest.mark.parametrize(
    ("differs", "backend", "built"),
    [
        (("python=a", "python=b"), "onnxruntime", True),
        (("backend=onnxruntime,ref=main (12)", "nothing"), "onnxruntime", True),
        (("backend=onnxruntime", "backend=tensorrt"), "tensorrt", True),
        (("backend=onnxruntime", "backend=openvino"), "openvino", False),
    ],
)
def test_one_build_of_each_arm_is_said_where_a_second_could_differ(differs, backend, built):
    cells = [(OTHER, make.cell(backend=backend))]
    changed = compare(*arms(cells, effect=0.1, differs=differs))[0]
    assert changed.verdict in ("REGRESSED", "IMPROVED")
    assert changed.reason.endswith(paired.ONE_BUILD) == built
    assert paired.ONE_BUILD not in compare(*arms([OTHER], differs=differs))[0].reason


# ------------------------------------------------------------------------------ what stands against


def test_a_side_without_a_result_is_missing_with_its_reason():
    def crash(r: Record, arm: str) -> Record:
        if arm == "baseline" or r.cell != CELLS[0]:
            return r
        return replace(r, status="failed", kind="crash", reason="signal 11", replicas=[], again=[])

    found = judged(CELLS, 13, change=crash)
    assert (found[0].verdict, found[0].code) == ("MISSING", "failed")
    assert found[0].reason == "candidate: failed: crash (signal 11)"
    assert {c.verdict for c in found[1:]} == {"EQUIVALENT"}
    assert exit_code(found) == 4


def skip(cell, **changes) -> Record:
    return Record(cell=cell, repeat=0, status="unsupported", reason="no bf16", **changes)


def test_a_skip_in_one_arm_is_missing_in_both_it_is_left_out():
    base, candidate = arms(CELLS, 8)
    rest = [[r for r in f.records if r.cell != CELLS[0]] for f in (base, candidate)]
    one = compare(replace(base, records=rest[0]),
                  replace(candidate, records=[*rest[1], skip(CELLS[0])]))  # fmt: skip
    assert (one[0].verdict, one[0].code) == ("MISSING", "skipped")
    assert one[0].reason == "baseline: no record; candidate: unsupported (no bf16)"
    both = compare(*(replace(f, records=[*r, skip(CELLS[0])])
                     for f, r in zip((base, candidate), rest, strict=True)))  # fmt: skip
    assert [c.key for c in both] == [c.key for c in CELLS[1:]]
    gone = compare(*(replace(f, records=r) for f, r in zip((base, candidate), rest, strict=True)))
    assert (gone[0].verdict, gone[0].code) == ("MISSING", "no-record")


def test_a_process_that_broke_once_is_no_pass():
    def broken(r: Record, arm: str) -> Record:
        if arm == "candidate" and r.repeat == 7:
            return replace(r, status="failed", kind="timeout", replicas=[], again=[])
        return r

    row = judged([EAGER], 8, change=broken)[0]
    assert (row.verdict, row.code) == ("MISSING", "failed")
    assert row.reason.startswith("candidate: 1 of 8 failed: timeout")
    slow = judged([EAGER], 22, effect=0.2, change=broken)[0]
    assert slow.verdict == "REGRESSED"
    assert "1 of 22 failed" in slow.reason


def test_a_pair_of_which_one_arm_is_lost_is_no_pair():
    row = judged([EAGER], 12, change=lambda r, a: None if (a, r.repeat) == ("baseline", 3) else r)[
        0
    ]
    assert row.pairs == 7
    assert row.ratio == pytest.approx(1, abs=0.02)
    lost = judged([EAGER], 8, sd=0.05, change=lambda r, a: None if r.repeat == 3 else r)[0]
    assert lost.pairs == 7
    few = judged([EAGER], 12, change=lambda r, a: r if a == "baseline" or not r.repeat else None)[0]
    assert (few.verdict, few.code, few.pairs) == ("INCONCLUSIVE", "few-pairs", 1)
    assert few.ratio == pytest.approx(1, abs=0.05)
    assert few.low is None
    none = judged(
        [EAGER], 4, change=lambda r, a: r if (a == "baseline") == (r.repeat < 2) else None
    )
    assert (none[0].verdict, none[0].code, none[0].ratio) == ("INCONCLUSIVE", "few-pairs", None)


@pytest.mark.parametrize("flag", ["THROTTLED", "CO-TENANT", "BUSY-WHILE-IDLE"])
@pytest.mark.parametrize("effect", [0.0, 0.3])
def test_outside_evidence_in_many_pairs_forbids_a_verdict(flag, effect):
    def mark(share: int):
        return lambda r, a: (
            replace(r, flags=[flag]) if a == "baseline" and r.repeat % share == 0 else r
        )

    row = judged([EAGER], effect=effect, change=mark(2))[0]
    assert (row.verdict, row.code) == ("INCONCLUSIVE", "invalid-machine")
    assert re.search(rf"{flag} in 5\d % of the pairs", row.reason)
    free = judged([EAGER], effect=effect, change=mark(10))[0]
    assert free.verdict == ("REGRESSED" if effect else "EQUIVALENT")


def test_replicas_that_ran_apart_are_no_pairs():
    cell = make.cell(scenario="throughput", replicas=2)

    def apart(r: Record, arm: str) -> Record:
        moved = [replace(s, start_ns=n * 9 * make.S, end_ns=n * 9 * make.S + s.end_ns)
                 for n, s in enumerate(r.replicas)]  # fmt: skip
        return replace(r, replicas=moved, again=[], flags=["NO-COMMON-WINDOW"])

    some = judged([cell], 9, change=lambda r, a: apart(r, a) if r.repeat % 3 == 0 else r)[0]
    assert (some.pairs, some.code) == (6, "invalid-machine")
    every = judged([cell], 8, change=apart)[0]
    assert (every.verdict, every.code) == ("MISSING", "no-value")


def test_processes_that_are_not_steady_are_never_equivalent():
    drifting = judged([EAGER], 12, trends=(0.0, 0.03))[0]
    assert (drifting.verdict, drifting.code) == ("INCONCLUSIVE", "not-steady")
    flagged = judged([EAGER], 12, change=lambda r, a: replace(r, flags=["NO-STEADY-STATE"]))[0]
    assert flagged.code == "not-steady"

    # noise that grows around one level, which no flag shows
    def louder(r: Record, arm: str) -> Record:
        def spread(s: Samples) -> Samples:
            level = median(s.durations_ns)
            return replace(s, durations_ns=[round(level + 9 * (d - level)) for d in s.durations_ns])

        return replace(r, again=[spread(s) for s in r.again]) if arm == "candidate" else r

    growing = judged([EAGER], 12, change=louder)[0]
    assert (growing.verdict, growing.code) == ("INCONCLUSIVE", "not-steady")
    assert growing.reason.startswith("the candidate's spread moves by +")
    # a drift within one turn, where a process has only one
    rising = judged([EAGER], 12, turns=1, change=lambda r, a: replace(r, replicas=[
        replace(s, durations_ns=sorted(s.durations_ns)) for s in r.replicas]))[0]  # fmt: skip
    assert rising.code == "not-steady"


# ------------------------------------------------------------------------------ pairs


def test_a_pair_is_exactly_what_was_drawn():
    for turns in (1, 2):
        base, candidate = arms([EAGER], 1, effect=0.07, sd=0.0, turns=turns)
        pair = pair_of(base.records[0], candidate.records[0])
        assert pair.d == pytest.approx(math.log(1.07), abs=1e-6)
        assert pair.trends == pytest.approx((0, 0), abs=1e-6)
        assert not pair.unsteady


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_a_trend_is_the_second_turn_against_the_first(scenario):
    cell = make.cell(scenario=scenario, replicas=2)
    base, candidate = arms([cell], 1, trends=(0.04, -0.02), sd=0.0)
    pair = pair_of(base.records[0], candidate.records[0])
    assert pair.trends == pytest.approx((0.04, -0.02), abs=1e-6)
    assert pair.d == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_of_many_turns_the_second_half_is_held_against_the_first(scenario):
    """And the pair's difference is that of the medians of all samples."""
    cell = make.cell(scenario=scenario, replicas=2)
    both = []
    for costs in ((1.0, 1.0, 1.0, 1.0, 1.5, 1.5), (1.1, 1.1, 1.1, 1.1, 1.1, 3.3)):
        first, *later = (make_pairs.turn(cell, cost, 11) for cost in costs)
        again = [one for turn in later for one in turn]
        both.append(Record(cell=cell, repeat=0, status="ok", replicas=first, again=again))
    pair = pair_of(*both)
    early, late = ((1.0, 1.1), (1.5, 1.1))
    if scenario == "throughput":
        early, late = ((1.0, 1.1), (4 / 3, 5.5 / 3))
    expected = [math.log(b / a) for a, b in zip(early, late, strict=True)]
    assert pair.trends == pytest.approx(expected, abs=0.02)
    if scenario == "latency":
        assert pair.d == pytest.approx(math.log(1.1), abs=0.015)


def test_a_pair_needs_two_good_records_with_a_value():
    base, candidate = (f.records[0] for f in arms([EAGER], 1))
    assert pair_of(replace(base, status="failed"), candidate) is None
    assert pair_of(base, replace(candidate, replicas=[], again=[])) is None
    assert pair_of(base, replace(candidate, flags=["DRIFT"])).unsteady
    few = replace(base.replicas[0], durations_ns=base.replicas[0].durations_ns[:1])
    lone = replace(base, replicas=[few], again=[])
    assert pair_of(lone, candidate).trends[0] == 0.0


# ------------------------------------------------------------------------------ two cells


def test_two_backends_are_labelled_by_what_differs():
    found = judged([(EAGER, OTHER)], effect=0.1)
    assert found[0].label == "torch-eager -> onnxruntime fp32 b1 x1 latency"
    assert (found[0].key, found[0].baseline_key) == (OTHER.key, EAGER.key)


@pytest.mark.parametrize(
    ("old", "new", "label"),
    [
        ({}, {}, "torch-eager fp32 b1 x1 latency"),
        ({"precision": "bf16", "boundary": "transfer"}, {},
         "torch-eager bf16 -> fp32 b1 x1 latency transfer -> compute"),
        ({"options": {"a": 1, "b": 2}}, {"options": {"a": 3, "b": 2, "c": True}},
         "torch-eager fp32 b1 x1 latency a=1 -> 3 b=2 c=unset -> True"),
        ({"options": {"a": 1}}, {"backend": "openvino", "options": {"hint": "latency"}},
         "torch-eager (a=1) -> openvino (hint=latency) fp32 b1 x1 latency"),
        ({"boundary": "transfer"}, {"boundary": "transfer", "model": "resnet50"},
         "torch-eager fp32 b1 x1 latency transfer (model resnet18 -> resnet50)"),
        ({"device": "cpu"}, {"device": "cuda", "cores": 0, "batch_size": 8},
         "torch-eager fp32 b1 -> b8 x1 latency (device cpu -> cuda, cores 1 -> 0)"),
        ({"dispatch": "static"}, {"replicas_per_device": 2},
         "torch-eager fp32 b1 x1 1/device -> 2/device latency static -> independent"),
        ({"boundary": "transfer"}, {"boundary": "transfer", "input": "uint8"},
         "torch-eager fp32 b1 x1 latency transfer float32 input -> uint8 input"),
        ({"dispatch": "static"}, {"dispatch": "static", "backend": "openvino"},
         "torch-eager -> openvino fp32 b1 x1 latency static"),
    ],
)  # fmt: skip
def test_labels(old, new, label):
    assert paired.label(make.cell(**old), make.cell(**new)) == label


def test_latencies_of_two_batch_sizes_are_compared_by_images_per_second():
    small, large = make.cell(), make.cell(batch_size=8)
    row = judged([(small, large)])[0]
    assert row.metric == "images/s (batch sizes differ)"
    wanted = 8 * make.batch_ns(small) / make.batch_ns(large)
    assert row.ratio == pytest.approx(wanted, rel=0.02)
    assert row.verdict == "IMPROVED"  # although every batch takes longer
    other = judged([(small, make.cell(scenario="throughput"))], 8)[0]
    assert other.metric == "images/s (scenarios differ)"
    assert other.ratio == pytest.approx(1, rel=0.02)
    double = judged([(small, make.cell(replicas=2))], 8)[0]
    assert double.metric == "p50 [ns]"
    assert double.ratio == pytest.approx(1.04, rel=0.02)


def test_a_machine_that_spoilt_the_pairs_outweighs_a_regression_with_failures():
    def change(r: Record, arm: str) -> Record:
        if arm == "candidate" and r.repeat == 1:
            return replace(r, status="failed", kind="crash", replicas=[], again=[])
        return replace(r, flags=["THROTTLED"])

    row = judged([EAGER], effect=0.3, change=change)[0]
    assert (row.verdict, row.code) == ("INCONCLUSIVE", "invalid-machine")
    assert "crash" in row.reason


def test_the_ratio_is_the_verdicts_own_estimate():
    for c in (EAGER, make.cell(scenario="throughput")):
        base, candidate = arms([c], effect=0.1)
        row = compare(base, candidate)[0]
        assert row.interleaved
        assert row.low < row.ratio < row.high
        both = [[r.value() for r in f.records][: row.pairs] for f in (base, candidate)]
        assert [row.baseline, row.candidate] == [
            pytest.approx(math.exp(median(map(math.log, v)))) for v in both
        ]


def test_an_arm_has_no_pilot():
    file, _ = arms([EAGER], 12)
    [s] = summarise([file])
    assert s.pilot == 0
    assert s.p50 == stats.geometric_mean(list(s.medians.values()))
    narrow = replace(s.policy, repeats=5, max_repeats=20, target_half_width=1e-9)
    assert not replace(s, policy=narrow).wide
    assert replace(s, policy=narrow, arm=False).wide


def unfinished(base, candidate):
    arms = view(base, candidate).arms
    assert arms
    return arms.unfinished()


def test_what_would_decide_the_open_cells_is_counted_and_said():
    assert unfinished(*arms([EAGER], 12)) == (0, 0.0)

    def slow(r, arm):
        return replace(r, wall_s=60 if r.cell == OTHER else 0.5)

    def short(r, arm):  # five pairs of one cell, twelve of the other
        return slow(r, arm) if r.cell == EAGER or r.repeat < 5 else None

    files = arms([EAGER, OTHER], 12, change=short)
    assert unfinished(*files) == (2, 120)
    assert compare(*files)[1].reason == "5 of the 7 pairs of the first look; about 2 pairs, " \
        "2 min 0 s more"  # fmt: skip
    slower = arms([EAGER, OTHER], 8, effect={1: 0.2})
    found = compare(*slower)
    assert [c.code for c in found] == ["inside-margin", "unconfirmed"]
    assert found[1].reason.startswith(
        "about 1.20x slower in 8 of 8 pairs; unconfirmed; about 1 pair"
    )
    assert unfinished(*slower)[0] == 1

    def breaks(r, arm):
        broken = arm == "candidate" and r.cell == OTHER and r.repeat == 7
        return replace(r, status="failed", kind="crash", replicas=[], again=[]) if broken else r

    assert unfinished(*arms([EAGER, OTHER], 8, effect={1: 0.2}, change=breaks))[0] == 0
