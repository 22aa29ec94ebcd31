"""The loop of a search, on a bench whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from gpubench.analysis.tune import racing
from gpubench.analysis.tune.racing import Standing
from gpubench.records.record import Record
from gpubench.run.tune.search import BASELINE, EXPLORE, SEARCH, search
from gpubench.suite.goal import Goal, Limit, Metric, Search
from gpubench.suite.types import Cell
from tests.analysis.searches import cell
from tests.run.tune.benches import Bench, Everything, cells

RATE = Metric("throughput")


def asked(*limits: Limit, baseline: Sequence[Cell] = (), **changes: Any) -> Search:
    keys = tuple(cell.key for cell in baseline)
    return Search(**{"goal": Goal(RATE, limits), "baseline": keys, "budget_s": 1000.0} | changes)


def go(
    space: Sequence[Cell], what: Search, bench: Bench, records: Sequence[Record] = ()
) -> tuple[list[Standing], list[Record]]:
    noted: list[Record] = []
    found = search(space, what, bench, Everything(what, bench).next, records, noted.append)
    return found, noted


def ms(cell: Cell) -> float:
    """Cell 7 is the fastest; the others differ by 5 % a step."""
    return 10 * 1.05 ** abs(int(cell.options.get("n", 0)) - 7)


def test_the_best_is_found_and_confirmed() -> None:
    space = cells()
    found, noted = go(space, asked(baseline=space[:1]), Bench(ms))
    best = racing.recommended(found)
    assert best is not None
    assert best.cell == space[7]
    assert racing.CHECK in best.repeats
    assert noted[0].cell == space[0]
    assert {(r.cell.key, r.repeat) for r in noted} >= {(c.key, 0) for c in space}
    assert len({(r.cell.key, r.repeat) for r in noted}) == len(noted)


def test_what_takes_the_lead_is_checked_at_once() -> None:
    space = cells()
    bench = Bench(ms, sd=0.0)
    go(space, asked(baseline=space[:1]), bench)
    best = 10**9
    for place, (key, repeat) in enumerate(bench.asked):
        cost = ms(next(c for c in space if c.key == key))
        if repeat == 0 and cost < best / 1.02:  # what was measured once must lead by delta
            best = cost
            if place:
                assert bench.asked[place + 1] == (key, 1)


def test_wrong_answers_rule_nothing_out() -> None:
    space = cells()
    wrong = space[7].key
    bench = Bench(ms, wrong=lambda c: c.key == wrong, bound=lambda c: ms(c) / 1.01)
    found, _ = go(space, asked(baseline=space[:1]), bench)
    best = racing.recommended(found)
    assert best is not None
    assert best.cell in (space[6], space[8])
    assert found[7].status == "failed"


def test_what_cannot_win_is_not_measured_and_says_why() -> None:
    space = cells(40)
    bench = Bench(ms, bound=lambda c: ms(c) / 1.2)
    found, noted = go(space, asked(baseline=space[:1]), bench)
    out = [r for r in noted if r.status == "ruled-out"]
    assert len(out) > 20
    assert all("by the roofline" in r.reason for r in out)
    assert {r.cell.key for r in out}.isdisjoint(key for key, _ in bench.asked)
    best = racing.recommended(found)
    assert best is not None
    assert best.cell == space[7]


def test_what_cannot_be_built_is_recorded_once() -> None:
    space = cells()
    bench = Bench(ms, unready=lambda c: c == space[7])
    found, noted = go(space, asked(baseline=space[:1]), bench)
    assert [r.reason for r in noted if r.cell == space[7]] == ["cannot be built"]
    assert found[7].status == "failed"
    assert racing.recommended(found) is not None


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 20, 30])
def test_a_search_that_was_killed_goes_on_as_if_nothing_had_happened(stop: int) -> None:
    space, what = cells(), asked(baseline=cells(1))
    _, whole = go(space, what, Bench(ms))
    kept = whole[:stop]
    bench = Bench(ms)
    bench.spent = sum(r.wall_s for r in kept)
    found, rest = go(space, what, bench, kept)
    in_race = any(r.repeat > racing.CHECK for r in kept)  # its round is begun anew
    assert in_race or kept + rest == whole
    best = racing.recommended(found)
    assert best is not None
    assert best.cell == space[7]
    again, nothing = go(space, what, bench, kept + rest)
    assert not nothing
    assert [s.status for s in again] == [s.status for s in found]


def test_the_budget_is_shared_out() -> None:
    space = cells(400)
    bench = Bench(ms, seconds=2.0)
    what = asked(baseline=space[:40], budget_s=200.0)
    _, noted = go(space, what, bench)
    assert bench.spent <= SEARCH * 200 + 2 * 2
    today = [r for r in noted if r.cell in space[:40] and r.repeat == 0][:30]
    assert BASELINE * 200 / 2 <= len([r for r in today if noted.index(r) < 30]) <= 30
    explored = sum(r.wall_s for r in noted if r.repeat == 0)
    assert explored <= EXPLORE[1] * 200 + 2
    assert any(r.repeat > racing.CHECK for r in noted)


def test_one_size_of_todays_default_is_measured_whatever_the_budget() -> None:
    space = cells()
    bench = Bench(ms, seconds=100.0)
    found, noted = go(space, asked(baseline=space[:3], budget_s=10.0), bench)
    assert [(r.cell, r.repeat) for r in noted] == [(space[0], 0), (space[0], 1)]
    best = racing.recommended(found)
    assert best is not None
    assert best.cell == space[0]


def test_a_limit_that_nothing_keeps_leaves_nothing_to_recommend() -> None:
    space = cells()
    limit = Limit(Metric("latency"), 5e6)
    found, _ = go(space, asked(limit, baseline=space[:1]), Bench(ms))
    assert racing.recommended(found) is None
    assert {s.status for s in found} <= {"violates", "ruled-out"}


def test_where_all_stand_is_told_after_each_measurement() -> None:
    space, told, noted = cells(), [], []
    what, bench = asked(baseline=space[:1]), Bench(ms)
    search(space, what, bench, Everything(what, bench).next, (), noted.append, told.append)
    measured = [r for r in noted if r.status != "ruled-out"]
    assert len(told) == len(measured)
    assert [len(each) for each in told] == [len(space)] * len(told)


def test_without_any_number_a_search_ends() -> None:
    """No common window, for example: `racing` says failed, and nothing is asked again for ever."""

    class Mute(Bench):
        def measure(self, cell: Cell, repeat: int) -> Record:
            super().measure(cell, repeat)
            return Record(cell=cell, repeat=repeat, status="ok", wall_s=2.0)

    space = cells()
    found, noted = go(space, asked(baseline=space[:1]), Mute(ms))
    assert {s.status for s in found} == {"failed"}
    assert len(noted) == len(space)


def test_bounds_that_a_measurement_exceeds_rule_nothing_out() -> None:
    """Peaks measured while the machine was busy: every cell is twice as fast as they allow."""
    space = cells(40)
    found, _ = go(space, asked(baseline=space[:1]), Bench(ms, bound=lambda c: 2 * ms(c)))
    assert not [s for s in found if s.status == "ruled-out"]
    best = racing.recommended(found)
    assert best is not None
    assert best.cell == space[7]


def mixed(**changes: Any) -> list[Cell]:
    """Three backends, two precisions, four sizes; today's default: a in fp32."""
    return [
        cell(backend=backend, precision=precision, batch_size=size, **changes)
        for backend in "abc" for precision in ("fp32", "int8") for size in (1, 2, 4, 8)
    ]  # fmt: skip


