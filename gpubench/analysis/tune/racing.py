"""Where the configurations of a search stand, and what should be measured next.

Pure functions of (cells, records, search): a search that was interrupted reads its records and goes
on, and what was dropped comes back by itself when the leader falls.

Repeats 0 and 1 of a cell are its exploration, measured at any time; each repeat from 2 on is a
round of the race, in which the leader and all that may still beat it were measured side by side.
A configuration is compared with the leader by its differences of log cost: one for the exploration,
one for each round that both were in. What a few of them show is in `analysis.tune.noise`; in
short, a single one drops only what costs at least 1.5 times as much.

`Search.alpha` is the chance that a configuration is called worse although it is as good as the
leader, itself the luckiest of many. Each look at it has a quarter (`LOOKS`). What is not called
worse is measured further only while it can be better than the leader by more than `Search.delta`,
at `stats.LEVEL`: so what is as good and no better does not keep a race going, and what looked far
worse twice is left alone, though two bursts could have hit it. Then what is near and simpler than
the leader, the simplest first, until one was within `best.ALIKE` in as many rounds: the luckiest of
many leads, and few rounds say no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis import floors, stats
from gpubench.analysis.best import ALIKE, simplicity
from gpubench.analysis.floors import Floor
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tune import constraints, noise, pruning
from gpubench.analysis.tune import objective as tune_objective
from gpubench.analysis.tune.constraints import Kept as Kept
from gpubench.analysis.tune.noise import Noise
from gpubench.analysis.tune.objective import Best
from gpubench.analysis.tune.pruning import Outlook
from gpubench.records.parity import over_repeats
from gpubench.records.record import FAILURES, Record
from gpubench.suite.goal import Metric, Search
from gpubench.suite.types import Cell

ROUNDS = 8
"""Rounds of the race that one configuration is measured in, at most."""
SIDE = 2
"""Rounds in which two that are called equal were measured side by side, at least."""
NEAR = 12
"""Repeats of what may turn out to keep its limits, at most, where nothing else does."""
LOOKS = 4
"""That share alpha: a configuration may be looked at more often, but successive looks have most of
their differences in common (`tests.analysis.tune.test_racing_simulated` counts what is worse)."""
PASSES = 3
"""For the leader: differences to another one may say that a third leads."""
CHECK = 1
"""The repeat that checks all answers; nothing is ruled out by, or recommended without it."""

Status = Literal["leader", "alive", "worse", "violates", "failed", "ruled-out", "unmeasured"]
RANKED: tuple[Status, ...] = ("leader", "alive", "worse")
"""Of what was measured and is not known to fail or to break a limit."""


class Standing(Struct, frozen=True, kw_only=True):
    """What is known of one configuration."""

    cell: Cell
    status: Status
    """violates: breaks a limit, or is so close that it cannot be promised. ruled-out: also what
    this machine cannot do."""
    reason: str = ""
    n: int = 0
    """Good repeats."""
    value: Estimate = Estimate(why="not measured")
    """The objective, in its unit; the interval is of the repeats, spread pooled."""
    behind: Estimate | None = None
    """Cost / the leader's cost: 1.10 is 10 % worse. By differences within blocks."""
    limits: tuple[Kept, ...] = ()
    floor: Floor | None = None
    """Of accuracy, where one was asked for and judged."""
    repeats: tuple[int, ...] = ()
    """Numbers of the good repeats."""
    least: float | None = None
    """What ``behind`` is at least, at `stats.LEVEL`; None of what is not alive."""
    tied: bool = False
    """Alive after SIDE rounds beside the leader, may be as good but for ALIKE, and was seen to be
    no more than `Search.delta` behind it."""

    @property
    def keeps(self) -> bool:
        """Every limit is met."""
        return all(each.state == "met" for each in self.limits)

    @property
    def ratio(self) -> float:
        """`behind`, to sort by; infinite where it is not known."""
        return (self.behind.value if self.behind else None) or math.inf

    @property
    def rounds(self) -> int:
        """Rounds of the race that it was measured in."""
        return sum(r > CHECK for r in self.repeats)


class _Tried(Struct, kw_only=True):
    """A cell with good records."""

    cell: Cell
    records: dict[int, Record]
    costs: dict[int, float]
    """Repeat -> log cost."""
    blocks: dict[int, float]
    kept: tuple[Kept, ...] = ()

    @property
    def broken(self) -> list[str]:
        """What is not kept, or cannot be shown to be: more repeats ask for the same answers."""
        found = [k.text for k in self.kept if k.state == "violated" or k.hopeless]
        unsure = self.floor is not None and self.floor.state == "undecided"
        return found + [self.floor.text] * unsure if self.floor else found

    @property
    def floor(self) -> Floor | None:
        return floors.of(over_repeats([r.parity for r in self.records.values() if r.parity]))

    @property
    def open(self) -> bool:
        return any(k.state == "open" for k in self.kept)


