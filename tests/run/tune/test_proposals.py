"""What is tried next: what is likely to be the best, by what was measured of others."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from gpubench.analysis.tune import racing
from gpubench.records.record import Record
from gpubench.run.tune import proposals as tune_proposals
from gpubench.run.tune import surrogate
from gpubench.run.tune.proposals import Proposals
from gpubench.run.tune.search import search
from gpubench.suite.goal import Goal, Limit, Metric, Search
from gpubench.suite.types import Cell
from tests.run.tune.benches import OPTIONS, Bench, conditional, coordinates, cost

RATE = Metric("throughput")


def asked(*limits: Limit, **changes: Any) -> Search:
    return Search(**{"goal": Goal(RATE, limits), "baseline": (), "budget_s": 1e6} | changes)


def rate(cell: Cell) -> float:
    return cell.batch_size / cost(cell)


def points(space: list[Cell]) -> dict[str, surrogate.Coordinates]:
    return {c.key: coordinates(c) for c in space}


def proposals(space: list[Cell], what: Search, bench: Bench) -> Proposals:
    return Proposals(space, what, bench.best, OPTIONS)


def some(space: list[Cell], n: int, seed: int = 0) -> list[Cell]:
    return random.Random(seed).sample(space, n)


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_a_space_tells_the_rest(seed: int) -> None:
    """Effects are sums of logs in `cost`, but for the batch, the cores and their ranges."""
    space = conditional()
    logs = {c.key: math.log(rate(c)) for c in space}
    seen = {c.key: logs[c.key] for c in some(space, len(space) // 10, seed)}
    rest = [key for key in logs if key not in seen]
    found = surrogate.Predictor(points(space)).predict(seen, {}, rest)
    off = sorted(abs(found[key][0] - logs[key]) for key in rest)
    within = sum(abs(found[k][0] - logs[k]) <= tune_proposals.OPTIMISM * found[k][1] for k in rest)
    assert off[len(off) // 2] < 0.05
    assert within > 0.95 * len(rest)


def test_without_measurements_bounds_say_what_is_promising() -> None:
    space = conditional()
    bench = Bench(cost, bound=lambda c: cost(c) / 1.1)
    found = proposals(space, asked(), bench).promising(space, [])
    assert {c.key for c in found} == {c.key for c in space}
    assert found[0].backend == "c"
    defaults = [cell for cell in space if not cell.options]
    assert rate(found[0]) == pytest.approx(max(map(rate, defaults)), rel=0.1)


def test_what_is_far_behind_is_left_out_and_the_best_is_not() -> None:
    space, bench = conditional(), Bench(cost)
    records = [bench.measure(c, 0) for c in some(space, 60)]
    known = {r.cell.key for r in records}
    left = proposals(space, asked(), bench).promising(
        [c for c in space if c.key not in known], records
    )
    assert 0 < len(left) < len(space) / 4
    best = max(space, key=rate)
    assert best.key in known | {c.key for c in left}
    assert all(c.precision == "int8" for c in left[:5])


def test_limits_leave_out_what_would_break_them() -> None:
    space, bench = conditional(), Bench(cost)
    limit = Limit(Metric("latency"), 15e6)
    records = [bench.measure(c, 0) for c in some(space, 60)]
    known = {r.cell.key for r in records}
    rest = [c for c in space if c.key not in known]
    left = proposals(space, asked(limit), bench).promising(rest, records)
    assert left
    assert max(map(cost, left)) < 15 * 1.3


def test_while_nothing_keeps_a_limit_nothing_is_beaten() -> None:
    """The fastest of all breaks it, and does not keep slower ones from being tried."""
    space, bench = conditional(), Bench(cost)
    limit = Limit(Metric("latency"), 3e6)
    fast = max(space, key=rate)
    records = [bench.measure(fast, 0), bench.measure(fast, 1)]
    left = proposals(space, asked(limit), bench).promising([c for c in space if c != fast], records)
    assert any(cost(c) < 3 for c in left)


def test_other_sizes_of_what_answered_wrongly_are_left_out() -> None:
    space, bench = conditional(), Bench(cost, wrong=lambda c: c.precision == "int8")
    wrong = next(c for c in space if c.precision == "int8" and not c.options)
    good = next(c for c in space if c.backend == "a")
    rest = [c for c in space if c not in (wrong, good)]
    same = {c.key for c in rest if tune_proposals.answers(c) == tune_proposals.answers(wrong)}
    made = proposals(space, asked(), bench)
    failed: list[Record] = [bench.measure(wrong, 1)]
    assert {c.key for c in made.promising(rest, failed)} >= same, "nothing else is known yet"
    assert not {c.key for c in made.promising(rest, [*failed, bench.measure(good, 0)])} & same


@pytest.mark.parametrize("seed", range(3))
def test_a_search_without_a_budget_ends_by_itself(seed: int) -> None:
    space, bench = conditional(), Bench(cost, seed=seed)
    what = asked(baseline=(space[0].key,), seed=seed)
    proposer = proposals(space, what, bench).next
    best = racing.recommended(search(space, what, bench, proposer, (), lambda record: None))
    assert best is not None
    assert rate(best.cell) >= 0.97 * max(map(rate, space))
    assert len({key for key, _ in bench.asked}) < len(space) / 4


def test_a_precision_that_gave_wrong_answers_waits_for_the_others() -> None:
    """With other options it may be right; but each of them costs a measurement and a check."""
    peak = {"fp32": 2.0, "bf16": 1.2, "int8": 0.5}
    space = conditional()
    bench = Bench(cost, wrong=lambda c: c.precision == "int8",
                  bound=lambda c: peak[c.precision] * c.batch_size)  # fmt: skip
    good = next(c for c in space if c.backend == "a" and c.batch_size == 1)
    wrong = next(c for c in space if c.precision == "int8" and c.options and c.batch_size == 8)
    rest = [c for c in space if c not in (good, wrong)]
    made = proposals(space, asked(), bench)

    def late(repeat: int) -> list[bool]:
        records = [bench.measure(good, 0), bench.measure(wrong, repeat)]
        return [c.precision == "int8" for c in made.promising(rest, records)]

    assert late(0) != sorted(late(0))
    assert any(late(1))
    assert late(1) == sorted(late(1))


def test_the_same_is_proposed_again() -> None:
    """So a search that goes on proposes what it would have."""
    space, bench, what = conditional(), Bench(cost), asked(seed=5)
    records: list[Record] = []
    whole = proposals(space, what, bench)
    for _ in range(12):
        known = {r.cell.key for r in records}
        rest = [c for c in space if c.key not in known]
        cell = whole.next(rest, records)
        assert cell is not None
        assert cell == proposals(space, what, bench).next(rest, records)
        records.append(bench.measure(cell, 0))


def test_what_fails_is_turned_away_from() -> None:
    space, bench = conditional(), Bench(cost, wrong=lambda c: c.precision == "int8")
    records = [bench.measure(space[0], 0)]
    made = proposals(space, asked(), bench)
    for _ in range(20):
        known = {r.cell.key for r in records}
        cell = made.next([c for c in space if c.key not in known], records)
        assert cell is not None
        records.append(bench.measure(cell, 1))
    failed = [r.status == "failed" for r in records]
    assert any(failed)
    assert sum(failed[10:]) <= sum(failed[:10])


def test_a_whole_search_takes_a_small_part_of_the_time_of_measuring_everything() -> None:
    space = conditional()
    bench = Bench(cost)
    everything = 2.0 * len(space)
    what = asked(budget_s=everything / 4, baseline=(space[0].key,))
    proposer = proposals(space, what, bench).next
    found = search(space, what, bench, proposer, (), lambda record: None)
    best = racing.recommended(found)
    assert best is not None
    assert rate(best.cell) >= 0.95 * max(map(rate, space))
    assert bench.spent <= everything / 4