@pytest.mark.parametrize(("budget_s", "seen", "best"), [(1.0, 1, False), (5.0, 2, True),
                                                        (1000.0, 3, True)])  # fmt: skip
def test_every_backend_comes_before_anything_else(budget_s: float, seen: int, best: bool) -> None:
    """And one backend alone is not recommended."""
    space = mixed()
    what = asked(baseline=space[:4], budget_s=budget_s)
    found, noted = go(space, what, Bench(lambda c: 10.0 if c.backend == "a" else 20.0))
    first = [r.cell for r in noted[:seen]]
    assert [c.backend for c in first] == list("abc"[:seen])
    assert {(c.precision, c.batch_size) for c in first} == {("fp32", 1)}
    assert len(racing.backends(found)) - len(racing.unseen(found)) == seen
    assert (racing.recommended(found) is not None) == best


@pytest.mark.parametrize(("kind", "tries"), [("error", 2), ("timeout", 1)])
def test_what_fails_alike_costs_a_try_or_two_and_the_rest_is_searched(
    kind: str, tries: int
) -> None:
    class Short(Bench):
        def measure(self, cell: Cell, repeat: int) -> Record:
            found = super().measure(cell, repeat)
            broken = found.status == "failed"
            return replace(found, kind=kind, reason="no kernels") if broken else found

    space = mixed()
    bench = Short(lambda c: 10.0, unready=lambda c: c.precision == "int8")
    found, noted = go(space, asked(baseline=space[:4]), bench)
    assert racing.recommended(found) is not None
    for backend in "abc":
        own = [r for r in noted if (r.cell.backend, r.cell.precision) == (backend, "int8")]
        assert [r.status for r in own] == ["failed"] * tries + ["ruled-out"] * (4 - tries)
        assert own[-1].reason == f"{backend} int8 fails alike: no kernels"


def test_a_bad_first_try_does_not_end_in_that_nothing_keeps_the_limits() -> None:
    """It met other work: twenty times too slow."""

    class Loaded(Bench):
        def measure(self, cell: Cell, repeat: int) -> Record:
            self._sd, before = 0.0, self._truth
            self._truth = (lambda c: 20 * before(c)) if not self.asked else before
            found = super().measure(cell, repeat)
            self._truth = before
            return found

    space = cells(1)
    limit = Limit(Metric("latency"), 20e6)
    found, noted = go(space, asked(limit, baseline=space), Loaded(lambda c: 2.0))
    assert [r.repeat for r in noted][:3] == [0, 1, 2]
    assert found[0].n >= 3


def test_of_what_is_not_told_apart_the_simplest_is_recommended() -> None:
    space, simplest = cells(4), 0
    for seed in range(20):
        bench = Bench(lambda c: 10.0 if c.options else 10.02, sd=0.01, seed=seed)
        found, _ = go(space, asked(baseline=space[3:]), bench)
        best = racing.recommended(found)
        assert best is not None
        assert best not in racing.ties(found, best)
        (plain,) = [s for s in found if s.cell == space[0]]
        simplest += best is plain
    assert simplest >= 16