def judge(
    cells: Sequence[Cell], records: Iterable[Record], search: Search, best: Best | None = None
) -> list[Standing]:
    """Where each cell stands, in the order of ``cells``.

    A ``ruled-out`` record counts as what it says: a search that goes on leaves them out.
    """
    by_cell, prior = _by_cell(records), _prior(search.goal.objective)
    failed = {key: _failure(found, search) for key, found in by_cell.items()}
    tried = {key: _tried(found, search) for key, found in by_cell.items() if failed[key] is None}
    _judge_limits(list(tried.values()), search)
    first = _leader([each for each in tried.values() if not each.broken], search)
    spread = noise.between([each.blocks for each in tried.values()], prior)
    within = noise.within([list(each.costs.values()) for each in tried.values()], prior)
    # only a leader whose answers were all checked rules anything out
    beat = median(first.costs.values()) if first and CHECK in first.costs else None
    slow = [
        (each.cell, k) for each in tried.values() for k in each.kept
        if k.state == "violated" and k.limit.metric.kind == "latency"
    ]  # fmt: skip
    failing = pruning.shared(r for found in by_cell.values() for r in found.values())
    outlook = Outlook(search.goal, best, beat, slow, failing)
    found = []
    for cell in cells:
        key = cell.key
        if key in tried:
            found.append(_standing(tried[key], first, spread, within, search))
        else:
            against = "" if failed.get(key) else outlook.against(cell)
            status: Status = "ruled-out" if against else "unmeasured"
            found.append(failed.get(key) or Standing(cell=cell, status=status, reason=against))
    return found


def leader(standings: Sequence[Standing]) -> Standing | None:
    """The one to beat, if any."""
    return next((s for s in standings if s.status == "leader"), None)


def wanted(standings: Sequence[Standing], search: Search) -> list[tuple[Cell, int]]:
    """The next round: cells and the number of the repeat; [] when the race is decided.

    The leader is measured alone where its answers were not checked yet (repeat 1), and at the end
    while its limits are open.
    """
    if (first := leader(standings)) is None:
        return _nearest(standings)
    if CHECK not in first.repeats:
        return [(first.cell, CHECK)]
    better = 1 / (1 + search.delta)
    rivals = [
        s for s in standings if s.least is not None and s.least < better and s.rounds < ROUNDS
    ]
    if not rivals and (first.keeps or first.n >= constraints.MOST):
        simplest = _equals(standings)[0]
        rivals = _simpler(standings, simplest)
        if not rivals:
            return [] if CHECK in simplest.repeats else [(simplest.cell, CHECK)]
    number = 1 + max(CHECK, *(max(s.repeats) for s in (first, *rivals)))
    return [(s.cell, number) for s in (first, *rivals)]


def _simpler(standings: Sequence[Standing], taken: Standing) -> list[Standing]:
    """One that may turn out to be alike and simpler than ``taken``, or that itself, if so far few
    rounds speak for it; [] where there is none."""
    near = [s for s in standings if s.least is not None and s.least <= 1 + ALIKE and s.keeps
            and s.rounds < ROUNDS
            and (s is taken or simplicity(s.cell) < simplicity(taken.cell))]  # fmt: skip
    return sorted(near, key=lambda s: simplicity(s.cell))[:1]


def _nearest(standings: Sequence[Standing]) -> list[tuple[Cell, int]]:
    """Where nothing keeps the limits: more repeats of what is closest to being shown to.

    Its spread is judged by few repeats until then, and nothing else is left to measure. What comes
    closest of all is measured until it is settled: its first try may have met other work.
    """
    known = [s for s in standings if s.n and s.limits]
    near = [s for s in known if s.n < NEAR and all(k.state == "met" or k.near for k in s.limits)]
    closest = min(known, key=_beyond, default=None)
    if closest and closest.n < constraints.SETTLED:
        near.append(closest)
    first = min(near, key=_beyond, default=None)
    if first is None:
        return []
    return [(first.cell, CHECK if CHECK not in first.repeats else 1 + max(first.repeats))]


def _beyond(s: Standing) -> float:
    return max(map(constraints.beyond, s.limits))


