"""A bisection on this machine: compares what is wanted, until nothing more is.

Every comparison of two versions is an A/B with a directory of its own, so what is known is what
its records say, and a bisection that was interrupted goes on by reading them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gpubench import files, units
from gpubench.analysis.compare import answers, bisection, metrics, verdicts
from gpubench.analysis.compare.bisection import Comparison, Outlook
from gpubench.analysis.compare.compare import view
from gpubench.analysis.compare.paired import pair_of
from gpubench.analysis.compare.sequential_test import Pair
from gpubench.errors import InputError, RecordError
from gpubench.records.reader import read_arms
from gpubench.records.record import Record, RecordFile
from gpubench.run.ab import arms, driver
from gpubench.run.ab import setup as ab_setup
from gpubench.run.bisect.row import Arm, Row
from gpubench.run.watcher import NOTHING_STORED, Watcher
from gpubench.suite.gate import METRICS
from gpubench.suite.types import Cell, Rule

STATE = "bisection.json"
DIFFER = ("REGRESSED", "IMPROVED")


class BisectJob(Struct, frozen=True):
    """Everything a bisection needs."""

    row: Row
    suite: str
    chosen: Mapping[str, Any]
    """What the command line says of the suite, but for the cell."""
    cell: str
    """Label of the cell to look at; '': the one whose ends differ most clearly."""
    rule: Rule
    budget_s: float
    """Wall time after which no pair begins, environments included."""
    out: Path
    cache_dir: Path
    metric: str = "speed"
    """A key of `gpubench.suite.gate.METRICS`; its margin is the rule's."""
    resume: bool = False

    @property
    def exact(self) -> bool:
        """One pair tells all: the same version has the same value again."""
        return METRICS[self.metric].noise != "pairs"


class State(Struct):
    """What the records do not hold."""

    question: dict[str, Any]
    skipped: dict[int, str] = {}
    """Version -> why it cannot be measured."""
    begun: list[Comparison] = []
    cell: str = ""


class Outcome(Struct, frozen=True):
    """What a bisection came to."""

    outlook: Outlook
    cell: str
    """Label; '' where the ends were not shown to differ in any of several."""
    ends: list[verdicts.Comparison]
    """The A/B of the good and the bad version, cell by cell."""
    skipped: dict[int, str]
    pairs: int
    built: int
    """Versions that were measured."""
    cells: list[Cell] = []
    """Of the A/B of the ends, as the bad version has them."""

    @property
    def differ(self) -> list[verdicts.Comparison]:
        """The cells in which good and bad were shown to differ."""
        return differing(self.ends)


def differing(ends: Sequence[verdicts.Comparison]) -> list[verdicts.Comparison]:
    """Those that were shown to differ."""
    return [row for row in ends if row.verdict in DIFFER]


def run(job: BisectJob, watcher: Watcher) -> Outcome:
    """Bisect until a change is found and proved, or there is none, or the budget ends.

    KeyboardInterrupt passes through after every process of ours was ended; what was measured stays.
    Raises InputError where the good or the bad version cannot be measured.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    return _Walk(job, watcher, _state(job)).go()


def _state(job: BisectJob) -> State:
    """Of the bisection to go on with, or a new one. Raises RecordError for another one's."""
    path, row = job.out / STATE, job.row
    question = {
        "suite": job.suite, "chosen": {k: v for k, v in job.chosen.items() if v}, "cell": job.cell,
        "rule": msgspec.to_builtins(job.rule), "metric": job.metric,
        "versions": [v.name for v in row.versions],
    }  # fmt: skip
    question = msgspec.json.decode(msgspec.json.encode(question))
    if not path.exists():
        return State(question)
    if not job.resume:
        raise RecordError(f"{path}: holds a bisection already; --resume goes on, -o names another")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=State)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    if found.question != question:
        differ = [key for key in question if found.question.get(key) != question[key]]
        raise RecordError(f"{path}: holds another bisection ({', '.join(differ)} differ)")
    return found


