from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis import stats
from gpubench.analysis.cells import summarise
from gpubench.analysis.compare import UNSTEADY, VERDICTS, compare, exit_code
from gpubench.record import FLAGS, Record, RecordFile
from gpubench.suite import Policy
from tests.report import make

CELLS = make.grid(backends=("torch-eager", "openvino"), batches=(1,), replicas=(1,))


def run(seed: int, factor: float = 1.0, repeats: int = 12, **changes) -> RecordFile:
    return make.run(CELLS, seed=seed, factor=factor, repeats=repeats, samples=40, **changes)


def verdicts(*args, **kwargs) -> list[str]:
    return [c.verdict for c in compare(*args, **kwargs)]


def test_a_clear_slowdown_is_a_regression_in_both_scenarios():
    found = compare(run(1), run(2, 1.2))
    assert [c.verdict for c in found] == ["REGRESSED"] * len(CELLS)
    assert {c.metric for c in found} == {"p50 [ns]", "images/s"}
    for c in found:
        wanted = 1.2 if c.metric == "p50 [ns]" else 1 / 1.2
        assert c.ratio == pytest.approx(wanted, rel=0.03)
        assert c.low < c.ratio < c.high
        assert c.n == (12, 12)
    assert exit_code(found) == 1


def test_a_clear_gain_is_an_improvement_and_passes():
    found = compare(run(1, 1.2), run(2))
    assert {c.verdict for c in found} == {"IMPROVED"}
    assert exit_code(found) == 0


def test_the_same_file_is_equivalent():
    found = compare(run(1), run(1))
    assert {c.verdict for c in found} == {"EQUIVALENT"}
    assert all(c.ratio == pytest.approx(1) for c in found)


def test_two_sets_of_the_same_machine_never_alarm():
    seen = Counter(v for seed in range(40) for v in verdicts(run(seed), run(1000 + seed)))
    assert seen["REGRESSED"] == 0
    assert seen["IMPROVED"] == 0


def test_noise_is_inconclusive_not_a_pass():
    rng = np.random.default_rng(0)

    def noisy() -> RecordFile:
        records = [make.record(c, n, rng, launch=0.2, samples=40) for n in range(3) for c in CELLS]
        return RecordFile("x", make.header(CELLS), records)

    found = compare(noisy(), noisy())
    assert {c.verdict for c in found} == {"INCONCLUSIVE"}
    assert exit_code(found) == 3
    assert all(c.smallest_detectable > 0.2 for c in found)


def test_one_repeat_is_never_enough():
    found = compare(run(1, repeats=1), run(2, 3.0))
    assert {c.verdict for c in found} == {"INCONCLUSIVE"}
    assert "1 repeat in the baseline" in found[0].reason


@pytest.mark.parametrize("flag", ["DRIFT", "FEW-SAMPLES"])
def test_an_unsteady_trace_gets_no_verdict(flag):
    assert set(UNSTEADY) <= set(FLAGS)
    base = run(1)
    shaky = replace(base, records=[replace(r, flags=[flag]) for r in base.records])
    assert set(verdicts(base, shaky)) == {"INCONCLUSIVE"}


def test_after_a_second_stage_the_spread_is_that_of_the_pilot():
    policy = Policy(repeats=3, max_repeats=12)
    staged = [make.run(CELLS, seed=s, repeats=12, samples=40, policy=policy) for s in (1, 2)]
    sides = [summarise([file]) for file in staged]
    for row, b, c in zip(compare(*staged), *sides, strict=True):
        values = list(b.values.values()), list(c.values.values())
        assert row.low == stats.welch(*values, (3, 3)).estimate().low
        assert row.low != stats.welch(*values).estimate().low


def test_another_machine_is_incomparable_unless_allowed():
    base = run(1)
    libraries = base.header.environment["libraries"]
    changed = {"commit": "other", "libraries": libraries | {"torch": "3"}}
    other = run(1, fingerprint="beef", environment=base.header.environment | changed)
    found = compare(base, other)
    assert {c.verdict for c in found} == {"INCOMPARABLE"}
    assert found[0].reason == "differs: libraries.torch"  # a commit is what one compares
    assert exit_code(found) == 3
    for allowed in ("libraries.torch", "libraries"):
        assert set(verdicts(base, other, allow_different=[allowed])) == {"EQUIVALENT"}
    assert compare(base, other, allow_different=["lib"])[0].verdict == "INCOMPARABLE"


def test_cells_on_one_side_only_are_missing_either_way():
    base = run(1)
    half = make.run(CELLS[:1], seed=2, repeats=12, samples=40)
    for pair in ((base, half), (half, base)):
        found = compare(*pair)
        assert [c.verdict for c in found].count("MISSING") == len(CELLS) - 1
        assert exit_code(found) == 4


def test_a_failure_is_missing_with_its_reason():
    base, candidate = run(1), run(2)
    dead = Record(cell=CELLS[0], repeat=0, status="failed", kind="crash", reason="signal 11")
    left = [r for r in candidate.records if r.cell != CELLS[0]]
    found = compare(base, replace(candidate, records=[*left, dead]))
    assert found[0].verdict == "MISSING"
    assert found[0].reason == "candidate: failed: crash (signal 11)"


def test_replicas_that_never_ran_together_are_missing_and_say_so():
    base = make.run([make.cell(scenario="throughput", replicas=2)], samples=40)
    apart = [
        replace(r, flags=["NO-COMMON-WINDOW"], replicas=[
            replace(s, start_ns=n * make.S, end_ns=(n + 1) * make.S)
            for n, s in enumerate(r.replicas)])
        for r in base.records
    ]  # fmt: skip
    found = compare(base, replace(base, records=apart))
    assert [c.verdict for c in found] == ["MISSING"]
    assert found[0].reason == "candidate: no value: NO-COMMON-WINDOW"


def test_wrong_answers_are_missing_however_fast():
    base, candidate = run(1), run(2, 0.5)
    wrong = [replace(r, status="failed", kind="parity") for r in candidate.records]
    assert set(verdicts(base, replace(candidate, records=wrong))) == {"MISSING"}


def test_skips_on_both_sides_are_left_out():
    skip = Record(cell=CELLS[0], repeat=0, status="unavailable", reason="no GPU", remedy="buy one")
    file = RecordFile("x", make.header(CELLS[:1]), [skip])
    assert compare(file, file) == []
    assert exit_code([]) == 4


def test_exit_code_precedence():
    row = compare(run(1), run(1))[0]

    def code(*names: str) -> int:
        return exit_code([replace(row, verdict=name) for name in names])

    assert code("EQUIVALENT", "IMPROVED") == 0
    assert code("EQUIVALENT", "INCONCLUSIVE") == code("INCOMPARABLE") == 3
    assert code("MISSING", "INCONCLUSIVE") == 4
    assert code(*VERDICTS) == 1


def test_verdicts_are_deterministic():
    assert compare(run(1), run(2, 1.03)) == compare(run(1), run(2, 1.03))


def test_a_wider_margin_forgives():
    assert set(verdicts(run(1), run(2, 1.1), delta=0.3)) == {"EQUIVALENT"}