def unseen(standings: Sequence[Standing]) -> list[str]:
    """Backends of which nothing was tried, and that nothing speaks against."""
    known = {s.cell.backend for s in standings if s.n or s.status == "failed"}
    open_ = (s.cell.backend for s in standings if s.status == "unmeasured")
    return [name for name in dict.fromkeys(open_) if name not in known]


def backends(standings: Iterable[Standing]) -> list[str]:
    """Of the space, in its order."""
    return list(dict.fromkeys(s.cell.backend for s in standings))


def compared(standings: Sequence[Standing]) -> bool:
    """Whether enough backends were tried to recommend one: two, where there are two."""
    most = len(backends(standings))
    return most - len(unseen(standings)) >= min(2, most)


def recommended(standings: Sequence[Standing]) -> Standing | None:
    """The leader, where it was checked and all its limits are met; else the best that is so.

    Of what is not told apart from the leader the simplest. None until two backends were tried.
    """
    if not compared(standings):
        return None
    sure = [s for s in standings if CHECK in s.repeats and s.n > 1 and s.keeps
            and s.status in RANKED]  # fmt: skip
    best = min(sure, key=lambda s: (s.status != "leader", s.ratio), default=None)
    if best is None or best.status != "leader":
        return best
    return next((s for s in _equals(standings) if s in sure), best)


def ties(standings: Sequence[Standing], best: Standing) -> list[Standing]:
    """What the search did not tell apart from ``best``, the simplest first."""
    if best.status != "leader" and not best.tied:
        return []
    equal = [s for s in standings if (s.status == "leader" or s.tied) and s.keeps and s is not best]
    return sorted(equal, key=lambda s: simplicity(s.cell))


def _equals(standings: Sequence[Standing]) -> list[Standing]:
    """The leader and what ties with it within ALIKE, the simplest first; of equals today's default,
    which stands first."""
    equal = [s for s in standings
             if s.status == "leader" or (s.tied and s.keeps and s.ratio <= 1 + ALIKE)]  # fmt: skip
    return sorted(equal, key=lambda s: simplicity(s.cell)) if leader(standings) else []


def today(standings: Sequence[Standing], search: Search) -> Standing | None:
    """The best of today's default: of what was seen to keep the limits, if any was."""
    metric = search.goal.objective
    known = [s for s in standings if s.cell.key in search.baseline and s.value.value
             and s.status != "failed"]  # fmt: skip
    return min(
        known,
        key=lambda s: (breaks(s), tune_objective.cost(metric, s.value.value or 1.0)),
        default=None,
    )


def breaks(s: Standing) -> bool:
    """Whether the mean of its repeats breaks a limit, however sure that is."""
    return any(k.value and constraints.over(k.limit, k.value, 0.0) for k in s.limits)