class _Quiet(Watcher):
    """Passes on what is in hand, and not what every A/B would say of itself."""

    def __init__(self, watcher: Watcher) -> None:
        self.task, self.step, self.begin = watcher.task, watcher.step, watcher.begin  # type: ignore[method-assign]
        self.recorded = watcher.recorded  # type: ignore[method-assign]


class _Walk:
    def __init__(self, job: BisectJob, watcher: Watcher, state: State) -> None:
        self._job, self._watcher, self._state = job, watcher, state
        self._last = len(job.row.versions) - 1
        self._all = Comparison(0, self._last)
        self._arms: dict[int, Arm] = {}
        self._begin = monotonic()
        self._ends: list[verdicts.Comparison] = []
        self._cells: list[Cell] = []
        self._evidence: dict[Comparison, list[Pair]] = {}
        for one in state.begun:
            self._read(one)

    # ---------------------------------------------------------------------- the loop

    def go(self) -> Outcome:
        row, seen = self._job.row, (0, 0)
        self._watcher.said(self._first_line())
        while True:
            outlook = self._look()
            late = self._evidence and self._left() <= 0
            if outlook.wanted is None or late or (self._ends and not self._go_on(outlook.wanted)):
                return self._outcome(outlook)
            if outlook.chance and outlook.suspects != seen:
                seen = outlook.suspects
                low, high = (row.versions[n].name for n in seen)
                many = units.count(seen[1] - seen[0], row.kind)
                where = f"after {low}, by {high}: {many} left"
                self._watcher.said(f"{where} ({100 * outlook.chance:.0f} %)")
            one, pairs = outlook.wanted
            if not self._measure(one, pairs):
                return self._outcome(outlook)

    def _look(self) -> Outlook:
        skipped, rule = self._state.skipped, self._job.rule
        if self._job.exact:
            return bisection.by_value(self._evidence, self._last, skipped, rule.delta)
        return bisection.look(self._evidence, self._last, skipped, rule)

    def _go_on(self, wanted: bisection.Wanted) -> bool:
        """Whether more pairs of the ends are wanted, or their A/B says that they differ."""
        if self._job.metric != "speed":
            return True
        more = wanted.comparison == self._all and bool(self._state.cell)
        return more or bool(differing(self._ends))

    def _first_line(self) -> str:
        row = self._job.row
        names = f"{row.versions[0].line} .. {row.versions[-1].line}"
        notes = "".join(f"; {note}" for note in row.notes)
        return (
            f"{units.count(self._last, row.kind)} to choose from, {names}{notes}; records go to "
            f"{self._job.out}{NOTHING_STORED if self._job.resume and not self._state.begun else ''}"
        )

    def _left(self) -> float:
        return self._job.budget_s - (monotonic() - self._begin)

    def _outcome(self, outlook: Outlook) -> Outcome:
        pairs = sum(map(len, self._evidence.values()))
        built = {n for one in self._evidence for n in one[:2]}
        return Outcome(outlook, self._state.cell, self._ends, self._state.skipped, pairs,
                       len(built), self._cells)  # fmt: skip

    # ---------------------------------------------------------------------- one comparison

    def _measure(self, one: Comparison, pairs: int) -> bool:
        """Whether anything was learned."""
        before = len(self._evidence.get(one, ()))
        for place in one[:2]:
            try:
                self._arm(place)
            except InputError as error:
                return self._skip(place, str(error))
        if one not in self._state.begun:
            self._state.begun.append(one)
            self._save()
        driver.run(self._ab(one, pairs), _Quiet(self._watcher))
        broken = self._read(one)
        if len(self._evidence.get(one, ())) > before:
            return True
        return self._skip(*broken) if broken else False

    def _arm(self, place: int) -> Arm:
        if place not in self._arms:
            self._watcher.task(None, f"environment of {self._job.row.versions[place].line}", 0)
            self._arms[place] = self._job.row.arm(place)
        return self._arms[place]

    def _skip(self, place: int, why: str) -> bool:
        version = self._job.row.versions[place]
        if place in (0, self._last):
            raise InputError(f"{version.line} cannot be measured: {why}")
        self._state.skipped[place] = why
        self._save()
        self._watcher.said(f"skipped: {version.line}: {why.splitlines()[0]}")
        return True

    def _ab(self, one: Comparison, pairs: int) -> driver.ABJob:
        """Of the whole row an A/B of its own, of all cells; else so many pairs of the one."""
        job = self._job
        first, second = (self._arm(place) for place in one[:2])
        specs = (arms.parse("--good", []), arms.parse("--bad", []))
        made = ab_setup.comparison(
            job.suite, job.chosen, specs, (first.python, second.python), job.rule,
            max(1.0, self._left()), job.cache_dir, self._place(one), True, (),
            (first.made, second.made), self._job.row.suite_of() or "head",
        )  # fmt: skip
        if label := job.cell or self._state.cell * (one != self._all):
            made = only(made, label)
        whole = one == self._all and job.metric == "speed"
        return made if whole else replace(made, pairs=pairs)

    def _place(self, one: Comparison) -> Path:
        names = [self._job.row.versions[n].name for n in one[:2]]
        return self._job.out / ("..".join(names) + "-proof" * one.proof)

    def _save(self) -> None:
        files.put(self._job.out / STATE, msgspec.json.encode(self._state))

    # ---------------------------------------------------------------------- what was measured

    def _read(self, one: Comparison) -> tuple[int, str] | None:
        """Take the pairs from the records; (version, reason) of what broke, if anything did."""
        both = read_arms(self._place(one))
        if both is None:
            return None
        if one == self._all:
            self._ends, self._cells = view(*both).rows, both[1].header.planned
            self._choose(both)
        found = _pairs(both, self._state.cell, self._job.metric)
        if found or one in self._evidence:
            self._evidence[one] = found
        for version, file in zip(one[:2], both, strict=True):
            for record in file.records[::-1]:
                if record.status != "ok":
                    return version, f"{record.status}: {record.reason}"
        return None

    def _choose(self, both: tuple[RecordFile, RecordFile]) -> None:
        """The cell that is looked at from here on: the only one, or the one that differs most."""
        labels = {cell.key: cell.label for cell in both[1].header.planned}
        differ = differing(self._ends)
        if len(labels) == 1:
            self._state.cell = next(iter(labels.values()))
        elif differ and not self._state.cell:
            clear = max(differ, key=lambda r: abs(math.log(r.ratio or 1)) / (r.pair_sd or 1e-9))
            self._state.cell = labels[clear.key]
            self._save()


