"""Trend: one cell over many runs, and the runs at which its level changed.

A run on a machine with another fingerprint belongs to another series. Where a level changed is
`changepoints`' to say.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.compare.verdicts import MACHINE
from gpubench.analysis.history.changepoints import calmed, changes, places
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import UNTRIED, Summary, flags_of, summarise
from gpubench.errors import InputError, RecordError
from gpubench.records.reader import read
from gpubench.records.record import RECORDS, Header, RecordFile
from gpubench.suite.types import Rule

_RULE = Rule()
MOST_TOLD = 3
"""Of the files that are of no use, where none is."""
_log = logging.getLogger(__name__)


class Point(Struct, frozen=True, kw_only=True):
    """One run of the cell."""

    run: str
    started: str
    commit: str
    """Of the directory that the run was started in; '' outside a repository."""
    path: str
    value: Estimate
    """ns per batch, or images/s; none where the cell has no good result."""
    status: str
    flags: list[str]
    used: bool
    """Looked at for changes: it has a value, and no outside evidence against it."""


class Level(Struct, frozen=True, kw_only=True):
    """Of the runs between two changes: their mean of logs, odd runs set aside."""

    first: int
    last: int
    """Indices of points."""
    value: float
    """ns per batch, or images/s."""


class Change(Struct, frozen=True, kw_only=True):
    """A new level."""

    at: int
    """Index of the first run at the new level; it came between this run and the one before."""
    slower: bool
    before: float
    after: float
    """The levels on either side."""
    ratio: Estimate
    """after / before of the metric; ``n``: runs on the shorter side."""
    p: float
    """Corrected for every place and every cell that was looked at."""


class Trend(Struct, frozen=True, kw_only=True):
    """One cell on one kind of machine, run after run."""

    key: str
    label: str
    workload: str
    metric: str
    """'p50 [ns]' (lower is better) or 'images/s' (higher is better)."""
    fingerprint: str
    points: list[Point]
    """Oldest first."""
    changes: list[Change]
    levels: list[Level]
    """One more than changes; none without a run to look at."""
    behind: float
    """How much slower the last level is than the best one: 0.05 is 5 %; 0: it is the best."""

    @property
    def latency(self) -> bool:
        """Lower values are better."""
        return self.metric == "p50 [ns]"

    @property
    def unit(self) -> str:
        """Of its values, as in `gpubench.analysis.tables.table.Column`."""
        return "ns" if self.latency else "images/s"


def find(directory: Path, note: Callable[[str], object] = _log.warning) -> Iterator[RecordFile]:
    """Every run's records below ``directory``, read one at a time.

    ``note`` is told what is left out: files that cannot be read, and arms of interleaved A/B,
    which measure under other circumstances. Raises InputError where nothing is found.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; name the one that holds the runs")
    found = arms = 0
    useless: list[str] = []

    def leave(why: str) -> None:
        useless.append(why)
        note(f"left out of the history: {why}")

    for path in sorted(directory.rglob(RECORDS)):
        try:
            file = read(path)
        except RecordError as error:
            leave(str(error))
            continue
        if file.header.pairing:
            arms += 1
            continue
        for text in file.damage:
            note(f"{file.path}: {text}")
        found += 1
        yield file
    if arms:
        many = units.count(arms, "arm")
        leave(f"{many} of interleaved A/B; `gpubench compare` has them")
    if not found:
        why = f" that a history can use: {'; '.join(useless[:MOST_TOLD])}" if useless else ""
        raise InputError(f"{directory}: no run below it (a directory with {RECORDS}){why}")


def trends(
    files: Iterable[RecordFile], delta: float = _RULE.delta, alpha: float = _RULE.alpha
) -> list[Trend]:
    """Every cell on every kind of machine, worst first: by how far it is behind its best level.

    Runs of different fingerprints are never joined; of files with the same run id the first
    counts. ``delta``: changes up to this much are not reported. ``alpha``: chance of any false
    change in the whole list. Both as in `Rule` unless given.
    """
    series = [t for t in _collected(files) if not all(_skipped(p) for p in t.points)]
    level = alpha / max(1, sum(places(_costs(t)) > 0 for t in series))
    found = [_searched(t, delta, level, alpha) for t in series]
    return sorted(found, key=lambda t: (-t.behind, not t.changes, t.workload, t.label, t.key,
                                        t.fingerprint))  # fmt: skip


def _collected(files: Iterable[RecordFile]) -> list[Trend]:
    """Points in the order of the runs' starts, changes still unknown."""
    runs: set[str] = set()
    found: dict[tuple[str, str], Trend] = {}
    for file in files:
        head = file.header
        if head.run_id in runs:
            continue
        runs.add(head.run_id)
        for s in summarise([file]):
            trend = found.setdefault((s.key, head.fingerprint), _empty(s, head))
            trend.points.append(_point(s, file))
    return [
        replace(t, points=sorted(t.points, key=lambda p: (p.started, p.run)))
        for t in found.values()
    ]


def _empty(s: Summary, head: Header) -> Trend:
    c = s.cell
    return Trend(
        key=s.key, label=c.label, workload=f"{c.model} ({c.weights}), {c.images}, {c.device}",
        metric="p50 [ns]" if c.scenario == "latency" else "images/s",
        fingerprint=head.fingerprint, points=[], changes=[], levels=[], behind=0.0,
    )  # fmt: skip


def _point(s: Summary, file: RecordFile) -> Point:
    head = file.header
    where: Any = head.environment.get("directory")
    commit = where.get("commit") if isinstance(where, dict) else None
    value = Estimate(why=s.status)
    if s.ranked and s.values:
        value = s.value
    return Point(
        run=head.run_id, started=head.started, commit=str(commit or ""), path=file.path,
        value=value, status=s.status, flags=flags_of(s),
        used=value.value is not None and not any(flag in s.flags for flag in MACHINE),
    )  # fmt: skip


def _skipped(p: Point) -> bool:
    return p.status in ("unavailable", "unsupported", *UNTRIED)


def _costs(t: Trend) -> list[float]:
    """Logs of what a batch or an image costs, of the runs that are looked at."""
    sign = 1 if t.latency else -1
    return [sign * math.log(p.value.value) for p in t.points if p.used and p.value.value]


def _searched(t: Trend, delta: float, level: float, alpha: float) -> Trend:
    """With its changes."""
    costs = _costs(t)
    if not costs:
        return t
    breaks = changes(costs, delta, level)
    sign = 1 if t.latency else -1
    at = [i for i, p in enumerate(t.points) if p.used]
    steady = calmed(costs)
    edges = [0, *(b.at for b in breaks), len(costs)]
    means = [math.fsum(steady[a:b]) / (b - a) for a, b in pairwise(edges)]
    levels = [
        Level(first=at[a], last=at[b - 1], value=math.exp(sign * mean))
        for (a, b), mean in zip(pairwise(edges), means, strict=True)
    ]
    found = [
        Change(
            at=after.first, slower=b.effect.mean > 0, before=before.value, after=after.value,
            ratio=replace(b.effect, mean=sign * b.effect.mean).estimate(),
            p=min(1.0, b.p * alpha / level),
        )
        for b, (before, after) in zip(breaks, pairwise(levels), strict=True)
    ]  # fmt: skip
    behind = math.expm1(means[-1] - min(means))
    return replace(t, changes=found, levels=levels, behind=behind)
