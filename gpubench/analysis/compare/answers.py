"""Two arms' answers to the same pictures: exact tests, each picture once.

A picture that both arms answer rightly, or both wrongly, says nothing of which is more accurate.
Of the others the candidate ``lost`` some and ``gained`` some; were both arms equally accurate, each
would be as likely lost as gained (McNemar, "Note on the sampling error of the difference between
correlated proportions or percentages", 1947), and the p-value is binomial, without approximation.
Beyond a margin m the chance of a loss among them is at most (1 + m / u) / 2, where u is the share
of pictures that are lost or gained. That share is bounded from below first, by `SPARE` of the
level, which the p-value then has on top (Berger & Boos, "P values maximized over a confidence set
for the nuisance parameter", 1994): the level holds for whatever u is.
"""

from __future__ import annotations

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.records.parity import Answers

SPARE = 0.1
"""Of a level, what the bound of u may be wrong."""


class Changes(Struct, frozen=True):
    """What became of the pictures that both arms were asked about."""

    asked: int
    changed: int
    """Other answers, right or wrong."""
    labelled: int
    correct: tuple[int, int]
    """Of the labelled ones, right answers of the baseline and of the candidate."""
    lost: int
    """Right before, wrong now."""
    gained: int


def changes(base: Answers, candidate: Answers) -> Changes | None:
    """None where the two were asked about other pictures, or have other classes."""
    if base.pictures != candidate.pictures:
        return None
    rows = list(zip(base.given, candidate.given, base.labels, strict=True))
    known = [(old == label, new == label) for old, new, label in rows if label >= 0]
    return Changes(
        asked=len(rows), changed=sum(old != new for old, new, _ in rows), labelled=len(known),
        correct=(sum(old for old, _ in known), sum(new for _, new in known)),
        lost=sum(old and not new for old, new in known),
        gained=sum(new and not old for old, new in known),
    )  # fmt: skip


def p_lost(lost: int, gained: int, n: int, margin: float, level: float) -> float:
    """One-sided p-value of 'of ``n`` pictures the true share lost less that gained is at most
    ``margin``' (-1 to 1), for a test at ``level``."""
    spare = SPARE * level if margin else 0.0
    return _p_lost(lost, gained, margin, spare, stats.exact_bounds(lost + gained, n, spare))


def _p_lost(
    lost: int, gained: int, margin: float, spare: float, apart: tuple[float, float]
) -> float:
    """``apart``: bounds of the share lost or gained."""
    if -margin > apart[1]:  # no such share can be
        return spare
    share = apart[0] if margin > 0 else apart[1]
    chance = min(1.0, 0.5 + margin / (2 * share)) if share else 1.0
    return min(1.0, spare + p_more(lost, lost + gained, chance if margin else 0.5))


def p_more(hits: int, n: int, chance: float) -> float:
    """P(at least ``hits`` of ``n``), each by ``chance``: of a share, 'it is at most that'."""
    from scipy.special import betainc

    return float(betainc(hits, n - hits + 1, chance)) if hits else 1.0


def interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """95 % and more, of the true share gained less that lost: what `p_lost` does not rule out in
    either direction."""
    tail = (1 - stats.LEVEL) / 2
    apart = stats.exact_bounds(lost + gained, n, SPARE * tail)

    def most(worse: int, better: int) -> float:
        low, high = -1.0, 1.0
        for _ in range(25):
            middle = (low + high) / 2
            within = _p_lost(worse, better, -middle, SPARE * tail, apart) > tail
            low, high = (middle, high) if within else (low, middle)
        return high

    return -most(gained, lost), most(lost, gained)
