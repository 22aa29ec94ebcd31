"""What is close to its limit, where nothing is known to keep it."""

from __future__ import annotations

from gpubench.analysis.tune import racing
from gpubench.suite.goal import Limit
from tests.analysis import searches
from tests.analysis.searches import THROUGHPUT

LIMIT = Limit(THROUGHPUT, 730.0)
"""Batches of 8 in at most 10.96 ms."""


def judged(times: dict[int, list[float]]) -> list[racing.Standing]:
    cells = [searches.cell(i) for i in times]
    records = [
        searches.record(cell, n, ms)
        for cell, each in zip(cells, times.values(), strict=True)
        for n, ms in enumerate(each)
    ]
    return racing.judge(cells, records, searches.search(searches.P90, LIMIT))


FEW = {1: [10.0, 10.3, 9.8], 2: [10.9, 10.8, 10.7], 3: [13.0, 15.0, 14.0]}
"""One that is noisy makes the spread, which is pooled, too wide for the others."""


def test_the_nearest_is_measured_further_until_its_spread_is_known() -> None:
    goal = searches.search(searches.P90, LIMIT)
    few = judged(FEW)
    assert [s.status for s in few] == ["violates"] * 3
    assert racing.recommended(few) is None
    assert racing.wanted(few, goal) == [(searches.cell(1), 3)]
    more = judged(FEW | {1: [*FEW[1], *[10.0, 10.1, 9.9] * 2]})
    assert racing.recommended(more) is more[0]


def test_what_a_repeat_showed_to_break_its_limit_is_not() -> None:
    found = judged({1: [10.0, 11.5, 10.0], 2: [12.0] * 3})
    assert racing.wanted(found, searches.search(searches.P90, LIMIT)) == []


def test_not_for_ever() -> None:
    noisy = [10.0, 10.9, 9.0] * 5
    found = judged({1: noisy[: racing.NEAR]})
    assert found[0].status == "violates"
    assert racing.wanted(found, searches.search(searches.P90, LIMIT)) == []
    assert racing.wanted(judged({1: noisy[:6]}), searches.search(searches.P90, LIMIT)) != []
