"""What to try next: the configurations that may still be the best, by what was measured of others.

A pure function of the records, so that a search that goes on proposes what it would have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from gpubench.analysis.tune import objective, racing
from gpubench.analysis.tune.objective import Best
from gpubench.records.record import WRONG, Record
from gpubench.run.tune import space
from gpubench.run.tune.surrogate import Predictor
from gpubench.suite.goal import Metric, Search
from gpubench.suite.types import Cell, Option

OPTIMISM = 2.0
"""Standard deviations by which a prediction may be too pessimistic."""


class Proposals:
    """What is left to try."""

    def __init__(
        self, cells: Sequence[Cell], search: Search, best: Best,
        options: Mapping[str, tuple[Option, ...]],
    ) -> None:  # fmt: skip
        """``options``: of each backend."""
        self._predictor = Predictor(
            {cell.key: space.coordinates(cell, options[cell.backend]) for cell in cells}
        )
        self._search, self._best = search, best

    def next(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> Cell | None:
        """The most promising one; None: nothing is likely to beat what was measured."""
        return next(iter(self.promising(unmeasured, records)), None)

    def promising(self, unmeasured: Sequence[Cell], records: Sequence[Record]) -> list[Cell]:
        """Those that may keep the limits and beat all that was measured, the most promising first.

        Left out is also what gave wrong answers in another size; what a backend computes in a
        precision that has failed comes after what has not, and its options after its defaults.
        While nothing is known to keep the limits, only they count.
        """
        goal = self._search.goal
        tried: dict[str, list[Record]] = {}
        for record in records:
            tried.setdefault(record.cell.key, []).append(record)
        standings = racing.judge([own[0].cell for own in tried.values()], records, self._search)
        good = [tried[s.cell.key] for s in standings if s.status not in ("failed", "ruled-out")]
        kept = [
            tried[s.cell.key] for s in standings
            if s.status in racing.RANKED and not any(limit.hopeless for limit in s.limits)
        ]  # fmt: skip
        wrong = {answers(r.cell) for r in records if r.kind in WRONG}
        wrong |= {answers(s.cell) for s in standings if s.floor and s.floor.state == "undecided"}
        doubts = Counter(
            (r.cell.backend, r.cell.precision) for r in records if r.status == "failed"
        )
        left = [c for c in unmeasured if not kept or answers(c) not in wrong]
        for limit in goal.limits:
            bound = objective.cost(limit.metric, limit.bound)
            least = self._least(limit.metric, left, good)
            left = [c for c in left if least[c.key] <= bound]
        leads = min((_cost(own, goal.objective) for own in kept), default=math.inf)
        least = self._least(goal.objective, left, good)
        able = [c for c in left if least[c.key] < leads]
        known = {(own[0].cell.backend, own[0].cell.precision) for own in tried.values()}

        def order(cell: Cell) -> tuple[float, ...]:
            """A backend's defaults come before its options in each precision."""
            kind = cell.backend, cell.precision
            return doubts[kind], 0 if kind in known else len(cell.options), least[cell.key]

        return sorted(able, key=order)

    def _least(
        self, metric: Metric, cells: Sequence[Cell], good: Sequence[Sequence[Record]]
    ) -> dict[str, float]:
        """Key -> log cost that a cell may well have, if all is for the best."""
        seen = {own[0].cell.key: cost for own in good if (cost := _cost(own, metric)) < math.inf}
        bounds = {
            cell.key: objective.cost(metric, bound)
            for cell in (*(own[0].cell for own in good), *cells)
            if (bound := self._best(cell, metric))
        }
        keys = [cell.key for cell in cells]
        if not bounds.keys() >= {*seen, *keys}:
            bounds = {}  # of some only they would say nothing about the others
        found = self._predictor.predict(seen, bounds, keys)
        return {key: mean - OPTIMISM * sd for key, (mean, sd) in found.items()}


def answers(cell: Cell) -> tuple[object, ...]:
    """The same for cells whose answers are the same but for rounding: other sizes of one thing."""
    return cell.backend, cell.precision, cell.input, tuple(sorted(cell.options.items()))


def _cost(records: Sequence[Record], metric: Metric) -> float:
    """Mean log cost; infinite where nothing says."""
    found = [objective.cost(metric, v) for r in records if (v := objective.value(r, metric))]
    return fmean(found) if found else math.inf
