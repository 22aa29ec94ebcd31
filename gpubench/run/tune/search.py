"""The search: today's default, exploration, a race; every step follows from the records so far.

So a search that was interrupted goes on by reading its records, and what was dropped comes back by
itself when the one that beat it falls. Nothing here knows how a configuration is measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from gpubench.analysis.tune import constraints, racing
from gpubench.analysis.tune import objective as tune_objective
from gpubench.analysis.tune.objective import Best
from gpubench.analysis.tune.pruning import MARGIN
from gpubench.analysis.tune.racing import Standing
from gpubench.records.record import Record
from gpubench.run.record_builder import now
from gpubench.suite.goal import Limit, Metric, Search
from gpubench.suite.types import Cell

BASELINE = 0.25
"""Of the budget: no more sizes of today's default after this, but the first and the last."""
EXPLORE = (0.55, 0.65)
"""Of the budget: no exploration after this; the second, where the race was decided early."""
SEARCH = 0.7
"""Of the budget: no race after this; the rest is the evidence's."""
UNLIKELY = "by what was measured of others it is unlikely to win within the limits"
"""Why nothing more was tried."""


class Bench(Protocol):
    """Whatever measures."""

    def measure(self, cell: Cell, repeat: int) -> Record:
        """One repeat in a fresh process, or why there is none: what the cell needs is built first.

        `racing.CHECK` is the one that checks all answers.
        """

    def best(self, cell: Cell, metric: Metric) -> float | None:
        """The best value that the metric could have, in its unit; None: unknown."""

    def elapsed(self) -> float:
        """Seconds of the budget that are gone, those of earlier sessions too."""


Propose = Callable[[Sequence[Cell], Sequence[Record]], Cell | None]
"""What to try next of the cells that were not measured; None: nothing more is worth trying."""


def _apart(one: Cell, other: Cell) -> tuple[object, ...]:
    """How far from each other: options that were chosen, precision, placement, batch size."""
    return (
        len(other.options), other.precision != one.precision, other.input != one.input,
        other.cores != one.cores,
        abs(other.replicas - one.replicas), abs(math.log2(other.batch_size / one.batch_size)),
    )  # fmt: skip


def search(
    cells: Sequence[Cell],
    search: Search,
    bench: Bench,
    propose: Propose,
    records: Sequence[Record],
    note: Callable[[Record], None],
    told: Callable[[Sequence[Standing]], None] = lambda _: None,
) -> list[Standing]:
    """Go on from ``records`` until the race is decided or the budget ends; where all cells stand.

    ``note`` gets each new record as soon as it is there, and at the end one for every cell that was
    ruled out; ``told`` where all stand after each of them.
    """
    walk = _Walk(cells, search, bench, records, note, told)
    walk.first()
    walk.baseline()
    share, seen = EXPLORE[0], -1
    while walk.measured > seen:  # a race may leave nothing that keeps the limits: explore again
        seen = walk.measured
        walk.explore(propose, share * search.budget_s)
        walk.race(SEARCH * search.budget_s)
        share = EXPLORE[1]
    return walk.end(propose)


