"""What is tried next."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from gpubench.analysis import race
from gpubench.goal import Goal, Limit, Metric, Search
from gpubench.record import Record
from gpubench.run import propose
from gpubench.run.propose import STARTUP, Grid, Proposals, Tpe
from gpubench.run.search import Proposer, search
from gpubench.suite import Cell
from tests.run.benches import Bench, conditional, coordinates, cost

RATE = Metric("throughput")


def asked(*limits: Limit, **changes: Any) -> Search:
    return Search(**{"goal": Goal(RATE, limits), "baseline": (), "budget_s": 1e6} | changes)


def tried(
    proposer: Proposer, bench: Bench, space: list[Cell], n: int, records: list[Record] | None = None
) -> list[Record]:
    """The first ``n`` that it names, measured."""
    records = list(records or [])
    while len(records) < n:
        known = {r.cell.key for r in records}
        cell = proposer.next([c for c in space if c.key not in known], records)
        assert cell is not None
        assert cell.key not in known
        records.append(bench.measure(cell, 0))
    return records


def rate(cell: Cell) -> float:
    return cell.batch_size / cost(cell)


def test_a_grid_names_every_cell_once_and_the_promising_first() -> None:
    space, bench = conditional(), Bench(cost, bound=lambda c: cost(c) / 1.1)
    records = tried(Grid(asked(), bench.best), bench, space, len(space))
    assert {r.cell.key for r in records} == {c.key for c in space}
    own = [rate(r.cell) for r in records if r.cell.backend == "c"]
    assert own == sorted(own, reverse=True)
    assert Grid(asked(), bench.best).next([], records) is None


def test_backends_share_the_time_not_the_number_of_trials() -> None:
    space, bench = conditional(), Bench(cost)
    slow = {"a": 1.0, "b": 1.0, "c": 4.0}
    records: list[Record] = []
    for _ in range(45):
        known = {r.cell.key for r in records}
        cell = Grid(asked(), bench.best).next([c for c in space if c.key not in known], records)
        assert cell is not None
        records.append(Record(cell=cell, repeat=0, status="ok", wall_s=slow[cell.backend]))
    assert Counter(r.cell.backend for r in records) == {"a": 20, "b": 20, "c": 5}


def test_other_sizes_of_what_answered_wrongly_come_last() -> None:
    space, bench = conditional(), Bench(cost, wrong=lambda c: c.precision == "int8")
    wrong = next(c for c in space if c.precision == "int8" and c.options == {})
    records = [bench.measure(wrong, 1)]
    rest = [c for c in space if c != wrong]
    order = tried(Grid(asked(), bench.best), bench, space, len(space), records)[1:]
    same = [c for c in rest if (c.backend, c.precision, c.options) == ("c", "int8", {})]
    assert {r.cell.key for r in order[-len(same) :]} == {c.key for c in same}


@pytest.mark.parametrize("seed", range(3))
def test_optuna_finds_the_best_of_a_conditional_space_in_a_few_trials(seed: int) -> None:
    space, bench = conditional(), Bench(cost, seed=seed)
    what = asked(seed=seed)
    records = tried(Tpe(space, what, bench.best, coordinates), bench, space, 50)
    best = max(rate(c) for c in space)
    assert max(rate(r.cell) for r in records) >= 0.95 * best
    at_random = sorted(map(rate, space))[-len(space) // 60]
    assert max(rate(r.cell) for r in records) > at_random


def test_optuna_says_the_same_again() -> None:
    """So a search that goes on proposes what it would have."""
    space, bench, what = conditional(), Bench(cost), asked(seed=5)
    whole = tried(Tpe(space, what, bench.best, coordinates), bench, space, STARTUP + 6)
    again = tried(
        Tpe(space, what, bench.best, coordinates), bench, space, STARTUP + 6, whole[: STARTUP + 2]
    )
    assert [r.cell.key for r in again] == [r.cell.key for r in whole]


def test_optuna_finds_the_best_of_what_keeps_a_limit() -> None:
    space, bench = conditional(), Bench(cost)
    what = asked(Limit(Metric("latency"), 15e6))
    records = tried(Tpe(space, what, bench.best, coordinates), bench, space, 50)
    best = max(rate(c) for c in space if cost(c) <= 15)
    assert max(rate(r.cell) for r in records if cost(r.cell) <= 15) >= 0.95 * best


def test_optuna_turns_away_from_what_fails() -> None:
    space, bench = conditional(), Bench(cost, unready=lambda c: c.precision == "int8")
    records: list[Record] = []
    for _ in range(STARTUP + 20):
        known = {r.cell.key for r in records}
        proposer = Tpe(space, asked(), bench.best, coordinates)
        cell = proposer.next([c for c in space if c.key not in known], records)
        assert cell is not None
        records.append(bench.ready(cell) or bench.measure(cell, 0))
    failed = [r.status == "failed" for r in records]
    assert sum(failed[STARTUP:]) / 20 < sum(failed[:STARTUP]) / STARTUP


def test_optuna_is_asked_of_a_space_that_is_too_large_to_predict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space, bench, what = conditional(), Bench(cost), asked()
    records = tried(Grid(what, bench.best), bench, space, STARTUP)
    known = {r.cell.key for r in records}
    rest = [c for c in space if c.key not in known]
    monkeypatch.setattr(propose, "LARGE", len(space) - 1)
    large = Proposals(space, what, bench.best, coordinates).next(rest, records)
    assert large == Tpe(space, what, bench.best, coordinates).next(rest, records)
    monkeypatch.setattr(propose, "LARGE", len(space))
    assert Proposals(space, what, bench.best, coordinates).next(rest, records) != large


def test_a_whole_search_takes_a_small_part_of_the_time_of_measuring_everything() -> None:
    space = conditional()
    bench = Bench(cost)
    everything = 2.0 * len(space)
    what = asked(budget_s=everything / 4, baseline=(space[0].key,))
    proposer = Proposals(space, what, bench.best, coordinates)
    found = search(space, what, bench, proposer, (), lambda record: None)
    best = race.recommended(found)
    assert best is not None
    assert rate(best.cell) >= 0.95 * max(map(rate, space))
    assert bench.spent <= everything / 4