def only(job: driver.ABJob, label: str) -> driver.ABJob:
    """An A/B of the one cell that has this label in both arms. Raises InputError without it."""
    sides = []
    for side in job.sides:
        cells = [cell for cell in side.header.planned if cell.label == label]
        if len(cells) != 1:
            raise InputError(f"{label!r}: {len(cells)} cells of the suite are called so")
        plan = replace(side.plan, cells=[c for c in side.plan.cells if c in cells],
                       skips=[s for s in side.plan.skips if s.cell in cells])  # fmt: skip
        sides.append(replace(side, plan=plan, header=replace(side.header, planned=cells)))
    return replace(job, sides=(sides[0], sides[1]), left_out=())


def _pairs(both: tuple[RecordFile, RecordFile], label: str, metric: str) -> list[Pair]:
    """Of the cell, in the order measured; what is worse is above 0."""
    first, second = ({r.repeat: r for r in file.records if r.cell.label == label} for file in both)
    joined = [(first[n], record) for n, record in sorted(second.items()) if n in first]
    found = [(b, c, pair) for b, c in joined if (pair := pair_of(b, c)) is not None]
    if metric == "speed":
        return [pair for _, _, pair in found]
    if METRICS[metric].points:
        return [Pair(d=d) for b, c, _ in found if (d := _worse(b, c, metric)) is not None]
    return metrics.pairs(metric, found)


def _worse(first: Record, second: Record, metric: str) -> float | None:
    """Share of the pictures that are answered otherwise, or (accuracy) wrongly and were not."""
    both = [r.parity and r.parity.answers for r in (first, second)]
    found = answers.changes(both[0], both[1]) if both[0] and both[1] else None
    if found is None:
        return None
    if metric == "agreement":
        return found.changed / found.asked
    return (found.lost - found.gained) / found.labelled if found.labelled else None
