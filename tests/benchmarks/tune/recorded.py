"""A space of which all was measured, and a bench that answers from it instead of measuring."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from statistics import median

from msgspec.structs import replace

from gpubench.analysis.tune import racing
from gpubench.records.parity import Parity
from gpubench.records.record import Record, RecordFile
from gpubench.suite.goal import Goal, Limit, Metric, Search
from gpubench.suite.types import Cell

Value = Callable[[Record, Metric], float | None]
Best = Callable[[Cell, Metric], float | None]
KEPT = ("leader", "alive", "worse")


class Recorded:
    """The records of a run that measured every cell in every round."""

    def __init__(self, file: RecordFile, drop: float | None = None) -> None:
        """``drop``: points of accuracy that a cell may lose, or it fails (`Policy`)."""
        self.options = file.header.suite.axes.options
        self.cells: list[Cell] = []
        self.failed: dict[str, Record] = {}
        """By the cell's key: why there is nothing to choose."""
        self._rounds: dict[str, dict[int, Record]] = {}
        for cell in file.header.planned:
            found = [r for r in file.records if r.cell.key == cell.key]
            judged = [_judged(r, drop) for r in found]
            wrong = [r for r in judged if r.status != "ok"]
            if wrong and not any(r.replicas for r in wrong):
                continue  # not of this machine's space
            self.cells.append(cell)
            self._rounds[cell.key] = {r.repeat: r for r in judged}
            if wrong:
                self.failed[cell.key] = wrong[0]
        self.rounds = 1 + max(repeat for each in self._rounds.values() for repeat in each)

    def of(self, cell: Cell) -> list[Record]:
        """By round; a cell that fails has its first one only."""
        found = self._rounds[cell.key]
        return [found[n] for n in sorted(found)]

    def plain_s(self, cell: Cell, round_: int) -> float:
        """What a measurement costs that checks as many answers as every one does."""
        found = self._rounds[cell.key]
        if round_ > 0:
            return found[round_].wall_s
        later = [record.wall_s for n, record in found.items() if n > 0]
        return min(found[0].wall_s, median(later)) if later else found[0].wall_s

    def check_s(self, cell: Cell) -> float:
        """What measuring accuracy costs on top of that, once: the first round did."""
        return self._rounds[cell.key][0].wall_s - self.plain_s(cell, 0)

    def exhaustive_s(self) -> float:
        """Everything: each cell in every round, its accuracy once, and building what it needs."""
        built: set[tuple[str, int]] = set()
        for records in self._rounds.values():
            built.update(records[0].prepare_ns.items())
        measured = sum(r.wall_s for records in self._rounds.values() for r in records.values())
        return measured + sum(ns for _, ns in built) / 1e9

    def values(self, cell: Cell, metric: Metric, value: Value) -> list[float]:
        """One number a round."""
        found = [value(record, metric) for record in self.of(cell)]
        return [each for each in found if each is not None]

    def worth(self, cell: Cell, metric: Metric, value: Value) -> float:
        """The median of the rounds, since a burst of somebody else's work can hit one of them."""
        found = self.values(cell, metric, value)
        return median(found) if found else math.nan

    def broken(self, cell: Cell, limits: Sequence[Limit], value: Value) -> list[str]:
        """Limits that the cell breaks in some round: '3 of 5 rounds: p90 latency <= 20 ms'."""
        if cell.key in self.failed:
            return [self.failed[cell.key].reason]
        found = []
        for limit in limits:
            seen = self.values(cell, limit.metric, value)
            sign = 1 if limit.metric.more_is_better else -1
            bad = sum(sign * v < sign * limit.bound for v in seen)
            if bad:
                found.append(f"{bad} of {len(seen)} rounds: {limit.text}")
        return found

    def best(self, goal: Goal, value: Value, among: Collection[str] | None = None) -> Cell | None:
        """The best of those that keep every limit in every round; None where none does.

        ``among``: of these keys only.
        """
        able = [
            c for c in self.cells
            if (among is None or c.key in among) and not self.broken(c, goal.limits, value)
        ]  # fmt: skip
        sign = -1 if goal.objective.more_is_better else 1
        return min(able, key=lambda c: sign * self.worth(c, goal.objective, value), default=None)

    def promised(self, search: Search) -> set[str]:
        """Keys of what a search that measured everything in every round could recommend."""
        records = [
            record for cell in self.cells for record in self.of(cell)
            if cell.key not in self.failed
        ]  # fmt: skip
        standings = racing.judge(self.cells, records, search)
        return {s.cell.key for s in standings if s.status in KEPT and s.keeps}


def _judged(record: Record, drop: float | None) -> Record:
    """The record under a floor of accuracy, as the first repeat of a real run is judged."""
    if drop is None or record.parity is None or record.repeat or record.status != "ok":
        return record
    return _floored(record, record.parity, drop)


def _floored(record: Record, parity: Parity, drop: float) -> Record:
    lost = 100 * (parity.reference_correct - parity.correct) / max(1, parity.labelled)
    kept = lost <= drop
    parity = replace(parity, max_accuracy_drop=drop, accurate=kept)
    if kept:
        return replace(record, parity=parity)
    reason = f"{lost:.2f} points of accuracy lost (max_accuracy_drop {drop:g})"
    return replace(record, parity=parity, status="failed", kind="accuracy", reason=reason)


class Replay:
    """A search's bench (`gpubench.run.tune.search.Bench`) that takes what was recorded.

    Repeat r of every cell comes from one recorded round, so that what differs within a round of
    the race was measured side by side; which one, the seed says. When all were used, they come
    again in another order. Time is what the recorded measurements took.
    """

    def __init__(self, recorded: Recorded, seed: int, best: Best | None = None) -> None:
        self._recorded, self._seed, self._best = recorded, seed, best
        self._built: set[tuple[str, int]] = set()
        self._elapsed = 0.0
        self.tasks = 0

    def measure(self, cell: Cell, repeat: int) -> Record:
        """What one of the recorded rounds says; repeat 1 is the one that checks accuracy.

        Pays for building, once for what several cells share.
        """
        for step in self._recorded.of(cell)[0].prepare_ns.items():
            if step not in self._built:
                self._built.add(step)
                self._elapsed += step[1] / 1e9
        self.tasks += 1
        recorded = self._recorded
        first, failed = recorded.of(cell)[0], recorded.failed.get(cell.key)
        round_ = self._round(repeat)
        checks = repeat == 1
        if failed is not None and (checks or failed.kind != "accuracy"):
            self._elapsed += failed.wall_s
            return replace(failed, repeat=repeat)
        found = recorded.of(cell)
        record = found[round_ if round_ < len(found) else 0]
        seconds = recorded.plain_s(cell, record.repeat)
        parity = first.parity if checks else found[-1].parity
        if failed is not None and parity is not None:  # only its accuracy is wrong, unseen as yet
            parity = replace(parity, accurate=True, max_accuracy_drop=None)
        seconds += recorded.check_s(cell) if checks else 0.0
        self._elapsed += seconds
        return replace(
            record, repeat=repeat, status="ok", kind="", reason="", parity=parity, wall_s=seconds
        )

    def best(self, cell: Cell, metric: Metric) -> float | None:
        """By the roofline."""
        return self._best(cell, metric) if self._best else None

    def elapsed(self) -> float:
        """Seconds that a real search would have taken, building included."""
        return self._elapsed

    def _round(self, repeat: int) -> int:
        turn, place = divmod(repeat, self._recorded.rounds)
        order = list(range(self._recorded.rounds))
        random.Random(f"{self._seed}/{turn}").shuffle(order)
        return order[place]
