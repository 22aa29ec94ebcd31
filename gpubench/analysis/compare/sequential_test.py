"""The decision of an interleaved A/B: a group-sequential test of every cell, in both directions.

Every pair counts. A cell is looked at when it has as many pairs as one of `Rule.looks` says, and
at EARLY, and is measured until a look decides it. Each look has its own share of `Rule.alpha`
(`levels`), and has it whether or not it is reached. So whatever ends a cell's measuring (the
budget, somebody, the choice of the cells that are measured first), the chance of any false alarm
in the whole suite holds, and a decision that was made is never taken back.

A difference is d = log(candidate / baseline) of the cost (ns, or s per image): above 0 is slower.
The order of a pair's turns (`Record.order`) must have been drawn at random; then the test is exact
for identical arms. It and the interval are those of `analysis.compare.signed_rank`: ranks, so that
the pairs hit by a burst of somebody else's work do not hide a change.

In either direction the family is all cells that have not been called different (Holm 1979),
measured or not. Where a look has too few pairs for its level to be shared by all of them, those
share it that are furthest from the margin at the start: under the null hypothesis the sizes
|d - margin| say nothing of the signs that are tested (Westfall & Young, "Resampling-based multiple
testing", 1993; Kropf & Laeuter, "Multiple tests for different sets of variables using a data-driven
ordering of hypotheses", 2002).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from statistics import median

from msgspec import Struct

from gpubench import units
from gpubench.analysis import stats
from gpubench.analysis.compare import signed_rank
from gpubench.suite.types import Rule

LEVEL = 0.98
"""Of a single interval. Since looking decides which one is shown, it holds the truth less often: 95
times in 100, as the simulations in `tests.benchmarks.trust.coverage` find."""
EARLY, FAR, BURST = 4, math.log(1.5), 1 / 30
"""So many pairs that are all more than FAR beyond the margin decide, before any rank test could.
This look alone assumes something of the noise: that pairs of identical arms are off by so much, in
one direction, at most once in 30, each by itself: not where turns are few (`Pair.coarse`)."""
EARLY_SHARE, FIRST_SHARE = 0.02, 0.4
"""Of alpha: that of the look at EARLY pairs and of the first rank test; the later looks share the
rest equally."""
FUTILE, HOPE = 19, 0.75
"""From so many pairs on a cell is given up that no look would decide, were its effect what it
seems to be, give or take HOPE standard errors."""
POWER = 0.98
"""Of each of the two ways in which what is called detectable may be missed: 95 in 100 remain."""
UNLUCKY = 2.3
"""Standard errors by which one cell in 20 looks smaller than it is, that of the sd included."""
SURE = 0.9
"""It allows for the upper bound of the sd that holds so often."""
USUAL_SD, USUAL = 0.02, 14
"""What is said of an A/B beforehand is for this pair sd, with which identical cells take so many
pairs."""
UNSTEADY_SHARE = 0.75
"""More pairs than this flagged as not steady forbid EQUIVALENT: noise that is merely correlated
(AR(1), 0.9) flags nearly half of them."""

CODES = {
    "confirmed": "beyond the margin, after correction for the number of looks and of cells",
    "inside-margin": "the whole 95 % interval lies inside the margin",
    "not-steady": "inside the margin, but the processes were still changing: nothing is shown",
    "unconfirmed": "looks different; measuring ended before a look that could decide it",
    "near-margin": "so near to the margin, for its noise, that more pairs would hardly decide it",
    "wide-interval": "the interval is too wide to tell on which side of the margin the change lies",
    "few-pairs": "measuring ended before the first look at the pairs",
}
"""Every `Verdict.code` and what it means."""


class Pair(Struct, frozen=True, kw_only=True):
    """One pair of processes."""

    d: float
    """log(candidate / baseline) of the cost."""
    trends: tuple[float, float] = (0.0, 0.0)
    """Within the process of the baseline and of the candidate: log(late cost / early cost)."""
    spreads: tuple[float, float] = (0.0, 0.0)
    """Likewise: late - early spread, the median distance from the median as a share of it."""
    unsteady: bool = False
    """Flagged DRIFT or NO-STEADY-STATE in either arm."""
    coarse: bool = False
    """Each arm had two turns at most: who comes and goes in step with them may hit one arm alone,
    pair after pair, as often as the draw allows. The look at EARLY pairs is not for such."""


NOTHING: Mapping[str, int] = {}
Cells = Mapping[str, Sequence[Pair]]
"""Cell -> its pairs in the order in which they were measured."""


class Shift(Struct, frozen=True):
    """Where the differences lie, with the 95 % interval; no bounds below six pairs."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float:
        """Half-width of the interval; infinite without one."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def sd(self) -> float:
        """The standard deviation that would give Student's t an interval as wide."""
        return self.half * math.sqrt(self.n) / stats.t_quantile((1 + LEVEL) / 2, max(1, self.n - 1))

    def interval(self) -> tuple[float, float] | None:
        """(low, high), if any."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def inside(self, margin: float) -> bool:
        """Whether the whole interval lies within -``margin`` .. ``margin``."""
        low, high = self.interval() or (-math.inf, math.inf)
        return -margin < low and high < margin


class Verdict(Struct, frozen=True, kw_only=True):
    """What the pairs of one cell say."""

    verdict: str
    """REGRESSED, IMPROVED, EQUIVALENT or INCONCLUSIVE."""
    code: str
    """Why, for programs: a key of CODES."""
    reason: str
    effect: Shift | None = None
    pairs: int
    """Of the interval: the first ones, up to the look that decided, else all."""
    pair_sd: float | None = None
    """Of normal noise that would give an interval as wide: see `signed_rank`."""
    p: float | None = None
    """After correction for looks, directions and cells: at most alpha where it is confirmed."""
    smallest_detectable: float | None = None
    """The slowdown (0.05: 5 %) that this design finds 95 times in 100 at this pair sd."""


@lru_cache
def levels(rule: Rule) -> dict[int, float]:
    """Look -> chance of a false alarm in one direction, over all cells, that it may have.

    0 before the first one that can reach its level with any pairs: EQUIVALENT only.
    """
    side = rule.alpha / 2
    able = [n for n in rule.looks if 2.0**-n <= FIRST_SHARE * side]
    rest = (1 - EARLY_SHARE - FIRST_SHARE) * side / max(1, len(able) - 1)
    found = dict.fromkeys(rule.looks, 0.0) | dict.fromkeys(able, rest)
    found |= dict.fromkeys(able[:1], FIRST_SHARE * side) | {EARLY: EARLY_SHARE * side}
    return dict(sorted(found.items()))


def sharing(n: int, family: int, rule: Rule) -> int:
    """Cells of ``family`` that share the level of a look at ``n`` pairs."""
    least = BURST**EARLY if n == EARLY else 2.0**-n
    return min(family, int(levels(rule)[n] / least))


class _Own(Struct, frozen=True):
    """What a cell says by itself at the looks that it has reached, whatever comes later."""

    sign: int = 0
    """+1: from some look on it would be slower, were it alone; -1: faster."""
    closed: int = 0
    """The look at which the interval lay inside the margin, and the last; 0: none."""
    looks: tuple[tuple[int, dict[int, float]], ...] = ()
    """(pairs, sign -> p of 'the cost lies around the margin or nearer')."""


class _Cell(Struct, frozen=True):
    d: tuple[float, ...]
    own: _Own
    early: bool
    """Its pairs may decide at EARLY."""

    def distance(self, sign: int, rule: Rule) -> float:
        """Median distance from the margin of the pairs up to the first look.

        A pair that is not there yet counts as infinitely far out: it puts no other cell ahead.
        """
        margin, first = sign * math.log1p(rule.delta), rule.looks[0]
        sizes = [abs(x - margin) for x in self.d[:first]]
        return median(sizes + [math.inf] * (first - len(sizes)))


def _read(cells: Cells, rule: Rule) -> dict[str, _Cell]:
    found = {}
    for key, pairs in cells.items():
        d = tuple(pair.d for pair in pairs[: rule.looks[-1]])
        reached = max((n for n in levels(rule) if n <= len(d)), default=0)
        early = not any(pair.coarse for pair in pairs[:EARLY])
        found[key] = _Cell(d, _own(d[:reached], rule, early), early)
    return found


@lru_cache(maxsize=1 << 14)
def _own(d: tuple[float, ...], rule: Rule, early: bool) -> _Own:
    """Of as many pairs as some look has, or none; ``early``: `_Cell.early`."""
    if not d:
        return _Own()
    n, looks = len(d), [0, *levels(rule)]
    before = _own(d[: looks[looks.index(n) - 1]], rule, early)
    if before.closed or (n == EARLY and not early):
        return before
    p, level = {sign: _chance(d, sign, rule) for sign in (1, -1)}, levels(rule)[n]
    sign = before.sign or next((s for s in p if p[s] <= level), 0)
    equal = not sign and n in rule.looks and shift(d).inside(math.log1p(rule.delta))
    return _Own(sign, n if equal else 0, (*before.looks, (n, p)))


def _chance(d: tuple[float, ...], sign: int, rule: Rule) -> float:
    margin = math.log1p(rule.delta)
    if len(d) == EARLY:
        return BURST**EARLY if min(sign * x for x in d) > margin + FAR else 1.0
    return signed_rank.p_above([sign * x for x in d], margin)


@lru_cache(maxsize=1 << 14)
def shift(d: tuple[float, ...]) -> Shift:
    """Where differences lie."""
    return Shift(*signed_rank.around(d, LEVEL), len(d))


def _different(cells: Mapping[str, _Cell], rule: Rule) -> dict[str, tuple[int, float]]:
    """Cell that is called different -> (look, corrected p).

    Step-down: whatever has been called different leaves the family, and the others are asked again.
    """
    found: dict[str, tuple[int, float]] = {}
    while True:
        family = {key: cell for key, cell in cells.items() if key not in found}
        new = {}
        for sign in {cell.own.sign for cell in family.values()} - {0}:
            far = {key: cell.distance(sign, rule) for key, cell in family.items()}
            for key, cell in family.items():
                if cell.own.sign == sign:
                    ahead = sum(x >= far[key] for x in far.values()) - 1
                    if said := _first(cell.own, ahead, len(family), rule):
                        new[key] = said
        if not new:
            return found
        found |= new


def _first(own: _Own, ahead: int, family: int, rule: Rule) -> tuple[int, float] | None:
    """(look, corrected p) of the first look that decides; ``ahead``: cells further out."""
    for n, p in own.looks:
        many, level = sharing(n, family, rule), levels(rule)[n]
        if ahead < many and many * p[own.sign] <= level:
            return n, many * p[own.sign] * rule.alpha / level
    return None


def judge(cells: Cells, rule: Rule) -> dict[str, Verdict]:
    """The verdict on every cell, from these pairs alone and in whatever order the cells come."""
    read = _read(cells, rule)
    found = _different(read, rule)
    family = max(1, len(cells) - len(found))
    return {
        key: _verdict(pairs, read[key], found.get(key), family, rule)
        for key, pairs in cells.items()
    }


def _verdict(
    pairs: Sequence[Pair], cell: _Cell, found: tuple[int, float] | None, family: int, rule: Rule
) -> Verdict:
    d, closed = cell.d, cell.own.closed
    n = max(found[0], min(rule.looks[0], len(d))) if found else closed or len(d)
    effect = shift(d[:n]) if n > 1 else None
    sd = effect.sd if effect and math.isfinite(effect.half) else None
    if not closed:
        told = _words(cell, effect, found, family, rule)
    elif doubt := not_steady(pairs[:n], rule):
        told = "INCONCLUSIVE", "not-steady", doubt
    else:
        inside = f"interval inside \u00b1{units.percentage(rule.delta)}"
        told = "EQUIVALENT", "inside-margin", inside
    return Verdict(
        verdict=told[0], code=told[1], reason=told[2], effect=effect, pairs=n, pair_sd=sd,
        p=found[1] if found else None,
        smallest_detectable=None if sd is None else smallest_detectable(sd, n, family, rule),
    )  # fmt: skip


def _words(
    cell: _Cell, effect: Shift | None, found: tuple[int, float] | None, family: int, rule: Rule
) -> tuple[str, str, str]:
    """(verdict, reason code, reason) of what is not inside the margin."""
    margin, delta, d = math.log1p(rule.delta), units.percentage(rule.delta), cell.d
    if found:
        n, p = found
        how = (
            f"by more than {math.exp(FAR):.2g}x" if n == EARLY else f"p = {p:.2g} after correction"
        )
        reason = f"{_seen(d[:n], rule)}, beyond {delta}: {how}"
        return "REGRESSED" if cell.own.sign > 0 else "IMPROVED", "confirmed", reason
    bounds = effect.interval() if effect else None
    low, high = bounds or (min(d, default=0.0), max(d, default=0.0))
    if len(d) > 1 and (cell.own.sign or low > margin or high < -margin):
        return "INCONCLUSIVE", "unconfirmed", f"{_seen(d, rule)}; unconfirmed"
    if len(d) < rule.looks[0]:
        few = f"{len(d)} of the {rule.looks[0]} pairs of the first look"
        return "INCONCLUSIVE", "few-pairs", few
    if _pairs_for(cell, family, rule) is None:
        return "INCONCLUSIVE", "near-margin", f"too near to \u00b1{delta} for its noise"
    return "INCONCLUSIVE", "wide-interval", f"the interval reaches across \u00b1{delta}"


def _seen(d: tuple[float, ...], rule: Rule) -> str:
    """'about 7x faster in 21 of 21 pairs': so many lie beyond the margin."""
    value = shift(d).value
    sign, times = (1 if value > 0 else -1), math.exp(min(stats.MOST_LOG, abs(value)))
    won = sum(sign * x > math.log1p(rule.delta) for x in d)
    size = f"{times:.2f}" if times < 2 else units.significant(times, 2)
    return f"about {size}x {'slower' if sign > 0 else 'faster'} in {won} of {len(d)} pairs"


def needs(
    cells: Cells, rule: Rule, *, intervals: bool = False, more: Mapping[str, int] = NOTHING
) -> dict[str, int]:
    """Open cell -> how many more pairs probably decide it, the clearest first.

    Left out: what no further pair can change, and what is given up (see FUTILE). With ``intervals``
    what decided cells lack for theirs comes after; last come ``more``, which other metrics want.
    """
    read = _read(cells, rule)
    found = _different(read, rule)
    family = max(1, len(cells) - len(found))
    open_ = {
        key: n - len(cell.d)
        for key, cell in read.items()
        if key not in found and (n := _pairs_for(cell, family, rule))
    }
    order = sorted(open_, key=lambda key: (open_[key], -abs(median(read[key].d or [0.0]))))
    short = {key: rule.looks[0] - len(read[key].d) for key in found if intervals}
    own = {key: open_[key] for key in order} | {key: n for key, n in short.items() if n > 0}
    return own | {key: max(n, own.get(key, 0)) for key, n in more.items()}


def turn(
    cells: Cells,
    rule: Rule,
    pair_s: Mapping[str, float],
    left_s: float,
    broken: Collection[str] = (),
    more: Mapping[str, int] = NOTHING,
) -> list[str]:
    """The cells of which one more pair is measured now; none: measuring has ended.

    Every cell gets a first pair. Then all that are open take turns; where the ``left_s`` seconds
    of the budget will not do for all of them, the clearest ones: as many as they will do for, at
    least one. What is left is for the intervals of cells that are decided already. ``pair_s``:
    seconds that a pair takes; ``broken``: cells of which no more is wanted; ``more``: see `needs`.
    """
    first = [key for key, pairs in cells.items() if not pairs and key not in broken]
    if first or left_s <= 0:
        return first
    chosen: list[str] = []
    for key, pairs in needs(cells, rule, intervals=True, more=more).items():
        if key not in broken:
            left_s -= pairs * pair_s[key]
            if chosen and left_s < 0:
                break
            chosen.append(key)
    return chosen


def _pairs_for(cell: _Cell, family: int, rule: Rule) -> int | None:
    """Pairs at the look that would decide a cell whose effect is what it seems; None: no look."""
    d, have = cell.d, len(cell.d)
    if cell.own.closed or have >= rule.looks[-1]:
        return None
    reached = max((n for n in rule.looks if n <= have), default=0)
    if reached:
        return _forecast(d[:reached], family, rule)
    far = math.log1p(rule.delta) + FAR
    soon = cell.early and d and have < EARLY and any(all(s * x > far for x in d) for s in (1, -1))
    return EARLY if soon else rule.looks[0]


@lru_cache(maxsize=1 << 14)
def _forecast(d: tuple[float, ...], family: int, rule: Rule) -> int | None:
    """The same, from as many pairs as some look has."""
    effect, later = shift(d), [n for n in rule.looks if n > len(d)]
    sd, size, margin = effect.sd, abs(effect.value), math.log1p(rule.delta)
    hope = HOPE * sd / math.sqrt(effect.n)
    for n in later:
        beyond, within = (x * sd / math.sqrt(n) for x in _reaches(n, family, rule))
        if size + hope >= margin + beyond or max(0.0, size - hope) <= margin - within:
            return n
    return None if effect.n >= FUTILE else later[-1]


@lru_cache(maxsize=4096)
def _reaches(n: int, family: int, rule: Rule) -> tuple[float, float]:
    """Standard errors between margin and effect where a look is as likely as not to call it
    different, and where it calls it equivalent."""
    many = sharing(n, family, rule)
    beyond = stats.t_quantile(1 - levels(rule)[n] / many, n - 1) if many else math.inf
    return beyond, stats.t_quantile((1 + LEVEL) / 2, n - 1)


def not_steady(used: Sequence[Pair], rule: Rule) -> str:
    """Why these traces (of two pairs or more) cannot show equivalence; '' when they can.

    Too many of them drift by themselves, or the level or the spread of one arm's processes moves in
    the same direction: by more than half the margin and by more than three standard errors.
    """
    share = sum(pair.unsteady for pair in used) / len(used)
    if share > UNSTEADY_SHARE:
        return f"{share:.0%} of the pairs are not steady"
    for arm, name in enumerate(("baseline", "candidate")):
        if moved := _moved([pair.trends[arm] for pair in used], rule):
            return f"the {name}'s cost moves by {math.expm1(moved):+.1%} within its processes"
        if moved := _moved([pair.spreads[arm] for pair in used], rule):
            return f"the {name}'s spread moves by {moved:+.1%} of its cost within its processes"
    return ""


def _moved(trends: Sequence[float], rule: Rule) -> float:
    """By how much, where that is more than half the margin and three standard errors; else 0."""
    trend = shift(tuple(trends))
    least = max(math.log1p(rule.delta) / 2, 3 * trend.sd / math.sqrt(trend.n))
    return trend.value if abs(trend.value) > least else 0.0


def smallest_detectable(sd: float, pairs: int, family: int, rule: Rule) -> float:
    """The slowdown that is found 95 times in 100 at this pair sd, if time allows.

    ``pairs``: how many the sd was estimated from; ``family``: cells of the suite. The last look
    must find it, and no earlier one give it up.
    """
    last, unlucky = rule.looks[-1], stats.t_quantile(POWER, max(1, rule.looks[-1] - 1))
    beyond = _reaches(last, family, rule)[0] / math.sqrt(last)
    kept = beyond + max(unlucky / math.sqrt(last), (unlucky - HOPE) / math.sqrt(FUTILE))
    bound = _upper(sd, pairs - 1)
    beyond = min(kept * bound, FAR + 2.5 * bound)
    return math.expm1(min(stats.MOST_LOG, math.log1p(rule.delta) + beyond))


def finds(sd: float, pairs: int, family: int, rule: Rule) -> float:
    """The slowdown that is found 95 times in 100 by so many pairs of the one cell that has it.

    inf: none is.
    """
    able = [n for n in rule.looks if n <= pairs and sharing(n, family, rule)]
    far = FAR + 2 * sd if pairs >= EARLY else math.inf
    if able:
        far = min(far, (_reaches(able[-1], family, rule)[0] + UNLUCKY) / math.sqrt(able[-1]) * sd)
    return math.expm1(math.log1p(rule.delta) + far)


def outlook(pair_s: Sequence[float], budget_s: float, rule: Rule) -> str:
    """'about 11 min where a pair varies by 2 %; --budget 10m finds a slowdown of 6.3 %'.

    ``pair_s``: seconds that a pair of each cell takes, as far as is known before. What the others
    leave of the budget goes to the one cell that is slower.
    """
    each, pairs = math.fsum(pair_s), budget_s * len(pair_s) / math.fsum(pair_s)
    left = max(pairs / len(pair_s), pairs - USUAL * (len(pair_s) - 1))
    if pairs >= len(pair_s) + EARLY - 1:
        left = max(left, EARLY)
    least = finds(USUAL_SD, int(left), len(pair_s), rule)
    words = f"{budget_s:g}s" if budget_s % 60 else f"{budget_s / 60:g}m"
    found = f"finds a slowdown of {100 * least:.2g} %" if least < 1e9 else "decides nothing"
    return (
        f"about {units.clock(USUAL * each)} where a pair varies by {units.percentage(USUAL_SD)}; "
        f"--budget {words} {found}"
    )


def _upper(sd: float, dof: int) -> float:
    """The true sd is below this SURE of the time (normal noise)."""
    from scipy.special import chdtri

    return sd * math.sqrt(dof / float(chdtri(dof, SURE)))
