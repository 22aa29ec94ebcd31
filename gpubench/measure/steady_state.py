"""Whether a series of durations has settled, is steady, and where its steady part begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from operator import mul
from statistics import fmean, median, stdev

from gpubench.suite.types import MIN_BLOCKS

MOVE, OF_FEW = 5, 6
"""A level drifts when it moves by so many typical steps from group to group; of fewer samples than
`ENOUGH`."""
LINE, CURVE = (-7, -5, -3, -1, 1, 3, 5, 7), (7, 1, -3, -5, -5, -3, 1, 7)
"""Orthogonal polynomials on eight points (Fisher & Yates, Statistical Tables), squares' sum 168."""
SPREAD = 2.3
"""A spread that changes from half to half by so many standard errors (and by the tolerance)."""
LEFT = 0.7
"""A warm-up loses more than the rest of this from the first half of it to the second."""
ENOUGH = 30
"""With fewer samples neither a bend nor a change of the spread can be told from chance."""


def settled(warmup: Sequence[int], tolerance: float) -> bool:
    """Whether the last third differs from the one before by no more than ``tolerance`` (relative).

    Nor does what two standard errors or noise explain count, nor what turns back: a warm-up goes
    one way. Thirds grow with it, so that a slow one is not mistaken for a settled one.
    """
    groups = _groups(warmup, max(1, len(warmup) // 60))
    third = len(groups) // 3
    if third < 2:
        return True
    first, before, last = (groups[len(groups) - n * third :][:third] for n in (3, 2, 1))
    one_way = (fmean(first) > fmean(before)) == (fmean(before) > fmean(last))
    return not (one_way and _differ(before, last, tolerance * fmean(last), 2))


def steady(durations: Sequence[float], tolerance: float) -> tuple[int, list[str]]:
    """(samples to cut from the start, flags) by MSER-5, on medians of five samples.

    Marginal standard error rule: White, "An effective truncation heuristic for bias reduction in
    simulation output", Simulation 69(6), 1997; medians in place of its means, so that one spike is
    not taken for the end of a warm-up. Two parts differ when their means do by more than
    ``tolerance`` (relative) and by four standard errors. A cut beyond the middle is never made: if
    what lies before and after it differs, NO-STEADY-STATE is flagged, else it was noise. What is
    cut is a warm-up, see `_warms`: a start that was faster, or another level, is part of what was
    measured, and shows as DRIFT, see `_drifts`.
    """
    if len(durations) < MIN_BLOCKS:
        return 0, []
    width = max(1, min(5, len(durations) // MIN_BLOCKS))
    groups = _groups(durations, width)
    best = mser(groups)
    if best > len(groups) // 2:
        if _differ(groups[:best], groups[best:], tolerance * fmean(groups[best:]), 4):
            return 0, ["NO-STEADY-STATE"]
        best = 0
    cut = best * width if best and _warms(groups[:best], groups[best:], tolerance) else 0
    return cut, ["DRIFT"] if _drifts(durations[cut:], tolerance) else []


def _warms(start: Sequence[float], rest: Sequence[float], tolerance: float) -> bool:
    """Whether ``start`` is what a warm-up has left: slower than ``rest``, and ever less so.

    Slower by more than ``tolerance`` and than what noise explains (else noise would be cut, and
    always such as is slow). A start that stays where it is, and then ends, is no warm-up: something
    else changed. Its course is that of eighths: from one of many groups to the next there is more
    noise than decay.
    """
    level, noise = fmean(rest), stdev(rest)
    above = [x - level for x in _pieces(start, min(8, len(start)))]
    least = max(tolerance * level, 3 * noise * math.sqrt(1 / len(start) + 1 / len(rest)))
    if fmean(above) <= least:
        return False
    drops = [x - y for x, y in pairwise([*above, 0.0])]
    end = drops.index(max(drops)) + 1
    half = end // 2
    return not half or fmean(above[end - half : end]) < LEFT * fmean(above[:half])


def _groups(durations: Sequence[float], width: int) -> list[float]:
    """Medians of ``width`` samples each."""
    starts = range(0, len(durations) - width + 1, width)
    return [median(durations[i : i + width]) for i in starts]


def _drifts(durations: Sequence[float], tolerance: float) -> bool:
    """Whether the level moves, or the spread from half to half.

    A move is one by more than ``tolerance`` of the level. That of the level is seen among quarters,
    or along a parabola through eighths (an oscillation can spare quarters). It must also be MOVE
    times what groups of samples differ by from one to the next, which a slow drift, or one jump,
    hardly widens (von Neumann 1941 uses the same differences). There are up to 20 groups: so long
    that little of an autocorrelation is left in them, or they too would move little from step to
    step.
    """
    n = len(durations)
    groups = _groups(durations, max(1, min(5, n // MIN_BLOCKS), n // 20))
    step = median(abs(b - a) for a, b in pairwise(groups))
    quarters = _pieces(durations, 4)
    moved = max(quarters) - min(quarters)
    if n >= ENOUGH:
        moved = max(moved, _bent(_pieces(durations, 8)))
    level = median(durations)
    if moved > tolerance * level and moved > (MOVE if n >= ENOUGH else OF_FEW) * step:
        return True
    if n < ENOUGH:
        return False
    half = n // 2
    off = [abs(x - quarters[min(3, 4 * i // n)]) for i, x in enumerate(durations)]
    return _differ(off[:half], off[-half:], tolerance * level, SPREAD)


def _pieces(durations: Sequence[float], k: int) -> list[float]:
    """Medians of ``k`` equal parts."""
    n = len(durations)
    return [median(durations[n * i // k : n * (i + 1) // k]) for i in range(k)]


def _bent(eighths: Sequence[float]) -> float:
    """How far the least-squares parabola through them reaches, from its lowest to its highest."""
    slope, bend = (math.fsum(map(mul, x, eighths)) / 168 for x in (LINE, CURVE))
    along = [slope * x + bend * y for x, y in zip(LINE, CURVE, strict=True)]
    return max(along) - min(along)


def _differ(first: Sequence[float], second: Sequence[float], least: float, errors: float) -> bool:
    """Whether the means are more than ``least`` and than so many standard errors apart."""
    gap = abs(fmean(second) - fmean(first))
    if gap <= least:
        return False
    spread = max(stdev(first), stdev(second))
    return gap > errors * spread * math.sqrt(1 / len(first) + 1 / len(second))


def mser(values: Sequence[float]) -> int:
    """How many leading values to cut so that sum((x - mean)^2) / n^2 of the rest is least."""
    best, best_score = 0, math.inf
    count, total, squares = 0, 0.0, 0.0
    shift = values[-1]  # against cancellation
    for index in range(len(values) - 1, -1, -1):
        value = values[index] - shift
        count, total, squares = count + 1, total + value, squares + value * value
        score = max(0.0, squares - total * total / count) / count**2
        if count >= 5 and score <= best_score:
            best, best_score = index, score
    return best
