"""The decision of an interleaved A/B: which pairs to measure next, and what they say.

Screening: every cell gets `Rule.pilot` pairs, then as many as its pilot's sd asks for (Stein's
two-stage rule), unless it is flagged before: p < `Rule.screen`. Confirming: flagged cells alone are
measured again, and only these *fresh* pairs decide, with Holm's correction over the flagged cells at
`Rule.alpha`. So looking often at the screen costs pairs, never false alarms. How many fresh pairs
is fixed by the screen, before the first of them: enough for `POWER` at the effect seen. When every
cell has what it was promised no verdict can change any more, and measuring ends.

A difference is d = log(candidate / baseline) of the cost (ns, or s per image): above 0 is slower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from msgspec import Struct

from gpubench.analysis import signflip, stats
from gpubench.suite import Rule

POWER = 0.975
"""Of confirming; screening must succeed as well, and both together should 95 times in 100."""
EFFECT = 2.5
"""The slowdown that must be found, in units of delta: 5 % at delta 2 %."""
UNSTEADY_SHARE = 0.25
"""More pairs than this flagged as not steady forbid EQUIVALENT."""


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
    """Why, for programs: 'confirmed', 'inside-margin', 'not-confirmed', 'wide-interval', ..."""
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
    flagged = [key for key, pairs in cells.items() if direction(pairs, rule)]
    sizes = {key: confirm_size(cells[key], len(flagged), rule) for key in flagged}
    return {k: ("confirm", n) for k, n in sizes.items() if len(cells[k].confirm) < n}


def screen_size(pairs: Pairs, rule: Rule) -> int:
    """Screening pairs that a cell should have, from those that it has."""
    have = [p.d for p in pairs.screen]
    if len(have) < rule.pilot:
        return rule.pilot
    if direction(Pairs(screen=pairs.screen[: rule.pilot]), rule):
        return rule.pilot
    half = math.log1p(rule.delta) / 2
    need = (stats.t_quantile(0.975, rule.pilot - 1) * stdev(have[: rule.pilot]) / half) ** 2
    return min(rule.most, max(rule.pilot, math.ceil(need)))


def direction(pairs: Pairs, rule: Rule) -> int:
    """+1: the screen flags the cell as slower, -1: as faster, 0: not flagged."""
    d = [p.d for p in pairs.screen]
    if len(d) < rule.pilot:
        return 0
    margin = math.log1p(rule.delta)
    for sign in (1, -1):
        if signflip.p_above([sign * x for x in d], margin) < rule.screen:
            return sign
    return 0


def confirm_size(pairs: Pairs, flagged: int, rule: Rule) -> int:
    """Fresh pairs for a flagged cell among ``flagged`` ones: a function of the screen alone."""
    d = [p.d for p in pairs.screen]
    dof = len(d) - 1
    error = stdev(d) / math.sqrt(len(d))
    seen = abs(fmean(d)) - stats.t_quantile(0.8, dof) * error
    aim = max(seen, math.log1p(EFFECT * rule.delta)) - math.log1p(rule.delta)
    strict = rule.alpha / max(1, flagged)
    n = math.ceil(math.log2(1 / strict)) + 1  # fewer cannot reach that p-value
    while n < rule.most and _reach(n, strict, POWER) * stdev(d) / math.sqrt(n) > aim:
        n += 1
    return n


def _reach(n: int, alpha: float, power: float) -> float:
    """Standard errors between the margin and an effect that is found with ``power``."""
    return stats.t_quantile(1 - alpha, n - 1) + stats.t_quantile(power, n - 1)


def judge(cells: Mapping[str, Pairs], rule: Rule) -> dict[str, Verdict]:
    """The verdict on every cell with two pairs or more, from these pairs alone."""
    margin = math.log1p(rule.delta)
    signs = {key: direction(pairs, rule) for key, pairs in cells.items()}
    tested = [key for key, sign in signs.items() if sign and cells[key].confirm]
    p = stats.holm(
        [signflip.p_above([signs[k] * x.d for x in cells[k].confirm], margin) for k in tested]
        + [1.0 for key, sign in signs.items() if sign and not cells[key].confirm]
    )
    found = dict(zip(tested, p, strict=False))
    flagged = sum(map(bool, signs.values()))
    return {
        key: _verdict(pairs, signs[key], found.get(key), flagged, rule)
        for key, pairs in cells.items()
    }


def _verdict(pairs: Pairs, sign: int, p: float | None, flagged: int, rule: Rule) -> Verdict:
    used = pairs.confirm if sign and pairs.confirm else pairs.screen
    d = [pair.d for pair in used]
    if len(d) < 2:
        return Verdict(
            verdict="INCONCLUSIVE", code="few-pairs", reason=f"{len(d)} pairs: no interval",
            effect=None, pairs=len(d), pair_sd=None, p=None, smallest_detectable=None,
        )  # fmt: skip
    # The number of fresh pairs was fixed beforehand; that of the screen by its pilot (Stein).
    pilot = 0 if used is pairs.confirm else rule.pilot
    effect = stats.paired([1.0] * len(d), [math.exp(x) for x in d], pilot)
    verdict, code, reason = _words(pairs, used, effect, sign, p, rule)
    return Verdict(
        verdict=verdict, code=code, reason=reason, effect=effect, pairs=len(d), pair_sd=stdev(d),
        p=p, smallest_detectable=smallest_detectable(stdev(d), len(d), flagged, rule),
    )  # fmt: skip


def _words(
    pairs: Pairs,
    used: Sequence[Pair],
    effect: stats.LogRatio,
    sign: int,
    p: float | None,
    rule: Rule,
) -> tuple[str, str, str]:
    """(verdict, reason code, reason)."""
    margin, delta = math.log1p(rule.delta), f"{rule.delta:.1%}"
    side = "slower" if sign > 0 else "faster"
    if p is not None and p < rule.alpha:
        verdict = "REGRESSED" if sign > 0 else "IMPROVED"
        return verdict, "confirmed", f"{side} than {delta}: p = {p:.2g} on fresh pairs, after Holm"
    low, high = effect.interval() or (-math.inf, math.inf)
    if -margin < low and high < margin:
        doubt = not_steady(used, rule)
        if doubt:
            return "INCONCLUSIVE", "not-steady", doubt
        return "EQUIVALENT", "inside-margin", f"interval inside \u00b1{delta}"
    if sign and p is None:
        return "INCONCLUSIVE", "unconfirmed", f"looks {side}; ended before it was measured again"
    if sign:
        return "INCONCLUSIVE", "not-confirmed", f"looked {side}; fresh pairs: p = {p:.2g}"
    return "INCONCLUSIVE", "wide-interval", f"the interval reaches across \u00b1{delta}"


def not_steady(used: Sequence[Pair], rule: Rule) -> str:
    """Why these traces cannot show equivalence; '' when they can.

    Too many of them drift by themselves, or one arm's processes drift in the same direction: by
    more than half the margin and by more than three standard errors.
    """
    share = fmean(pair.unsteady for pair in used)
    if share > UNSTEADY_SHARE:
        return f"{share:.0%} of the pairs are not steady"
    for arm, name in enumerate(("baseline", "candidate")):
        trends = [pair.trends[arm] for pair in used]
        centre, error = fmean(trends), stdev(trends) / math.sqrt(len(trends))
        if abs(centre) > max(math.log1p(rule.delta) / 2, 3 * error):
            return f"the {name}'s cost moves by {math.expm1(centre):+.1%} within its processes"
    return ""


def smallest_detectable(sd: float, pairs: int, flagged: int, rule: Rule) -> float:
    """The slowdown that is screened and confirmed 95 times in 100 at this pair sd."""
    screened = _reach(pairs, rule.screen, POWER) * sd / math.sqrt(pairs)
    strict = rule.alpha / max(1, flagged)
    confirmed = _reach(rule.most, strict, POWER) * sd / math.sqrt(rule.most)
    return math.expm1(min(700.0, math.log1p(rule.delta) + max(screened, confirmed)))
