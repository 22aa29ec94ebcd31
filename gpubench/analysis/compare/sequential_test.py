"""The decision of an interleaved A/B: which pairs to measure next, and what they say.

Screening: every cell gets `Rule.pilot` pairs, then half as many again, and again, until its
interval is narrow (`NARROW`), or the cell is flagged: p < `Rule.screen`. Confirming:
flagged cells alone are measured again, and only these *fresh* pairs decide, with Holm's correction
over the flagged cells at `Rule.alpha`. So looking often at the screen costs pairs, never false
alarms. How many fresh pairs is fixed by the screen; they are looked at twice at most, and each look
pays for itself (Bonferroni). A cell that did not get them all (the budget ended, somebody
interrupted) is not decided: nobody can stop at a lucky moment. When every cell has what it was
promised no verdict can change any more, and measuring ends.

A difference is d = log(candidate / baseline) of the cost (ns, or s per image): above 0 is slower.
The order of a pair's turns (`Record.order`: ABBA or BAAB) must have been drawn at random; then the
test is exact for identical arms. It and the interval are those of `analysis.compare.signed_rank`:
ranks, so that the pairs hit by a burst of somebody else's work do not hide a change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from gpubench import units
from gpubench.analysis import stats
from gpubench.analysis.compare import signed_rank
from gpubench.suite.types import Rule

NARROW = 0.58
"""Half-width, in units of delta, of an interval that needs no more screening."""
LEVEL = 0.975
"""Of a single interval. Since looking decides which one is shown, it holds the truth less often: 95
times in 100, as the simulations in `tests.benchmarks.trust.coverage` find."""
POWER = 0.975
"""Of confirming; screening must succeed as well, and both together should 95 times in 100."""
EFFECT = 2.5
"""The slowdown that must be found, in units of delta: 5 % at delta 2 %."""
SURE = 0.9
"""The number of fresh pairs allows for the upper bound of the sd that holds so often."""
LOOKS = 2
"""At the fresh pairs; each has its share of alpha."""
AGAIN = 4
"""Times as many fresh pairs at the second look as at the first."""
UNSTEADY_SHARE = 0.75
"""More pairs than this flagged as not steady forbid EQUIVALENT: noise that is merely correlated
(AR(1), 0.9) flags nearly half of them."""

CODES = {
    "confirmed": "beyond the margin on fresh pairs, after Holm's correction",
    "inside-margin": "the whole 95 % interval lies inside the margin",
    "not-steady": "inside the margin, but the processes were still changing: nothing is shown",
    "not-confirmed": "looked different in the screen, but the fresh pairs do not confirm it",
    "unconfirmed": "looks different; measuring ended before all fresh pairs were there",
    "wide-interval": "the interval is too wide to tell on which side of the margin the change lies",
    "few-pairs": "measuring ended before the pilot's pairs were there",
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


class Pairs(Struct, frozen=True, kw_only=True):
    """The pairs of one cell, in the order in which they were measured."""

    screen: Sequence[Pair] = ()
    confirm: Sequence[Pair] = ()


class Shift(Struct, frozen=True):
    """Where the differences lie, with the 95 % interval; no bounds below seven pairs."""

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


class Verdict(Struct, frozen=True, kw_only=True):
    """What the pairs of one cell say."""

    verdict: str
    """REGRESSED, IMPROVED, EQUIVALENT or INCONCLUSIVE."""
    code: str
    """Why, for programs: a key of CODES."""
    reason: str
    effect: Shift | None = None
    stage: str
    """Whose pairs these are: 'confirm' where there are any, else 'screen'."""
    pairs: int
    pair_sd: float | None = None
    """Of normal noise that would give an interval as wide: see `spread`."""
    p: float | None = None
    """Of the confirming pairs, after Holm."""
    smallest_detectable: float | None = None
    """The slowdown (0.05: 5 %) that this design finds 95 times in 100 at this pair sd."""


def wanted(cells: Mapping[str, Pairs], rule: Rule) -> dict[str, tuple[str, int]]:
    """Cell -> (stage, pairs it should have in that stage) for every cell that needs more now.

    Confirming begins when screening has ended everywhere: Holm needs the number of flagged cells.
    Once it has begun there is no more screening, whatever ended it.
    """
    screening = {
        key: ("screen", n)
        for key, pairs in cells.items()
        if len(pairs.screen) < (n := screen_size(pairs, rule))
    }
    if screening and not any(pairs.confirm for pairs in cells.values()):
        return screening
    sizes = _confirm_sizes(cells, rule)
    return {k: ("confirm", n) for k, n in sizes.items() if len(cells[k].confirm) < n}


def ahead(cells: Mapping[str, Pairs], rule: Rule) -> dict[str, tuple[int, int]]:
    """Cell -> (pairs that it lacks now, pairs that it can come to lack) while any is `wanted`.

    The second is a bound: the whole screen, then both looks at the fresh pairs.
    """
    now = wanted(cells, rule)
    if not now:
        return {}
    screening = any(stage == "screen" for stage, _ in now.values())
    found = {}
    for key, pairs in cells.items():
        stage, size = now.get(key, ("", 0))
        have, fresh = len(pairs.screen), len(pairs.confirm)
        most = 0
        if stage == "screen":
            most = max(rule.pilot, rule.most) - have + rule.most
        elif screening and direction(pairs, rule):
            most = rule.most
        elif stage == "confirm":
            most = max(size, min(AGAIN * size, rule.most)) - fresh
        lack = size - (have if stage == "screen" else fresh) if stage else 0
        found[key] = (lack, most)
    return found


def screen_size(pairs: Pairs, rule: Rule) -> int:
    """Screening pairs that a cell should have, as far as those that it has tell."""
    have = len(pairs.screen)
    for look in _looks(rule):
        d = [p.d for p in pairs.screen[:look]]
        if have < look or _leans(d, rule) or _shift(d).half <= NARROW * math.log1p(rule.delta):
            return look
    return max(rule.pilot, rule.most)


def _looks(rule: Rule) -> list[int]:
    """Numbers of pairs at which the screen is looked at: 8, 12, 18, ..."""
    looks = [rule.pilot]
    while looks[-1] < rule.most:
        looks.append(min(rule.most, looks[-1] * 3 // 2))
    return looks


def direction(pairs: Pairs, rule: Rule) -> int:
    """+1: the screen flags the cell as slower, -1: as faster, 0: not flagged."""
    d = [p.d for p in pairs.screen]
    looks = [look for look in _looks(rule) if look < len(d)] + [len(d)]
    return next((sign for n in looks if n >= rule.pilot and (sign := _leans(d[:n], rule))), 0)


def _leans(d: Sequence[float], rule: Rule) -> int:
    """Side on which the test at `Rule.screen` sees them beyond the margin; 0: neither."""
    margin = math.log1p(rule.delta)
    for sign in (1, -1):
        if signed_rank.p_above([sign * x for x in d], margin) < rule.screen:
            return sign
    return 0


def _shift(d: Sequence[float]) -> Shift:
    return Shift(*signed_rank.around(d, LEVEL), len(d))


def _confirm_sizes(cells: Mapping[str, Pairs], rule: Rule) -> dict[str, int]:
    """Flagged cell -> fresh pairs it is promised."""
    flagged = [key for key, pairs in cells.items() if direction(pairs, rule)]
    return {key: confirm_size(cells[key], len(flagged), rule) for key in flagged}


def confirm_size(pairs: Pairs, flagged: int, rule: Rule) -> int:
    """Fresh pairs for a flagged cell among ``flagged`` ones.

    The screen fixes how many there are at the first look. Where these do not decide, since the
    screen had been lucky with its noise, there are AGAIN times as many at the second and last.
    """
    first = first_look(pairs, flagged, rule)
    if len(pairs.confirm) < first:
        return first
    d = [pair.d for pair in pairs.confirm[:first]]
    low, high = _shift(d).interval() or (-math.inf, math.inf)
    margin = math.log1p(rule.delta)
    sure = LOOKS * _p(pairs, first, rule) * max(1, flagged) < rule.alpha
    if sure or (-margin < low and high < margin):
        return first
    return max(first, min(AGAIN * first, rule.most))


def first_look(pairs: Pairs, flagged: int, rule: Rule) -> int:
    """Fresh pairs at the first look: a function of the screen alone.

    Enough for the effect seen (its lower 90 % bound: the screen chose the cell because it looked
    different). What is nearer to the margin than EFFECT gets as many as EFFECT would, or twice
    the pilot where that is more: such effects matter less than time does.
    """
    shift = _shift([p.d for p in pairs.screen])
    sd, dof = shift.sd, shift.n - 1
    seen = abs(shift.value) - stats.t_quantile(0.9, dof) * sd / math.sqrt(shift.n)
    alpha = rule.alpha / LOOKS / max(1, flagged)
    enough = _fresh(sd, dof, seen - math.log1p(rule.delta), alpha, rule)
    return min(enough, _most_fresh(sd, dof, alpha, rule))


def _p(pairs: Pairs, n: int, rule: Rule) -> float:
    """Of the first ``n`` fresh pairs, in the direction that the screen saw."""
    sign = direction(pairs, rule)
    return signed_rank.p_above([sign * x.d for x in pairs.confirm[:n]], math.log1p(rule.delta))


def _most_fresh(sd: float, dof: int, alpha: float, rule: Rule) -> int:
    """Pairs for what is as near to the margin as EFFECT, or nearer."""
    aim = math.log1p(EFFECT * rule.delta) - math.log1p(rule.delta)
    return max(_fresh(sd, dof, aim, alpha, rule), min(2 * rule.pilot, rule.most))


def _fresh(sd: float, dof: int, aim: float, alpha: float, rule: Rule) -> int:
    """Pairs that find an effect ``aim`` beyond the margin at level ``alpha`` with POWER.

    ``sd`` was estimated with ``dof`` degrees of freedom. At least as many pairs as can reach the
    level at all, with one sign pattern to spare.
    """
    bound = _upper(sd, dof)
    n = math.ceil(math.log2(1 / alpha)) + 1
    while n < rule.most and _reach(n, alpha) * bound / math.sqrt(n) > aim:
        n += 1
    return n


def _upper(sd: float, dof: int) -> float:
    """The true sd is below this SURE of the time (normal noise)."""
    from scipy.special import chdtri

    return sd * math.sqrt(dof / float(chdtri(dof, SURE)))


def _reach(n: int, alpha: float) -> float:
    """Standard errors between the margin and an effect that ``n`` pairs find with POWER."""
    return stats.t_quantile(1 - alpha, n - 1) + stats.t_quantile(POWER, n - 1)


def judge(cells: Mapping[str, Pairs], rule: Rule) -> dict[str, Verdict]:
    """The verdict on every cell, from these pairs alone and in whatever order the cells come."""
    sizes = _confirm_sizes(cells, rule)
    signs = {key: direction(cells[key], rule) for key in sizes}
    # A cell that waits for its fresh pairs is in the family all the same.
    alone = dict.fromkeys(sizes, 1.0)
    tested = [key for key, n in sizes.items() if len(cells[key].confirm) >= n]
    for key in tested:
        looks = {first_look(cells[key], len(sizes), rule), sizes[key]}
        alone[key] = min(1.0, LOOKS * min(_p(cells[key], n, rule) for n in looks))
    found = dict(zip(alone, stats.holm(list(alone.values())), strict=True))
    return {
        key: _verdict(pairs, signs.get(key, 0), found[key] if key in tested else None, sizes, rule)
        for key, pairs in cells.items()
    }


def _verdict(
    pairs: Pairs, sign: int, p: float | None, sizes: Mapping[str, int], rule: Rule
) -> Verdict:
    fresh = bool(sign) and len(pairs.confirm) > 1
    used = pairs.confirm if fresh else pairs.screen
    stage = "confirm" if fresh else "screen"
    if len(used) < 2:
        return Verdict(verdict="INCONCLUSIVE", code="few-pairs", stage=stage, pairs=len(used),
                       reason=_too_few(len(used), rule))  # fmt: skip
    effect = _shift([pair.d for pair in used])
    verdict, code, reason = _words(used, effect, sign, p, rule)
    sd = effect.sd if math.isfinite(effect.half) else None
    family = len(sizes) + (not sign)
    finds = None if sd is None else smallest_detectable(sd, len(used), family, rule)
    return Verdict(
        verdict=verdict, code=code, reason=reason, effect=effect, stage=stage, pairs=len(used),
        pair_sd=sd, p=p, smallest_detectable=finds,
    )  # fmt: skip


def _too_few(pairs: int, rule: Rule) -> str:
    return f"{pairs} of the {rule.pilot} pairs that any verdict needs"


def _words(
    used: Sequence[Pair], effect: Shift, sign: int, p: float | None, rule: Rule
) -> tuple[str, str, str]:
    """(verdict, reason code, reason)."""
    margin, delta = math.log1p(rule.delta), units.percentage(rule.delta)
    side = "slower" if sign > 0 else "faster"
    if sign and p is None:
        reason = f"looks {side}; measuring ended before all its fresh pairs were there"
        return "INCONCLUSIVE", "unconfirmed", reason
    if p is not None and p < rule.alpha:
        verdict = "REGRESSED" if sign > 0 else "IMPROVED"
        return verdict, "confirmed", f"{side} than {delta}: p = {p:.2g} on fresh pairs, after Holm"
    if not sign and len(used) < rule.pilot:
        return "INCONCLUSIVE", "few-pairs", _too_few(len(used), rule)
    low, high = effect.interval() or (-math.inf, math.inf)
    if -margin < low and high < margin:
        if doubt := not_steady(used, rule):
            return "INCONCLUSIVE", "not-steady", doubt
        return "EQUIVALENT", "inside-margin", f"interval inside \u00b1{delta}"
    if sign:
        return "INCONCLUSIVE", "not-confirmed", f"looked {side}; fresh pairs: p = {p:.2g}"
    return "INCONCLUSIVE", "wide-interval", f"the interval reaches across \u00b1{delta}"


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
    trend = _shift(trends)
    least = max(math.log1p(rule.delta) / 2, 3 * trend.sd / math.sqrt(trend.n))
    return trend.value if abs(trend.value) > least else 0.0


def smallest_detectable(sd: float, pairs: int, flagged: int, rule: Rule) -> float:
    """The slowdown that is screened and confirmed 95 times in 100 at this pair sd.

    ``pairs``: how many the sd was estimated from. The screen goes on until its interval is narrow;
    confirming has as many pairs as `confirm_size` gives what is near the margin.
    """
    alpha, narrow = rule.alpha / LOOKS / max(1, flagged), NARROW * math.log1p(rule.delta)
    n = min(rule.most, AGAIN * _most_fresh(sd, pairs - 1, alpha, rule))
    confirmed = _reach(n, alpha) / math.sqrt(n)
    looks = _looks(rule)
    bound = (1 + LEVEL) / 2
    ends = [k for k in looks if stats.t_quantile(bound, k - 1) * sd / math.sqrt(k) <= narrow]
    k = min(ends, default=looks[-1])
    screened = _reach(k, rule.screen) / math.sqrt(k)
    beyond = math.log1p(rule.delta) + max(screened, confirmed) * _upper(sd, pairs - 1)
    return math.expm1(min(700.0, beyond))
