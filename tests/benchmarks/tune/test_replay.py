"""The replays themselves, and what searches reach on spaces whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
from msgspec.structs import replace

from gpubench.backends import base
from gpubench.records.record import RecordFile
from gpubench.run import availability
from gpubench.run.tune import space
from gpubench.suite.goal import Goal, Limit, Metric
from tests.benchmarks.tune import cases, large, record, replay, synthetic
from tests.benchmarks.tune.cases import PROPOSERS, Case, Outcome
from tests.benchmarks.tune.recorded import Recorded, Replay

RATE = Metric("throughput")


@pytest.fixture(scope="module")
def file() -> RecordFile:
    return synthetic.space(0)


@pytest.fixture(scope="module")
def truth() -> RecordFile:
    return synthetic.space(0, synthetic.SILENT, 1)


def test_the_recorded_space_is_part_of_the_one_that_a_tune_searches() -> None:
    known = availability.catalog()
    asked = Goal(RATE, (Limit(Metric("latency"), 1e9),))
    whole = space.default(
        known, record.SUITE.workload, device="cpu", cores=record.CORES, gpus=0, goal=asked
    )
    whole = space.chosen(whole, {"backend": record.AXES.backend})
    searched = space.cells(whole, known, lambda c: base.get(c.backend).unsupported(c))
    recorded = {c.key for c in record.cells()}
    assert len(recorded) == len(record.cells()) >= 60
    assert recorded <= {c.key for c in searched}
    today = {c.key for c in space.baseline({}, whole, known)}
    assert {c.key for c in record.today(record.cells())} == today & recorded


def test_a_repeat_is_one_recorded_round_of_every_cell(file: RecordFile) -> None:
    recorded = Recorded(file)
    bench = Replay(recorded, seed=3)
    rounds = []
    for repeat in range(2 * recorded.rounds):
        taken = {
            next(r.repeat for r in recorded.of(c) if r.replicas == found.replicas)
            for c in recorded.cells[::9]
            for found in [bench.measure(c, repeat)]
        }
        assert len(taken) == 1, "differences within a round must be real"
        rounds += taken
    for turn in (rounds[: recorded.rounds], rounds[recorded.rounds :]):
        assert sorted(turn) == list(range(recorded.rounds))
    assert [Replay(recorded, seed=4).measure(recorded.cells[0], n) for n in range(4)] != [
        Replay(recorded, seed=3).measure(recorded.cells[0], n) for n in range(4)
    ]


def test_time_is_that_of_what_was_recorded(file: RecordFile) -> None:
    """All cells, all rounds and each accuracy once come to the exhaustive cost."""
    recorded = Recorded(file)
    bench = Replay(recorded, seed=0)
    for cell in recorded.cells:
        for repeat in range(recorded.rounds):
            bench.measure(cell, repeat)
    assert bench.elapsed() == pytest.approx(recorded.exhaustive_s())
    building = sum(synthetic.BUILD_S.values())
    assert recorded.exhaustive_s() == pytest.approx(building + sum(r.wall_s for r in file.records))


def test_accuracy_is_seen_in_the_repeat_that_checks_it(file: RecordFile) -> None:
    recorded = Recorded(file, drop=1.0)
    cell = next(c for c in recorded.cells if c.precision == "int8")
    bench = Replay(recorded, seed=0)
    assert bench.measure(cell, 0).status == "ok"
    found = bench.measure(cell, 1)
    assert (found.status, found.kind) == ("failed", "accuracy")
    assert "3.12 points" in found.reason
    assert recorded.broken(cell, (), lambda record, metric: None) == [found.reason]


def test_the_best_keeps_its_limits_in_every_round(file: RecordFile) -> None:
    recorded = Recorded(file)
    free = recorded.best(Goal(RATE), cases.objective.value)
    assert free is not None
    fastest = recorded.worth(free, RATE, cases.objective.value)
    assert fastest == max(recorded.worth(c, RATE, cases.objective.value) for c in recorded.cells)
    one = min(recorded.values(free, cases.LATENCY, cases.objective.value))
    limit = Limit(cases.LATENCY, one)  # one round keeps it, the others do not
    assert recorded.broken(free, (limit,), cases.objective.value)[0].startswith("4 of 5 rounds")
    other = recorded.best(Goal(RATE, (limit,)), cases.objective.value)
    assert other not in (free, None)


@pytest.mark.parametrize("place", [0, 2, 4, 8])
def test_searches_find_the_best_at_a_small_part_of_the_cost(
    place: int, file: RecordFile, truth: RecordFile
) -> None:
    """Bursts hit one measurement in ten; what is found is judged by what is true."""
    case, way = cases.questions(truth)[place], PROPOSERS[0]
    budget_s = replay.COST * Recorded(file).exhaustive_s()
    found = [cases.answer(file, case, way, seed, budget_s, truth) for seed in range(3)]
    assert median(o.reach for o in found) >= replay.REACH
    assert min(o.reach for o in found) >= 0.9
    assert max(o.cost for o in found) <= replay.COST
    assert not any(o.broken for o in found)
    again = cases.answer(file, case, way, 0, budget_s, truth)
    assert again == found[0]


@pytest.mark.parametrize("seed", [1, 4])
def test_a_space_above_1500_configurations_is_searched_as_well(seed: int) -> None:
    """Those of 64 cores, and of one GPU: of six seeds there 0, 3 and 4 come within 1.5 %, and 1, 2
    and 5 miss by 26, 9 and 7 %."""
    asked = large.QUESTIONS[0 if seed == 1 else 2]
    found = large.answer(asked, seed)
    assert found.cells > 1500
    assert found.regret <= large.REGRET
    assert not found.broken
    assert found.tasks < found.cells / 20


def test_what_is_missed_is_said(tmp_path: Path, file: RecordFile, monkeypatch) -> None:
    good = Outcome(found="a", best="a", reach=1.0, of_sure=1.0, cost=0.1, tasks=9, broken=[])
    bad = [replace(good, of_sure=0.9), replace(good, cost=0.3), replace(good, broken=["p90"])]
    answers = iter([good, replace(good, reach=0.9), *bad, good])
    monkeypatch.setattr(cases, "questions", lambda file: [Case(n, Goal(RATE)) for n in "uvwxyz"])
    monkeypatch.setattr(cases, "answer", lambda *args: next(answers))
    rows = replay.write(file, 1, tmp_path, 1)
    assert [row.kept for row in rows] == [True, False, False, False, False, True]
    text = (tmp_path / "replay.md").read_text()
    assert text.count("**MISSED**") == 3
    assert "**2 of 6 lines kept in each of their searches, 3 of what can be promised.**" in text
    assert text.count("| kept, of sure |") == 1
    assert "1 of 1" in text.splitlines()[-2]
    assert len(json.loads((tmp_path / "replay.json").read_bytes())["rows"]) == 6