def _by_cell(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """Key -> repeat -> its last record; a task that the run did not come to is none."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        if record.kind != "not-run":
            found.setdefault(record.cell.key, {})[record.repeat] = record
    return found


def _failure(found: dict[int, Record], search: Search) -> Standing | None:
    """One repeat that went wrong is enough, whatever the others showed."""
    objective = search.goal.objective
    good = [r for r in found.values() if r.status == "ok"]
    wrong = [r for r in found.values() if r.status != "ok"]
    if wrong:
        said = wrong[0]
        kind = f"{said.kind}: " if said.kind and said.kind not in said.reason else ""
        reason = kind + (said.reason or FAILURES.get(said.kind, "no reason recorded"))
        status: Status = "failed" if said.status == "failed" else "ruled-out"
    elif any(tune_objective.value(r, objective) for r in good):
        return None
    else:
        said, status, reason = good[0], "failed", f"{objective.name} could not be measured"
    return Standing(cell=said.cell, status=status, reason=reason, n=len(good))


def _tried(found: dict[int, Record], search: Search) -> _Tried:
    objective = search.goal.objective
    costs = {
        n: tune_objective.cost(objective, value)
        for n in sorted(found)
        if (value := tune_objective.value(found[n], objective))
    }
    early = [x for n, x in costs.items() if n <= CHECK]
    blocks = ({0: fmean(early)} if early else {}) | {n: x for n, x in costs.items() if n > CHECK}
    return _Tried(cell=next(iter(found.values())).cell, records=found, costs=costs, blocks=blocks)


def _prior(metric: Metric) -> Noise:
    return noise.prior(0.2 if metric.kind == "memory" else 1.0)


def _judge_limits(tried: Sequence[_Tried], search: Search) -> None:
    for limit in search.goal.limits:
        metric = limit.metric
        values = [
            [v for r in each.records.values() if (v := tune_objective.value(r, metric))]
            for each in tried
        ]
        costs = [[tune_objective.cost(metric, v) for v in each] for each in values]
        spread = noise.within(costs, _prior(metric))
        for each, found in zip(tried, values, strict=True):
            samples = sum(len(r.latencies_ns()) for r in each.records.values())
            each.kept += (constraints.judged(limit, found, spread, samples),)


def _leader(racing: Sequence[_Tried], search: Search) -> _Tried | None:
    """The lowest cost. What was measured once, or has limits that are open, must lead by delta.

    By differences within blocks, as far as there are any, from whatever looks best at first.
    """
    if not racing:
        return None
    step = math.log1p(search.delta)
    best = min(racing, key=lambda each: median(each.costs.values()))
    handicaps = [step * ((len(each.costs) < constraints.TWICE) + each.open) for each in racing]
    for _ in range(PASSES):
        behind = [_centre(each, best) + x for each, x in zip(racing, handicaps, strict=True)]
        if (first := racing[behind.index(min(behind))]) is best:
            break
        best = first
    return best


def _centre(each: _Tried, other: _Tried) -> float:
    found = noise.differences(each.blocks, other.blocks)
    return median(found) if found else median(each.costs.values()) - median(other.costs.values())


def _standing(
    each: _Tried, leader: _Tried | None, spread: Noise, within: Noise, search: Search
) -> Standing:
    standing = Standing(
        cell=each.cell, status="alive", n=len(each.costs), value=_value(each, within, search),
        limits=each.kept, floor=each.floor, repeats=tuple(sorted(each.records)),
    )  # fmt: skip
    if leader is None:
        return replace(standing, status="violates", reason="; ".join(each.broken))
    if each is leader:
        behind = Estimate(value=1.0, low=1.0, high=1.0, n=standing.n)
        waiting = "; ".join(k.text for k in each.kept if k.state != "met")
        return replace(standing, status="leader", behind=behind, reason=waiting)
    found = noise.differences(each.blocks, leader.blocks)
    centre = _centre(each, leader)
    standing = replace(standing, behind=_behind(centre, found, spread))
    if each.broken:
        return replace(standing, status="violates", reason="; ".join(each.broken))
    ratio = math.exp(centre)
    said = f"{units.percent(abs(ratio - 1))} {'behind' if ratio >= 1 else 'ahead'}"
    surely = noise.at_least(found, spread, search.alpha / LOOKS)
    if surely > 0:
        reason = f"{said}, at least {units.percent(math.expm1(surely))}"
        return replace(standing, status="worse", reason=f"{reason} ({stats.repeats(standing.n)})")
    least = math.exp(noise.at_least(found, spread, 1 - stats.LEVEL))
    may = "may be" if least < 1 / (1 + search.delta) else "not"
    reason = f"{said}; {may} better by more than {units.percentage(search.delta)}"
    tied = standing.rounds >= SIDE and ratio <= 1 + search.delta and least <= 1 + ALIKE
    return replace(standing, least=least, reason=reason, tied=tied)


def _value(each: _Tried, within: Noise, search: Search) -> Estimate:
    """The median, with an interval from the pooled spread.

    The variance of a median is taken as pi / 2 times that of a mean, which it is for many normal
    values; for three it is 1.35 times, for four 1.19: the interval is a little wide.
    """
    sign = -1 if search.goal.objective.more_is_better else 1
    centre, n = median(each.costs.values()), len(each.costs)
    half = within.t((1 + stats.LEVEL) / 2) * math.sqrt((math.pi / 2 if n > 2 else 1) / n)
    low, high = sorted(math.exp(sign * (centre + x)) for x in (half, -half))
    found = Estimate(value=math.exp(sign * centre), low=low, high=high, n=n)
    if (found.relative_half_width or 0.0) <= stats.MOST_HALF_WIDTH:
        return found
    if n < constraints.TWICE:
        return Estimate(value=found.value, n=n, why=stats.repeats(n))
    ends = sorted(math.exp(sign * x) for x in each.costs.values())
    return Estimate(value=found.value, n=n, why=stats.USELESS, span=(ends[0], ends[-1]))


def _behind(centre: float, found: Sequence[float], spread: Noise) -> Estimate:
    if not found:
        return Estimate(value=math.exp(centre), why="never measured beside the leader")
    tail = (1 - stats.LEVEL) / 2
    low = min(centre, noise.at_least(found, spread, tail))
    high = max(centre, -noise.at_least([-x for x in found], spread, tail))
    low, middle, high = (math.exp(min(x, stats.MOST_LOG)) for x in (low, centre, high))
    return Estimate(value=middle, low=low, high=high, n=len(found))
