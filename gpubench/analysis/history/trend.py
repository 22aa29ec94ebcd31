"""Trend: one cell over many runs, and the runs at which its level changed, or moved.

A run on a machine with another fingerprint belongs to another series. What a series did is
`changepoints`' to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.compare.verdicts import MACHINE
from gpubench.analysis.history.changepoints import (
    SHORTEST,
    Break,
    Ramp,
    calmed,
    detectable,
    findings,
    places,
)
from gpubench.analysis.stats import Estimate, t_quantile
from gpubench.analysis.summary import UNTRIED, Summary, flags_of, summarise
from gpubench.errors import InputError, RecordError
from gpubench.records.reader import read
from gpubench.records.record import RECORDS, Header, RecordFile
from gpubench.suite.types import Rule, title

_RULE = Rule()
MOST_TOLD = 3
"""Of the files that are of no use, where none is."""


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
    """Of the runs between two changes: mean of logs, odd runs set aside; in a drift a slope."""

    first: int
    last: int
    """Indices of points."""
    value: float
    """At the first of them: ns per batch, or images/s."""
    end: float
    """At the last; the same outside a drift."""


class Moved(Struct, frozen=True, kw_only=True):
    """From one level to another."""

    slower: bool
    before: float
    after: float
    """The levels on either side."""
    ratio: Estimate
    """after / before of the metric; ``n``: runs on the shorter side; of a drift, all."""
    p: float
    """Corrected for every place and every cell that was looked at."""


class Change(Moved, frozen=True, kw_only=True):
    """A new level."""

    at: int
    """Index of the run that is most likely the first at the new level."""
    between: tuple[int, int]
    """Indices of runs: it came after the first and not after the second of them, with 95 %."""


class Drift(Moved, frozen=True, kw_only=True):
    """A level that moved gradually, which no single run is to blame for."""

    first: int
    last: int
    """Indices of the runs between which it moved."""


class States(Struct, frozen=True, kw_only=True):
    """A machine that goes to and fro between two levels; changes are then not looked for."""

    fast: float
    slow: float
    """The levels: ns per batch, or images/s."""
    switches: int
    at_slow: list[int]
    """Indices of the runs at the slower one."""


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
    """Between changes and drifts; none without a run to look at."""
    drifts: list[Drift] = []
    states: States | None = None
    detectable: float | None = None
    """The smallest lasting slowdown (0.05: 5 %) that this many runs, with this noise, show 95
    times in 100 when it comes halfway; None with too few runs to look for any."""
    latest: tuple[int, float] | None = None
    """So many of the last runs, no change yet, cost at least this much more (0.05: 5 %; below 0:
    less) than those before, beyond what their spread explains."""
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


def find(directory: Path, note: Callable[[str], object]) -> Iterator[RecordFile]:
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
    workload = f"{title(c.model)} ({c.weights}), {c.images}, {c.device}"
    return Trend(
        key=s.key, label=c.label, workload=workload,
        metric="p50 [ns]" if c.scenario == "latency" else "images/s",
        fingerprint=head.fingerprint, points=[], changes=[], levels=[], behind=0.0,
    )  # fmt: skip


def _point(s: Summary, file: RecordFile) -> Point:
    head = file.header
    commit = head.environment.get("directory", {}).get("commit") or ""
    value = Estimate(why=s.status)
    if s.ranked and s.values:
        value = s.value
    return Point(
        run=head.run_id, started=head.started, commit=commit, path=file.path,
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
    """With what it did."""
    costs = _costs(t)
    if not costs:
        return t
    found = findings(costs, delta, level)
    sign = 1 if t.latency else -1
    at = [i for i, p in enumerate(t.points) if p.used]

    def value(cost: float) -> float:
        return math.exp(sign * cost)

    steady = calmed(costs)
    for ramp in found.ramps:
        steady = [x - ramp.effect.mean * ramp.share(i) for i, x in enumerate(steady)]
    edges = [0, *(b.at for b in found.breaks), len(costs)]
    means = [math.fsum(steady[a:b]) / (b - a) for a, b in pairwise(edges)]

    def cost(i: int) -> float:
        """The level at a run."""
        own = means[sum(b.at <= i for b in found.breaks)]
        return own + math.fsum(r.effect.mean * r.share(i) for r in found.ramps)

    bends = {i for r in found.ramps for i in (r.first, r.last) if 0 < i < len(costs) - 1}
    parts = [*pairwise(sorted({*edges, *bends}))]
    levels = [
        Level(first=at[a], last=at[b - 1], value=value(cost(a)), end=value(cost(b - 1)))
        for a, b in parts
    ]

    def moved(by: Break | Ramp, first: int, last: int) -> dict[str, Any]:
        ratio = (by.effect if t.latency else by.effect.mirrored()).estimate()
        return {"slower": by.effect.mean > 0, "before": value(cost(first)),
                "after": value(cost(last)), "ratio": ratio,
                "p": min(1.0, by.p * alpha / level)}  # fmt: skip

    changed = [
        Change(at=at[b.at], between=(at[b.low - 1], at[b.high]), **moved(b, b.at - 1, b.at))
        for b in found.breaks
    ]
    drifts = [
        Drift(first=at[r.first], last=at[r.last], **moved(r, r.first, r.last)) for r in found.ramps
    ]
    states = None
    if two := found.states:
        states = States(fast=value(two.low), slow=value(two.high), switches=two.switches,
                        at_slow=[at[i] for i in two.upper])  # fmt: skip
    ends = [cost(i) for i in (0, *(b.at for b in found.breaks), *bends, len(costs) - 1)]
    return replace(
        t, changes=changed, levels=levels, drifts=drifts, states=states,
        detectable=detectable(costs, delta, level),
        latest=_latest(costs[edges[-2]:], delta, level) if not found.ramps and not states else None,
        behind=math.expm1(ends[-1] - min(ends)),
    )  # fmt: skip


def _latest(costs: Sequence[float], delta: float, level: float) -> tuple[int, float] | None:
    """`Trend.latest`, of the runs since the last change: the interval for one more run decides."""
    for many in range(SHORTEST, 0, -1):
        before, last = calmed(costs[:-many]), costs[-many:]
        if len(before) < SHORTEST:
            continue
        middle, n = fmean(before), len(before)
        reach = t_quantile(1 - level / (2 * SHORTEST), n - 1) * stdev(before) * math.sqrt(1 + 1 / n)
        off = [x - middle for x in last]
        least = min(off, key=abs)
        if abs(least) > max(reach, math.log1p(delta)) and max(off) * min(off) > 0:
            return many, math.expm1(least)
    return None
