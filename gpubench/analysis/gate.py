"""The decision of an interleaved A/B: which pairs to measure next, and what they say.

Screening: every cell gets `Rule.pilot` pairs, then as many as its pilot's sd asks for (Stein's
two-stage rule), unless the pilot flags it: p < `Rule.screen`. Confirming: flagged cells alone are
measured again, and only these *fresh* pairs decide, with Holm's correction over the flagged cells
at `Rule.alpha`. So looking twice at the screen costs pairs, never false alarms. How many fresh
pairs is fixed by the screen, before the first of them, and a cell that did not get them all (the
budget ended, somebody interrupted) is not decided: nobody can stop at a lucky moment. When every
cell has what it was promised no verdict can change any more, and measuring ends.

A difference is d = log(candidate / baseline) of the cost (ns, or s per image): above 0 is slower.
The order of a pair's turns (`Record.order`: ABBA or BAAB) must have been drawn at random; then the
confirming test is exact for identical arms. Screening only spends time, so Student's t will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from gpubench.analysis import signflip, stats
from gpubench.suite import Rule

POWER = 0.975
"""Of confirming; screening must succeed as well, and both together should 95 times in 100."""
EFFECT = 2.5
"""The slowdown that must be found, in units of delta: 5 % at delta 2 %."""
SURE = 0.9
"""The number of fresh pairs allows for the upper bound of the sd that holds so often."""
UNSTEADY_SHARE = 0.5
"""More pairs than this flagged as not steady forbid EQUIVALENT."""

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
    unsteady: bool = False
    """Flagged DRIFT or NO-STEADY-STATE in either arm."""


class Pairs(Struct, frozen=True, kw_only=True):
    """The pairs of one cell, in the order in which they were measured."""

    screen: Sequence[Pair] = ()
    confirm: Sequence[Pair] = ()


class Verdict(Struct, frozen=True, kw_only=True):
    """What the pairs of one cell say."""

    verdict: str
    """REGRESSED, IMPROVED, EQUIVALENT or INCONCLUSIVE."""
    code: str
    """Why, for programs: a key of CODES."""
    reason: str
    effect: stats.LogRatio | None
    """Of the confirming pairs where there are any, else of the screening ones."""
    pairs: int
    pair_sd: float | None
    p: float | None
    """Of the confirming pairs, after Holm."""
    smallest_detectable: float | None
    """The slowdown (0.05: 5 %) that this design finds 95 times in 100 at this pair sd."""


def wanted(cells: Mapping[str, Pairs], rule: Rule) -> dict[str, tuple[str, int]]:
    """Cell -> (stage, pairs it should have in that stage) for every cell that needs more now.

    Confirming begins when screening has ended everywhere: Holm needs the number of flagged cells.
    """
    screening = {
        key: ("screen", n)
        for key, pairs in cells.items()
        if not pairs.confirm and len(pairs.screen) < (n := screen_size(pairs, rule))
    }
    if screening:
        return screening
    sizes = _confirm_sizes(cells, rule)
    return {k: ("confirm", n) for k, n in sizes.items() if len(cells[k].confirm) < n}


def screen_size(pairs: Pairs, rule: Rule) -> int:
    """Screening pairs that a cell should have, from its pilot; the interval's half-width: delta/2.

    An identical candidate is then EQUIVALENT 97 times in 100, or more often.
    """
    if len(pairs.screen) < rule.pilot:
        return rule.pilot
    pilot = [p.d for p in pairs.screen[: rule.pilot]]
    if _leans(pilot, rule):
        return rule.pilot
    half = stats.t_quantile(0.975, rule.pilot - 1) * _moments(pilot)[1]
    need = math.ceil((half / (math.log1p(rule.delta) / 2)) ** 2)
    return min(max(rule.most, rule.pilot), max(rule.pilot, need))


def direction(pairs: Pairs, rule: Rule) -> int:
    """+1: the screen flags the cell as slower, -1: as faster, 0: not flagged."""
    d = [p.d for p in pairs.screen]
    return (_leans(d[: rule.pilot], rule) or _leans(d, rule)) if len(d) >= rule.pilot else 0


def _leans(d: Sequence[float], rule: Rule) -> int:
    """Side on which Student's t at `Rule.screen` sees the mean beyond the margin; 0: neither."""
    mean, sd = _moments(d)
    beyond = abs(mean) - math.log1p(rule.delta)
    reach = stats.t_quantile(1 - rule.screen, len(d) - 1) * sd / math.sqrt(len(d))
    return (1 if mean > 0 else -1) if beyond > max(0.0, reach) else 0


