"""How far measurements of one search may be off, and what a few of them say all the same.

Logarithms of costs, in blocks: block 0 is the exploration, block r >= 2 the round r of the race, in
which all were measured side by side. So  cost = configuration + block + error,  and all that is
used are differences between configurations within a block. Two or three of them are too few to
tell their own spread: it is pooled over the configurations.

On shared machines one measurement in ten is hit by somebody else's work and up to 40 % slower
(`analysis.compare.signed_rank`). No mean of three survives that, and an sd that allows for it hides
everything else. So a bound rests on one order statistic of the differences, as in a sign test
(Conover, "Practical Nonparametric Statistics", 1999, section 3.4): each lies above the truth by
more than c with a chance of at most BURSTS plus Student's tail, and how many of n do is binomial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import fmean, median

from msgspec import Struct

from gpubench.analysis import stats

BURSTS = 0.1
"""Share of measurements that may be hit by something that the others were not."""
FAR = math.log(1.5)
"""A burst takes no more than this: where too few measurements could all be hit, only what is
further behind says anything."""
PRIOR_SD = 0.1
"""Of one measurement, while fewer than LEAST_DOF degrees of freedom tell: what a busy virtual
machine shows. (Memory hardly varies: a fifth of it.)"""
LEAST_DOF = 4
_KNOWN = 1e6
"""Degrees of freedom of an sd that is not estimated."""

Blocks = Mapping[int, float]
"""Block -> log cost of one configuration."""


class Noise(Struct, frozen=True):
    """Standard deviation of a log and the degrees of freedom that it was estimated with."""

    sd: float
    dof: float

    def t(self, p: float) -> float:
        """Quantile of Student's t, times the sd."""
        return stats.t_quantile(p, self.dof) * self.sd


def prior(scale: float = 1.0) -> Noise:
    """What is assumed while nothing tells."""
    return Noise(PRIOR_SD * scale, _KNOWN)


def within(repeats: Sequence[Sequence[float]], before: Noise) -> Noise:
    """Spread of a configuration's own repeats, of everything that changes between them.

    Pooled over configurations, bursts and all: it says what another repeat may show. ``before``
    where there are fewer than LEAST_DOF degrees of freedom.
    """
    some = [each for each in repeats if len(each) > 1]
    dof = sum(len(each) - 1 for each in some)
    if dof < LEAST_DOF:
        return before
    squares = (
        math.fsum((x - centre) ** 2 for x in each) for each in some for centre in [fmean(each)]
    )
    return Noise(math.sqrt(math.fsum(squares) / dof), dof)


def between(configurations: Sequence[Blocks], before: Noise) -> Noise:
    """Spread of the difference between two configurations within a block, bursts aside.

    From what configurations moved by from one block to the next, about the median of all, so that
    both the configurations and the blocks cancel: 1.48 x the median deviation (Hampel, "The
    influence curve and its role in robust estimation", 1974). The smallest deviation of each block
    says nothing, the median being one of them: as many count as there are degrees of freedom.
    ``before`` (of one measurement) while there are too few.
    """
    blocks = sorted({b for each in configurations for b in each})
    shared = [b for b in blocks if sum(b in each for each in configurations) > 1]
    sizes: list[float] = []
    for first, second in pairwise(shared):
        moved = [x[second] - x[first] for x in configurations if first in x and second in x]
        if len(moved) > 1:
            centre, scale = median(moved), math.sqrt(2) if len(moved) == 2 else 1.0
            sizes += sorted(scale * abs(x - centre) for x in moved)[1:]
    if len(sizes) < LEAST_DOF:
        return Noise(before.sd * math.sqrt(2), before.dof)
    # what one has moved by has two errors, as has the difference of two
    return Noise(stats.MAD_SD * median(sizes), len(sizes))


def differences(one: Blocks, other: Blocks) -> list[float]:
    """``one`` - ``other`` in the blocks that both have."""
    return [one[b] - other[b] for b in one if b in other]


def at_least(found: Sequence[float], noise: Noise, alpha: float) -> float:
    """Lower bound of what ``found`` (differences, in any order) lie around; -inf: there is none.

    The bound is too high with a chance of at most ``alpha`` where at most BURSTS of them were hit,
    and none by more than FAR if so few are there that all may have been.
    """
    if not found:
        return -math.inf
    ordered, n = sorted(found), len(found)
    far = ordered[0] - max(FAR, noise.t(1 - alpha ** (1 / n)))
    rank, p = _rank(n, round(alpha, 9))
    return max(far, ordered[rank - 1] - noise.t(1 - p)) if rank else far


@lru_cache(maxsize=256)
def _rank(n: int, alpha: float) -> tuple[int, float]:
    """(rank, p): the order statistic of n to rest on, and the tail that Student's t may have.

    The rank whose bound is expected to be the highest under normal noise. (0, 0): even the lowest
    is too high with a greater chance than ``alpha``, whatever is subtracted.
    """
    from scipy.special import betaincinv, ndtri

    choices = []
    for rank in range(1, n + 1):
        # P(at least n - rank + 1 of n are off) = alpha, where each is with this chance
        each = float(betaincinv(n - rank + 1, rank, alpha))
        if each > BURSTS:
            expected = float(ndtri((rank - 0.375) / (n + 0.25)) - ndtri(1 - (each - BURSTS)))
            choices.append((expected, rank, each - BURSTS))
    _, rank, p = max(choices, default=(0.0, 0, 0.0))
    return rank, p