@dataclass
class _Walk:
    """The state of one search: its records, and what follows from them."""

    _cells: Sequence[Cell]
    _search: Search
    _bench: Bench
    _before: Sequence[Record]
    _note: Callable[[Record], None]
    _told: Callable[[Sequence[Standing]], None]

    def __post_init__(self) -> None:
        self._records = [r for r in self._before if r.status != "ruled-out"]
        self._said = {r.cell.key: r.reason for r in self._before if r.status == "ruled-out"}
        """What was written of cells that were never measured."""
        self._done = {(r.cell.key, r.repeat) for r in self._records}
        self._standings = self._judged()

    @property
    def measured(self) -> int:
        """Records so far."""
        return len(self._records)

    def first(self) -> None:
        """One size of today's default in any case, then what is nearest to it of each backend: no
        search knows anything before it has seen them all."""
        today = next((c for c in self._cells if c.key in self._search.baseline), self._cells[0])
        self._measure(today, 0)
        for backend in racing.unseen(self._standings):
            if self._bench.elapsed() < SEARCH * self._search.budget_s:
                own = (s.cell for s in self._standings
                       if s.cell.backend == backend and s.status == "unmeasured")  # fmt: skip
                self._measure(min(own, key=partial(_apart, today)), 0)

    def baseline(self) -> None:
        """Today's default in its other sizes, which the rest is held against: the largest first,
        or it would be held against its smallest alone where time is short."""
        sizes = [c for c in self._cells if c.key in self._search.baseline]
        for place, cell in enumerate(sizes[-1:] + sizes[:-1]):
            share = BASELINE if place else SEARCH
            if self._bench.elapsed() < share * self._search.budget_s:
                self._measure(cell, 0)
        self._confirm()

    def explore(self, propose: Propose, until_s: float) -> None:
        """Measure what is proposed, once each."""
        while self._bench.elapsed() < until_s:
            unmeasured = [s.cell for s in self._standings if s.status == "unmeasured"]
            cell = propose(unmeasured, self._records) if unmeasured else None
            if cell is None:
                break
            self._measure(cell, 0)
            self._confirm()

    def race(self, until_s: float) -> None:
        """Rounds, in each of which all that may still be best are measured once."""
        while wanted := self._wanted():
            order = random.Random(f"{self._search.seed}/{max(r for _, r in wanted)}")  # noqa: S311
            order.shuffle(wanted)
            for cell, repeat in wanted:
                if self._bench.elapsed() >= until_s:
                    return
                self._measure(cell, repeat)
            self._confirm()

    def end(self, propose: Propose) -> list[Standing]:
        """Say of each cell that was ruled out why. Of what the time did not reach nothing is said:
        it is planned, and has no record."""
        left = [s.cell for s in self._standings if s.status == "unmeasured"]
        if left and propose(left, self._records) is None:
            self._standings = [
                Standing(cell=s.cell, status="ruled-out", reason=UNLIKELY)
                if s.status == "unmeasured" else s
                for s in self._standings
            ]  # fmt: skip
        known = {record.cell.key for record in self._records}
        for s in self._standings:
            said = s.cell.key in known or self._said.get(s.cell.key) == s.reason
            if s.status == "ruled-out" and not said:
                self._note(Record(cell=s.cell, repeat=0, status="ruled-out", reason=s.reason,
                                  started=now()))  # fmt: skip
        return self._standings

    def _wanted(self) -> list[tuple[Cell, int]]:
        """The next round, less what was measured without giving a number."""
        wanted = racing.wanted(self._standings, self._search)
        return [(cell, repeat) for cell, repeat in wanted if (cell.key, repeat) not in self._done]

    def _confirm(self) -> None:
        """Measure what leads once more, with all answers checked, until what leads was."""
        while leads := racing.leader(self._standings):
            if (leads.cell.key, racing.CHECK) in self._done:
                break
            self._measure(leads.cell, racing.CHECK)

    def _measure(self, cell: Cell, repeat: int) -> None:
        if (cell.key, repeat) in self._done:
            return
        record = self._bench.measure(cell, repeat)
        self._records.append(record)
        self._done.add((cell.key, repeat))
        self._note(record)
        self._standings = self._judged()
        self._told(self._standings)

    def _judged(self) -> list[Standing]:
        return racing.judge(self._cells, self._records, self._search, self._best())

    def _best(self) -> Best | None:
        """The bench's bounds, unless something was better than its own: then the peaks that they
        come from were measured in a bad moment, and say nothing of what was not tried either."""
        objective = self._search.goal.objective
        for record in self._records:
            bound = self._bench.best(record.cell, objective) if record.status == "ok" else None
            found = tune_objective.value(record, objective) if bound else None
            if bound and found and constraints.over(Limit(objective, found), bound, MARGIN):
                return None
        return self._bench.best
