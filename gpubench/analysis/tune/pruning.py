"""Is a cell that was never measured worth it? What its roofline and its neighbours say."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from gpubench.analysis.tune import constraints
from gpubench.analysis.tune import objective as tune_objective
from gpubench.analysis.tune.constraints import Kept
from gpubench.analysis.tune.objective import Best
from gpubench.records.record import Record
from gpubench.suite.goal import Goal, Limit, Metric
from gpubench.suite.types import Cell

MARGIN = 0.1
"""What a roofline may be too low by."""
ALIKE = " fails alike: "
SAME = 2
"""Cells of a backend and precision that fail alike, before the others count as failed too; of those
that ran out of time one, since the next has less."""


def shared(records: Iterable[Record]) -> dict[tuple[str, str], str]:
    """(backend, precision) -> why it fails, where nothing of it ever gave a number.

    A precision that has no kernels, an export that raises, a compiler that is too slow: trying the
    other batch sizes, placements and options costs the time that other backends need.
    """
    seen: dict[tuple[str, str], dict[tuple[str, str], set[str]]] = defaultdict(dict)
    measured = set()
    for record in records:
        kind = record.cell.backend, record.cell.precision
        if record.replicas:
            measured.add(kind)
        elif record.status == "failed" and record.kind != "not-run":
            seen[kind].setdefault((record.kind, record.reason), set()).add(record.cell.key)
    return {
        kind: reason
        for kind, causes in seen.items() if kind not in measured
        for (what, reason), cells in causes.items()
        if len(cells) >= (1 if what == "timeout" else SAME)
    }  # fmt: skip


class Outlook:
    """Built once for many cells."""

    def __init__(
        self,
        goal: Goal,
        best: Best | None,
        leader: float | None,
        slow: Iterable[tuple[Cell, Kept]],
        failing: Mapping[tuple[str, str], str],
    ) -> None:
        """``leader``: log cost of what is to be beaten. ``slow``: cells that break a limit of
        latency, and which one. ``failing``: as `shared`.
        """
        self._goal, self._best, self._leader, self._failing = goal, best, leader, failing
        self._slow: dict[str, tuple[Cell, Kept]] = {}
        """By `_but_batch`: the smallest batch that breaks a limit."""
        for cell, broken in slow:
            had = self._slow.setdefault(_but_batch(cell), (cell, broken))
            if cell.batch_size < had[0].batch_size:
                self._slow[_but_batch(cell)] = cell, broken

    def against(self, cell: Cell) -> str:
        """Why it cannot win; '': it may."""
        if reason := self._failing.get((cell.backend, cell.precision)):
            return f"{cell.backend} {cell.precision}{ALIKE}{reason}"
        if implied := self._implied(cell):
            return implied
        if self._best is None:
            return ""
        for limit in self._goal.limits:
            if reason := _breaks(limit, self._best(cell, limit.metric)):
                return reason
        return self._slower(self._best(cell, self._goal.objective))

    def _implied(self, cell: Cell) -> str:
        """A larger batch takes longer."""
        found = self._slow.get(_but_batch(cell)) if self._slow else None
        if found is None or found[0].batch_size >= cell.batch_size:
            return ""
        return f"a larger batch than {found[0].batch_size}, which has {found[1].text}"

    def _slower(self, value: float | None) -> str:
        objective, leader = self._goal.objective, self._leader
        if not value or leader is None:
            return ""
        if tune_objective.cost(objective, value) - math.log1p(MARGIN) <= leader:
            return ""
        has = math.exp(-leader if objective.more_is_better else leader)
        return f"{_bound(objective, value)}; the leader has {objective.text(has)}"


def _breaks(limit: Limit, value: float | None) -> str:
    if not value or not constraints.over(limit, value, MARGIN):
        return ""
    return (
        f"{limit.metric.name} {_bound(limit.metric, value)}: limit {limit.metric.text(limit.bound)}"
    )


def _bound(metric: Metric, value: float) -> str:
    """'at most 24.1 images/s by the roofline'."""
    return f"at {'most' if metric.more_is_better else 'least'} {metric.text(value)} by the roofline"


def _but_batch(cell: Cell) -> str:
    """The key of the cell with batch size 1."""
    return replace(cell, batch_size=1).key
