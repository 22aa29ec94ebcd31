"""What a short, noisy series of numbers did: where its level changed, drifted, or came and went.

Where it could have changed is what exact segmentation into constant means under a penalty says
(`segments`). Of the libraries for it, ruptures has no wheels for Python 3.14, and its pruning at
times misses the optimum where segments have a least length; Apache Otava pins numpy to one minor
release, brings clients of four databases along, and tests each split as if it had not been chosen.

Each split is then tested by itself, against its neighbours, and the weakest is dropped until all
that is left holds: it is larger than the margin; a t-test says so, at a level shared by every place
where it could have been, with the error that neighbouring runs' likeness adds; and odd runs, as
often as the series has them, do not happen to lie so. Two other things look like changes and are
none: a level that moves slowly (splits in one direction that a ramp explains better), and a machine
that goes to and fro between two states. `tests/benchmarks/trust/history.py` shows how often each is
mistaken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, groupby, pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gpubench.analysis import stats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SHORTEST = 3
"""Runs on either side of a change, at least: a single odd run is no new level."""
BY_CHANCE = 0.001
"""How many stretches like a level odd runs alone may be expected to make in its series."""
SWITCHES, APART = 4, 5.0
"""Two states: so often to and fro at least, and so many standard deviations of a state apart."""
OF_ONE, OF_SEVERAL = 8.0, -16.0
"""By how much less a ramp's Bayesian information criterion must be than that of one step, or of
several: such have places that were chosen, and of the two a drift blames nobody wrongly."""
GENTLE = 4 * SHORTEST
"""Runs that a ramp takes, at least: what takes fewer is a change between two runs."""
GRID = 40
"""Places, at most, where a ramp may begin or end."""


class Break(Struct, frozen=True, kw_only=True):
    """A change in a series of numbers."""

    at: int
    low: int
    high: int
    """The first run at the new level is one of these, with 95 %; most likely it is ``at``."""
    effect: stats.LogRatio
    """Mean after it less mean before it."""
    p: float
    """Corrected for every place in the series."""


class Ramp(Struct, frozen=True, kw_only=True):
    """A level that moved gradually."""

    first: int
    last: int
    """The runs between which it did."""
    effect: stats.LogRatio
    """The level after it less that before it."""
    p: float

    def share(self, at: int) -> float:
        """Of the way that is done at a run, 0 to 1."""
        return min(1.0, max(0.0, (at - self.first) / (self.last - self.first)))


class States(Struct, frozen=True, kw_only=True):
    """Two levels between which a series goes to and fro."""

    low: float
    high: float
    switches: int
    upper: list[int]
    """Runs at the higher one."""


class Findings(Struct, frozen=True, kw_only=True):
    """Of one series. With ``states`` there is nothing else."""

    breaks: list[Break] = []
    ramps: list[Ramp] = []
    states: States | None = None


def findings(costs: Sequence[float], delta: float, alpha: float) -> Findings:
    """What ``costs`` (logs) did by more than ``delta``; alpha: chance of anything false."""
    if not places(costs):
        return Findings()
    import numpy as np

    calm, margin = calmed(costs), math.log1p(delta)
    series = _Series(np.array(costs) - calm[0], np.array(calm) - calm[0])
    x = series.calm
    if states := _states(series, calm[0], margin):
        return Findings(states=states)
    # Schwarz' criterion: a change has a place and a mean; and what is far below the margin, in
    # the shortest of segments, is not looked for
    penalty = max(2 * _noise(calm) ** 2 * math.log(len(x)), SHORTEST / 2 * (margin / 2) ** 2)
    ends = [0, *segments(x, penalty)]
    ramps = _ramps(x, ends, margin, alpha)
    for ramp in ramps:
        ends = [e for e in ends if not ramp.first < e <= ramp.last or e == len(x)]
    flat = x.copy()
    for ramp in ramps:
        flat -= ramp.effect.mean * _rise(len(x), ramp.first, ramp.last)
    level = _Series(series.raw - x + flat, flat)
    return Findings(breaks=_breaks(level, ends, margin, alpha), ramps=ramps)


def segments(x: NDArray[np.float64], penalty: float) -> list[int]:
    """Where the segments of constant mean end, the last at len(x), that cost least.

    The cost: squared distances from the means, and ``penalty`` for each change; none is shorter
    than SHORTEST. Exact: optimal partitioning (Jackson et al., "An algorithm for optimal
    partitioning of data on an interval", IEEE Signal Processing Letters 12, 2005).
    """
    import numpy as np

    sums, squares = (np.concatenate([[0.0], np.cumsum(x**power)]) for power in (1, 2))
    best, last = np.full(len(x) + 1, np.inf), [0] * (len(x) + 1)
    best[0] = -penalty
    for end in range(SHORTEST, len(x) + 1):
        starts = np.arange(end - SHORTEST + 1)
        within = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        costs = best[starts] + within + penalty
        last[end] = int(costs.argmin())
        best[end] = costs[last[end]]
    ends, end = [], len(x)
    while end:
        ends.append(end)
        end = last[end]
    return ends[::-1]


def detectable(costs: Sequence[float], delta: float, alpha: float) -> float | None:
    """The smallest change in the middle of such a series that is found with 95 %: 0.05 is 5 %.

    None where there are too few runs. The noise is that of neighbours (`_noise`).
    """
    n = len(costs)
    if not places(costs):
        return None
    error = _noise(calmed(costs)) * 2 / math.sqrt(n)
    found = stats.t_quantile(1 - alpha / places(costs) / 2, n - 2) * error
    power = stats.t_quantile(stats.LEVEL, n - 2) * error
    return math.expm1(min(stats.MOST_LOG, max(found, math.log1p(delta)) + power))


def places(costs: Sequence[float] | Floats) -> int:
    """Where a change could be."""
    return max(0, len(costs) - 2 * SHORTEST + 1)


class _Series(NamedTuple):
    raw: Floats
    calm: Floats
    """`calmed`."""

    def odd(self, by: float) -> float:
        """Share of odd runs that are off by half of ``by`` or more: lesser ones do not look so."""
        off = abs(self.raw - self.calm)
        return (float(((off > 0) & (off >= abs(by) / 2)).sum()) + 0.5) / len(off)


def _noise(costs: Sequence[float]) -> float:
    """Standard deviation around the levels, whatever these are: from neighbours' differences.

    The median of their absolute values, so that the changes themselves do not count.
    """
    steps = [abs(b - a) for a, b in pairwise(costs)]
    return stats.MAD_SD * median(steps) / math.sqrt(2) if steps else 0.0


def calmed(costs: Sequence[float]) -> list[float]:
    """With odd runs put onto the median of their neighbourhood, where they are 3 sd from it.

    Hampel's identifier (Davies & Gather, "The identification of multiple outliers", JASA 88,
    1993) over five runs: a level of `SHORTEST` runs is a majority of these and stays, a shorter
    one goes.
    """
    reach, limit = SHORTEST - 1, 3 * _noise(costs)
    near = [median(costs[max(0, i - reach) : i + reach + 1]) for i in range(len(costs))]
    return [m if abs(x - m) > limit else x for x, m in zip(costs, near, strict=True)]


def _lasts(series: _Series, run: Floats, base: float, level: float) -> bool:
    """Whether odd runs alone would hardly make a stretch like ``run`` in such a series.

    That has as many runs that are nearer to ``level`` than to ``base``, of as many. The limit is
    `BY_CHANCE`, or what `SHORTEST` runs can show at most in so short a series.
    """
    from scipy.special import bdtrc

    n, far = len(series.raw), int((abs(run - level) < abs(run - base)).sum())
    expected = n * float(bdtrc(far - 1, len(run), series.odd(level - base)))
    return expected < max(BY_CHANCE, 1.01 * n * (0.5 / n) ** SHORTEST)


# ------------------------------------------------------------------------------ changes


def _breaks(series: _Series, ends: list[int], margin: float, alpha: float) -> list[Break]:
    """The weakest is dropped until each that is left holds by itself."""
    where = places(series.calm)
    while len(ends) > 2:
        found, variance = _tested(series.calm, ends, where)
        doubts = [
            b.p if b.p >= alpha or abs(b.effect.mean) <= margin
            or not _holds(series, ends[i], b, ends[i + 2]) else -1.0
            for i, b in enumerate(found)
        ]  # fmt: skip
        worst = max(doubts)
        if worst < 0:
            return [
                replace(b, low=low, high=high)
                for i, b in enumerate(found)
                for low, high in [_between(series, ends[i], b, ends[i + 2], variance)]
            ]
        ends = [e for e in ends if e != found[doubts.index(worst)].at]
    return []


def _tested(x: Floats, ends: Sequence[int], where: int) -> tuple[list[Break], float]:
    """A t-test of neighbouring segments, with the noise of all segments; `_variance` of a run."""
    import numpy as np

    segments = [x[a:b] for a, b in pairwise(ends)]
    dof = len(x) - len(segments)
    variance = _variance(np.concatenate([s - s.mean() for s in segments]), len(segments), dof)
    found = []
    for end, (before, after) in zip(ends[1:], pairwise(segments), strict=False):
        n = len(before), len(after)
        effect = stats.LogRatio(
            mean=float(after.mean() - before.mean()),
            error=math.sqrt(variance * (1 / n[0] + 1 / n[1])), dof=dof, n=n,
        )  # fmt: skip
        found.append(Break(at=end, low=end, high=end, effect=effect, p=_p(effect, where)))
    return found, variance


def _variance(rest: Floats, fitted: int, dof: int) -> float:
    """Of a run, in effect: neighbours are alike (the same week), as if there were fewer of them.

    ``rest``: what ``fitted`` means leave; these bias the autocorrelation by about -1 / run each.
    """
    power = float(rest @ rest)
    lag = float(rest[:-1] @ rest[1:]) / power if power else 0.0
    rho = min(0.9, max(0.0, lag + fitted / len(rest)))
    return power / dof * (1 + rho) / (1 - rho)


def _p(effect: stats.LogRatio, where: int) -> float:
    return min(1.0, 2 * min(effect.p_either_way(0.0)) * where)


def _holds(series: _Series, begin: int, b: Break, end: int) -> bool:
    """Whether odd runs would hardly look as much like it."""
    raw = series.raw[begin:end]
    before, after = raw[: b.at - begin], raw[b.at - begin :]
    long, short, by = before, after, b.effect.mean
    if len(before) < len(after):
        long, short, by = after, before, -by
    base = median(long.tolist())
    return _lasts(series, short, base, base + by)


def _explained(x: Floats, least: int) -> tuple[float, int]:
    """Most that two levels explain, as a sum of squares, and the length of the first of them.

    ``least``: runs of either.
    """
    import numpy as np

    n = len(x)
    k = np.arange(least, n - least + 1)
    gains = (x - x.mean()).cumsum()[k - 1] ** 2 * (n / (k * (n - k)))
    best = int(gains.argmax())
    return float(gains[best]), int(k[best])


def _between(series: _Series, begin: int, b: Break, end: int, variance: float) -> tuple[int, int]:
    """The shortest stretch of places that holds 95 % of the likelihood of one change there.

    A run counts for one level or the other by at most what its being an odd one would explain.
    """
    import numpy as np

    x, at = series.raw[begin:end], b.at - begin
    if variance <= 0:
        return b.at, b.at
    levels = (float(series.calm[begin : b.at].mean()), float(series.calm[b.at : end].mean()))
    most = math.log(1 / series.odd(b.effect.mean))
    before, after = (np.minimum((x - level) ** 2 / (2 * variance), most) for level in levels)
    gains = np.concatenate([[0.0], (before - after).cumsum()])[SHORTEST : len(x) - SHORTEST + 1]
    weight = np.exp(gains.min() - gains)
    total = np.concatenate([[0.0], (weight / weight.sum()).cumsum()])
    last = np.searchsorted(total, total + stats.LEVEL - 1e-12)
    _, low, high = min((j - i, i, j) for i, j in enumerate(last.tolist()) if j < len(total))
    low, high = (SHORTEST + k for k in (low, high - 1))
    return begin + min(low, at), begin + max(high, at)


# ------------------------------------------------------------------------------ what is none


def _ramps(x: Floats, ends: Sequence[int], margin: float, alpha: float) -> list[Ramp]:
    """Where a ramp explains better what splits, all of it, or what splits in one direction."""
    if ramp := _ramp(x, ends[1:-1], margin, alpha):
        return [ramp]
    means = [float(x[a:b].mean()) for a, b in pairwise(ends)]
    steps = [(end, b > a) for end, (a, b) in zip(ends[1:], pairwise(means), strict=False)]
    groups = [[end for end, _ in group] for _, group in groupby(steps, lambda step: step[1])]
    found = []
    for i, group in enumerate(groups if groups[1:] else []):
        begin = groups[i - 1][-1] if i else 0
        end = groups[i + 1][0] if i + 1 < len(groups) else len(x)
        ramp = _ramp(x[begin:end], [e - begin for e in group], margin, alpha)
        if ramp:
            found.append(replace(ramp, first=begin + ramp.first, last=begin + ramp.last))
    return found


def _rise(n: int, first: int, last: int) -> Floats:
    """0 up to ``first``, 1 from ``last`` on, and a straight line between them."""
    import numpy as np

    return np.clip((np.arange(n) - first) / (last - first), 0.0, 1.0)


def _ramp(x: Floats, splits: Sequence[int], margin: float, alpha: float) -> Ramp | None:
    """The best one, where it explains ``x`` better than one step and than those at ``splits``."""
    import numpy as np

    n = len(x)
    if n < GENTLE + 2:
        return None
    knots = np.unique(np.linspace(0, n - 1, min(n, GRID)).round().astype(int)).tolist()
    y = x - x.mean()

    def gain(ends: tuple[int, int]) -> float:
        s = _rise(n, *ends)
        s -= s.mean()
        return float(s @ y) ** 2 / float(s @ s)

    first, last = max((k for k in combinations(knots, 2) if k[1] - k[0] >= GENTLE), key=gain)
    total = float(y @ y)
    left = total - gain((first, last))
    if left <= 1e-12 * total:
        return None
    split = sum(float(np.square(p - p.mean()).sum()) for p in np.split(x, [*splits]))
    one = total - _explained(x, SHORTEST)[0]
    for rest, steps, least in ((one, 1, OF_ONE), (split, len(splits), OF_SEVERAL)):
        better = n * math.log(max(rest, 1e-300) / left) + (2 * steps + 1 - 4) * math.log(n)
        if steps and better < least:
            return None
    s = _rise(n, first, last)
    s -= s.mean()
    slope = float(s @ y) / float(s @ s)
    error = math.sqrt(_variance(y - slope * s, 4, n - 4) / float(s @ s))
    effect = stats.LogRatio(mean=slope, error=error, dof=n - 4, n=(n, n))
    p = _p(effect, len(knots) ** 2 // 2)
    if p >= alpha or abs(slope) <= margin:
        return None
    return Ramp(first=first, last=last, effect=effect, p=p)


def _states(series: _Series, shift: float, margin: float) -> States | None:
    """Otsu's threshold splits the runs; then they must go to and fro, more often than odd ones."""
    import numpy as np

    x = series.calm
    ordered, n = np.sort(x), len(x)
    if ordered[-1] - ordered[0] <= margin:
        return None
    _, cut = _explained(ordered, 1)
    threshold = (ordered[cut - 1] + ordered[cut]) / 2
    upper = x > threshold
    low, high = float(x[~upper].mean()), float(x[upper].mean())
    reach = SHORTEST - 1
    kept = [bool(np.median(upper[max(0, i - reach) : i + reach + 1]) > 0.5) for i in range(n)]
    within = math.sqrt(float(np.square(x - np.where(upper, high, low)).sum()) / max(1, n - 2))
    if high - low <= max(margin, APART * within):
        return None
    stays: list[tuple[bool, int, int]] = []
    at = 0
    for side, same in groupby(kept):
        length = len(list(same))
        stays.append((side, at, at + length))
        at += length
    rare = bool(upper.sum() * 2 <= n)
    base, level = (low, high) if rare else (high, low)
    real = sum(_lasts(series, series.raw[a:b], base, level) for side, a, b in stays if side == rare)
    if len(stays) - 1 < SWITCHES or real < SWITCHES // 2:
        return None
    return States(low=low + shift, high=high + shift, switches=len(stays) - 1,
                  upper=np.flatnonzero(series.raw > threshold).tolist())  # fmt: skip