def _moments(d: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation)."""
    mean = math.fsum(d) / len(d)
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in d) / (len(d) - 1))


def _confirm_sizes(cells: Mapping[str, Pairs], rule: Rule) -> dict[str, int]:
    """Flagged cell -> fresh pairs it is promised."""
    flagged = [key for key, pairs in cells.items() if direction(pairs, rule)]
    return {key: confirm_size(cells[key], len(flagged), rule) for key in flagged}


def confirm_size(pairs: Pairs, flagged: int, rule: Rule) -> int:
    """Fresh pairs for a flagged cell among ``flagged`` ones: a function of the screen alone.

    Enough for the effect seen (its lower 90 % bound: the screen chose the cell because it looked
    different). What is nearer to the margin than EFFECT gets as many as EFFECT would, or twice
    the pilot where that is more: such effects matter less than time does.
    """
    d = [p.d for p in pairs.screen]
    (mean, sd), dof = _moments(d), len(d) - 1
    seen = abs(mean) - stats.t_quantile(0.9, dof) * sd / math.sqrt(len(d))
    alpha = rule.alpha / max(1, flagged)
    enough = _fresh(sd, dof, seen - math.log1p(rule.delta), alpha, rule)
    return min(enough, _most_fresh(sd, dof, alpha, rule))


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
    margin, sizes = math.log1p(rule.delta), _confirm_sizes(cells, rule)
    signs = {key: direction(cells[key], rule) for key in sizes}
    # A cell that waits for its fresh pairs is in the family all the same.
    alone = dict.fromkeys(sizes, 1.0)
    tested = [key for key, n in sizes.items() if len(cells[key].confirm) >= n]
    for key in tested:
        d = [signs[key] * pair.d for pair in cells[key].confirm]
        alone[key] = signflip.p_above(d, margin)
    found = dict(zip(alone, stats.holm(list(alone.values())), strict=True))
    return {
        key: _verdict(pairs, signs.get(key, 0), found[key] if key in tested else None, sizes, rule)
        for key, pairs in cells.items()
    }


def _verdict(
    pairs: Pairs, sign: int, p: float | None, sizes: Mapping[str, int], rule: Rule
) -> Verdict:
    used = pairs.confirm if sign and len(pairs.confirm) > 1 else pairs.screen
    d = [pair.d for pair in used]
    if len(d) < 2:
        return Verdict(
            verdict="INCONCLUSIVE", code="few-pairs", reason=_too_few(len(d), rule),
            effect=None, pairs=len(d), pair_sd=None, p=None, smallest_detectable=None,
        )  # fmt: skip
    # The number of fresh pairs was fixed beforehand; that of the screen by its pilot (Stein).
    pilot = 0 if used is pairs.confirm else rule.pilot
    effect = stats.paired([1.0] * len(d), [math.exp(x) for x in d], pilot)
    verdict, code, reason = _words(used, effect, sign, p, rule)
    sd = _moments(d)[1]
    return Verdict(
        verdict=verdict, code=code, reason=reason, effect=effect, pairs=len(d), pair_sd=sd,
        p=p, smallest_detectable=smallest_detectable(sd, len(d), len(sizes), rule),
    )  # fmt: skip


def _too_few(pairs: int, rule: Rule) -> str:
    return f"{pairs} of the {rule.pilot} pairs that any verdict needs"


def _words(
    used: Sequence[Pair], effect: stats.LogRatio, sign: int, p: float | None, rule: Rule
) -> tuple[str, str, str]:
    """(verdict, reason code, reason)."""
    margin, delta = math.log1p(rule.delta), f"{rule.delta:.1%}"
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

    Too many of them drift by themselves, or one arm's processes drift in the same direction: by
    more than half the margin and by more than three standard errors.
    """
    share = sum(pair.unsteady for pair in used) / len(used)
    if share > UNSTEADY_SHARE:
        return f"{share:.0%} of the pairs are not steady"
    for arm, name in enumerate(("baseline", "candidate")):
        centre, sd = _moments([pair.trends[arm] for pair in used])
        if abs(centre) > max(math.log1p(rule.delta) / 2, 3 * sd / math.sqrt(len(used))):
            return f"the {name}'s cost moves by {math.expm1(centre):+.1%} within its processes"
    return ""


def smallest_detectable(sd: float, pairs: int, flagged: int, rule: Rule) -> float:
    """The slowdown that is screened and confirmed 95 times in 100 at this pair sd.

    ``pairs`` behind the sd; confirming has as many as `confirm_size` gives what is near the margin.
    """
    alpha = rule.alpha / max(1, flagged)
    n = _most_fresh(sd, pairs - 1, alpha, rule)
    screened = _reach(pairs, rule.screen) / math.sqrt(pairs)
    confirmed = _reach(n, alpha) / math.sqrt(n)
    beyond = math.log1p(rule.delta) + max(screened, confirmed) * _upper(sd, pairs - 1)
    return math.expm1(min(700.0, beyond))
