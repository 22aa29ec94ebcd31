"""What is judged beside speed: by pairs, by pictures, and by what is equal."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis.compare import metrics, sequential_test
from gpubench.analysis.compare.compare import compare, view
from gpubench.analysis.compare.verdicts import Comparison, exit_code
from gpubench.errors import InputError
from gpubench.records.parity import Answers
from gpubench.records.record import ARTEFACT_BYTES, Arm, Record, RecordFile
from gpubench.suite import gate
from tests.report import make, make_pairs

CELL = make.cell()
PICTURES = 1000
LABELS = [n % 10 for n in range(PICTURES)]


def answering(wrong: range | tuple[int, ...] = (), pictures: str = "p") -> Answers:
    given = [label if n not in wrong else (label + 1) % 10 for n, label in enumerate(LABELS)]
    return Answers(pictures=pictures, given=given, labels=LABELS)


def arms(
    words: list[str],
    *,
    pairs: int = 20,
    base: Answers | None = None,
    candidate: Answers | None = None,
    memory: float = 1.0,
    start: float = 1.0,
    size: tuple[int, int] = (1000, 1000),
    samples: int = 11,
) -> tuple[RecordFile, RecordFile]:
    """An A/B of equal speed, whose candidate needs so many times the memory and time to start."""
    rng = np.random.default_rng(7)
    own = {"baseline": base or answering(), "candidate": candidate or answering()}

    def change(r: Record, arm: Arm) -> Record:
        more = (memory, start) if arm == "candidate" else (1.0, 1.0)
        noise = np.exp(0.002 * rng.normal(size=2))
        visits = [[replace(s, peak_host_bytes=round(s.peak_host_bytes * more[0] * noise[0]),
                           open_ns=round(s.open_ns * more[1] * noise[1]),
                           first_inference_ns=0) for s in turn] for turn in r.visits]  # fmt: skip
        answers = None if r.repeat else own[arm]
        return replace(
            r, replicas=visits[0], again=[s for turn in visits[1:] for s in turn],
            parity=r.parity and replace(r.parity, answers=answers),
            facts={ARTEFACT_BYTES: size[arm == "candidate"]}, prepare_ns={"export": 5},
        )  # fmt: skip

    return make_pairs.arms([CELL], pairs=pairs, sd=0.003, rule=gate.rule({}, words),
                           samples=samples, change=change)  # fmt: skip


def found(words: list[str], **given: object) -> dict[str, Comparison]:
    return {c.judged: c for c in compare(*arms(words, **given))}  # type: ignore[arg-type]


EVERY = [name for name in gate.METRICS if name not in ("speed", "p99", "device_memory")]


def test_identical_arms_are_equivalent_in_everything() -> None:
    rows = found(EVERY)
    assert {name: (c.verdict, c.code) for name, c in rows.items()} == {
        "speed": ("EQUIVALENT", "inside-margin"), "accuracy": ("EQUIVALENT", "identical"),
        "agreement": ("EQUIVALENT", "identical"), "memory": ("EQUIVALENT", "inside-margin"),
        "size": ("EQUIVALENT", "identical"), "cold_start": ("EQUIVALENT", "inside-margin"),
        "preparation": ("EQUIVALENT", "identical"),
    }  # fmt: skip
    assert exit_code(list(rows.values())) == 0
    assert rows["accuracy"].reason == "all 1,000 answers are the same"


def test_each_metric_finds_its_own_change() -> None:
    rows = found(EVERY, candidate=answering(range(80)), memory=1.2, start=1.5, size=(1000, 1020))
    said = {name: c.verdict for name, c in rows.items()}
    assert said.pop("speed") == "EQUIVALENT"
    assert said.pop("preparation") == "EQUIVALENT"
    assert set(said.values()) == {"REGRESSED"}
    assert rows["memory"].ratio == pytest.approx(1.2, rel=0.01)
    accuracy = rows["accuracy"]
    assert (accuracy.baseline, accuracy.candidate) == (1.0, 0.92)
    assert accuracy.difference == pytest.approx(-0.08)
    assert accuracy.low < -0.08 < accuracy.high < -0.005
    assert accuracy.p is not None
    assert accuracy.p < 0.01
    assert rows["size"].reason == "+20 bytes, beyond 1 %"


def test_few_changed_answers_are_undecided_and_a_gain_is_one() -> None:
    rows = found(["accuracy", "agreement"], candidate=answering((1, 5, 9)))
    assert rows["accuracy"].verdict == "INCONCLUSIVE"
    assert rows["accuracy"].code == "few-pictures"
    assert rows["accuracy"].changed == (3, 1000)
    assert rows["agreement"].verdict == "EQUIVALENT"  # its interval ends below one point
    better = found(["accuracy"], base=answering(range(60)))
    assert better["accuracy"].verdict == "IMPROVED"
    none = found(["agreement=0"], candidate=answering((1,)))
    assert none["agreement"].verdict == "REGRESSED"


def test_other_pictures_are_not_compared() -> None:
    rows = found(["accuracy"], candidate=answering(pictures="q"))
    assert (rows["accuracy"].verdict, rows["accuracy"].code) == ("INCOMPARABLE", "other-pictures")


def test_a_tail_needs_samples() -> None:
    few = found(["p99"], samples=11)["p99"]
    assert (few.verdict, few.code) == ("INCONCLUSIVE", "no-figure")
    assert found(["p99"], samples=60)["p99"].verdict == "EQUIVALENT"


def test_what_is_open_wants_more_pairs_and_speed_comes_first() -> None:
    rule = gate.rule({}, ["memory"])
    rng = np.random.default_rng(1)
    noisy = [sequential_test.Pair(d=float(d), coarse=True) for d in 0.1 * rng.normal(size=9)]
    more = metrics.more({"memory": {"0": noisy, "1": []}}, rule)
    assert more.keys() == {"0"}
    calm = tuple(sequential_test.Pair(d=0.0) for _ in range(9))
    cells = {"0": calm, "1": ()}
    own = metrics.rules(rule)["speed"]
    assert sequential_test.needs(cells, own).keys() == {"1"}
    assert list(sequential_test.needs(cells, own, more=more)) == ["1", "0"]
    assert sequential_test.turn({"0": calm}, own, {"0": 1.0}, 60.0, more=more) == ["0"]
    assert sequential_test.turn({"0": calm}, own, {"0": 1.0}, 60.0) == []


def test_alpha_is_shared_and_speed_keeps_its_first_look() -> None:
    alone, several = (metrics.rules(gate.rule({}, words)) for words in ([], EVERY))
    assert alone["speed"].alpha == 0.01
    tested = [name for name in EVERY if gate.METRICS[name].noise != "none"]
    assert math.fsum(several[n].alpha for n in ("speed", *tested)) == pytest.approx(0.01)
    assert sequential_test.sharing(9, 1, several["speed"]) == 1
    assert sequential_test.levels(alone["speed"]).keys() == sequential_test.levels(
        several["speed"]).keys()  # fmt: skip


def test_the_outlook_says_when_another_metric_could_be_called() -> None:
    rule = gate.rule({}, ["memory", "accuracy"])
    told = metrics.outlook([4.6], 60.0, rule)
    assert told.endswith("a change of memory shows from 19 pairs on, and the budget has 13 a cell")
    assert metrics.outlook([4.6], 600.0, rule).endswith("shows from 19 pairs on")
    assert "pairs on" not in metrics.outlook([4.6], 600.0, gate.rule({}, ["accuracy"]))


def test_two_stored_runs_judge_answers_memory_and_size_but_no_times() -> None:
    def stored(edit: Callable[[Record], Record], seed: int) -> RecordFile:
        file = make.run([CELL], seed=seed, repeats=5, run_id=str(seed), samples=30)
        return replace(file, records=[edit(r) for r in file.records])

    def edit(answers: Answers, size: int, memory: int) -> Callable[[Record], Record]:
        return lambda r: replace(
            r, parity=r.parity and replace(r.parity, answers=None if r.repeat else answers),
            facts={ARTEFACT_BYTES: size},
            replicas=[replace(s, peak_host_bytes=memory + r.repeat) for s in r.replicas],
        )  # fmt: skip

    words = ["accuracy", "memory", "size", "cold_start"]
    before = stored(edit(answering(), 1000, 10**9), 1)
    after = stored(edit(answering(range(80)), 900, 2 * 10**9), 2)
    rows = {c.judged: c for c in compare(before, after, judged=words)}
    assert rows["accuracy"].verdict == "REGRESSED"
    assert rows["memory"].verdict == "REGRESSED"
    assert rows["size"].verdict == "IMPROVED"
    assert (rows["cold_start"].verdict, rows["cold_start"].code) == ("INCONCLUSIVE", "no-history")
    elsewhere = replace(after, header=replace(after.header, fingerprint="other"))
    apart = {c.judged: c.verdict for c in compare(before, elsewhere, judged=words)}
    assert apart == {"speed": "INCOMPARABLE", "accuracy": "REGRESSED", "memory": "INCOMPARABLE",
                     "size": "IMPROVED", "cold_start": "INCOMPARABLE"}  # fmt: skip
    suite = replace(after.header.suite, gate={"size": 0.2})
    gated = replace(after, header=replace(after.header, suite=suite))
    assert [c.judged for c in compare(before, gated)] == ["speed", "size"]
    assert compare(before, gated)[1].verdict == "EQUIVALENT"


def test_an_ab_keeps_what_it_was_measured_to_judge() -> None:
    files = arms(["size"], pairs=8)
    assert view(*files, judged=["size"]).rule.metrics == (("size", 0.01),)
    with pytest.raises(InputError, match="judge size beside speed"):
        view(*files, judged=["memory"])


def test_both_arms_are_shown_over_the_pairs_that_tell() -> None:
    """A pair without a value on one side counts on neither, and one odd process hardly."""
    base, candidate = arms(["cold_start"], pairs=12, start=1.5)

    def slower(r: Record) -> Record:
        more = {3: 0, 5: 50}.get(r.repeat, 1)
        return replace(r, replicas=[replace(s, open_ns=s.open_ns * more) for s in r.replicas])

    odd = replace(candidate, records=[slower(r) for r in candidate.records])
    row = next(c for c in compare(base, odd) if c.judged == "cold_start")
    told = [(r.replicas[0].open_ns, s.replicas[0].open_ns)
            for r, s in zip(base.records, odd.records, strict=True) if s.repeat != 3]  # fmt: skip
    assert row.pairs == len(told) == 11
    for shown, side in zip((row.baseline, row.candidate), zip(*told, strict=True), strict=True):
        assert shown == pytest.approx(sorted(side)[5])


def test_a_stranger_s_fact_is_no_size() -> None:
    cell = make.run([CELL]).records[0]
    assert metrics.value("size", replace(cell, facts={ARTEFACT_BYTES: ["x"]})) is None
    assert metrics.value("size", replace(cell, facts={ARTEFACT_BYTES: 7})) == 7
