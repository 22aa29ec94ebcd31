"""Statistics of repeated timings: pure functions on numbers, no records, no formatting.

The sampling unit is the repeat (a fresh process): samples of one process are not independent. So
the headline is a mean of logs over repeats with Student's t, and percentiles over pooled samples
use an *effective* sample count (batch means; Law & Kelton, "Simulation Modeling and Analysis").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench.units import count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
"""Confidence of every interval that is shown."""

MOST_LOG = 700.0
"""Of what is exponentiated: two repeats that differ wildly have an interval beyond any float."""
LAG1_LIMIT = 0.1
MIN_BATCHES = 16


class Estimate(Struct, frozen=True, kw_only=True):
    """A value with its 95 % interval. Absent bounds (or value) come with ``why``."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Sampling units behind it: repeats, pairs, or effective samples for a percentile."""
    why: str = ""
    """Why there is no interval ('1 repeat') or no value ('n too small: 20 of 36')."""

    @property
    def relative_half_width(self) -> float | None:
        """(high - low) / 2 / value; None without an interval."""
        if not self.value or self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / abs(self.value)


class LogRatio(Struct, frozen=True, kw_only=True):
    """Mean difference of logs: its standard error and degrees of freedom (0: no interval)."""

    mean: float
    error: float
    dof: float
    n: tuple[int, int]

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Bounds of the difference of logs; None with a single repeat."""
        if self.dof <= 0:
            return None
        half = t_quantile((1 + level) / 2, self.dof) * self.error
        return self.mean - half, self.mean + half

    def p_above(self, shift: float) -> float:
        """One-sided p-value of 'the true difference is at most ``shift``'."""
        from scipy.special import stdtr

        if self.dof <= 0:
            return 1.0
        if self.error == 0:
            return 0.0 if self.mean > shift else 1.0
        return float(stdtr(self.dof, (shift - self.mean) / self.error))

    def estimate(self) -> Estimate:
        """The ratio itself: exp of the difference."""
        bounds = self.interval()
        n = min(self.n)
        if bounds is None:
            return Estimate(value=math.exp(self.mean), n=n, why=repeats(n))
        low, high = (math.exp(min(MOST_LOG, bound)) for bound in bounds)
        return Estimate(value=math.exp(self.mean), low=low, high=high, n=n)


def repeats(n: int) -> str:
    """'1 repeat', '3 repeats'."""
    return count(n, "repeat")


def t_quantile(p: float, dof: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, p))


def _moments(logs: Sequence[float], pilot: int) -> tuple[float, float, int]:
    """(mean, variance of the mean, degrees of freedom) of logs in the order of the repeats.

    The mean is of all; the variance is that of the first ``pilot`` alone (0 or 1: of all) when
    these decided how many repeats there are. With the variance of all, a 95 % interval covers
    92 % (Stein 1945; the source is with `gpubench.measure.protocol.repeats_needed`).
    """
    first = logs[:pilot] if pilot > 1 else logs
    dof = len(first) - 1
    centre = math.fsum(first) / len(first)
    variance = math.fsum((x - centre) ** 2 for x in first) / dof if dof else 0.0
    return math.fsum(logs) / len(logs), variance / len(logs), dof


def geometric_mean(values: Sequence[float], pilot: int = 0) -> Estimate:
    """Mean of logs over repeats with the t interval. ``values`` > 0, one for each repeat.

    ``pilot``: how many of the first values fixed the number of repeats; 0: none did.
    """
    n = len(values)
    if not n:
        return Estimate(why="no repeats")
    if n == 1:
        return Estimate(value=values[0], n=1, why=repeats(1))
    if min(values) == max(values):  # exp(log(x)) may miss x, and with it the interval
        return Estimate(value=values[0], low=values[0], high=values[0], n=n)
    mean, variance, dof = _moments([math.log(v) for v in values], pilot)
    return LogRatio(mean=mean, error=math.sqrt(variance), dof=dof, n=(n, n)).estimate()


def paired(base: Sequence[float], candidate: Sequence[float], pilot: int = 0) -> LogRatio:
    """log(candidate / base) over pairs of the same round, so that drift common to both cancels."""
    logs = [math.log(c / b) for b, c in zip(base, candidate, strict=True)]
    mean, variance, dof = _moments(logs, pilot)
    return LogRatio(mean=mean, error=math.sqrt(variance), dof=dof, n=(len(logs), len(logs)))


def welch(
    base: Sequence[float], candidate: Sequence[float], pilots: tuple[int, int] = (0, 0)
) -> LogRatio:
    """log(candidate / base) of unpaired repeats, unequal variances (Welch 1947)."""
    mean_b, var_b, dof_b = _moments([math.log(v) for v in base], pilots[0])
    mean_c, var_c, dof_c = _moments([math.log(v) for v in candidate], pilots[1])
    variance, dof = var_b + var_c, 0.0
    if min(dof_b, dof_c) > 0:
        parts = var_b**2 / dof_b + var_c**2 / dof_c
        dof = variance**2 / parts if parts else dof_b + dof_c
    n = len(base), len(candidate)
    return LogRatio(mean=mean_c - mean_b, error=math.sqrt(variance), dof=dof, n=n)


def ratio(
    base: Mapping[int, float], candidate: Mapping[int, float], pilots: tuple[int, int] = (0, 0)
) -> Estimate:
    """candidate / base from repeat values by round, in the order of the rounds.

    Paired over the rounds that both ran when these are at least two (a second stage may have
    measured one of them more often), else Welch's on all.
    """
    if not base or not candidate:
        return Estimate(why="not measured")
    both = [r for r in base if r in candidate]
    if len(both) > 1:
        first, second = [base[r] for r in both], [candidate[r] for r in both]
        return paired(first, second, max(pilots)).estimate()
    return welch(list(base.values()), list(candidate.values()), pilots).estimate()


def wilson(hits: float, n: int) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927)."""
    from scipy.special import ndtri

    if n <= 0:
        return Estimate(why="no labels")
    p, z = hits / n, float(ndtri((1 + LEVEL) / 2))
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
    return Estimate(value=p, low=low, high=high, n=n)


def clopper_pearson(hits: int, n: int) -> Estimate:
    """A proportion with its exact interval (Clopper & Pearson 1934): it covers at least 95 %."""
    from scipy.special import betaincinv

    if n <= 0:
        return Estimate(why="nothing tried")
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Estimate(value=hits / n, low=low, high=high, n=n)


def minimum_n(q: float) -> int:
    """Fewest samples with a two-sided 95 % order-statistic interval: .9 -> 36, .99 -> 368."""
    return math.ceil(math.log((1 - LEVEL) / 2) / math.log(max(q, 1 - q)))


def inefficiency(series: Floats) -> float:
    """How many samples of ``series`` weigh as much as one independent one (at least 1).

    Batches double until the lag-1 autocorrelation of their means is below 0.1; then it is
    batch x var(batch means) / var(samples), or that of the next doubling where it is larger. With
    too few batches left to tell, at least the batch size, which is conservative.
    """
    import numpy as np

    variance = float(series.var())
    if variance == 0:
        return 1.0
    batch, means, settled, worst = 1, series, False, 1.0
    while True:
        centred = means - means.mean()
        power = float(np.dot(centred, centred))
        lag1 = float(np.dot(centred[:-1], centred[1:])) / power if power else 0.0
        weight = batch * power / len(means) / variance
        if settled:
            return max(worst, weight)
        settled, worst = lag1 < LAG1_LIMIT, max(1.0, weight)
        if len(means) // 2 < MIN_BATCHES:
            return worst if settled else max(float(batch), worst)
        means = means[: len(means) // 2 * 2].reshape(-1, 2).mean(axis=1)
        batch *= 2


def percentile(samples: Floats, q: float) -> Estimate:
    """Percentile ``q`` (0 < q < 1) of samples in the order measured, repeat after repeat.

    Estimator: nearest rank, x[ceil(q n)]. The interval is the order-statistic (binomial) one on
    the effective count: dependence is measured on the indicator of x <= percentile, which is what
    the empirical distribution averages. A launch effect between repeats is dependence as well, so
    few repeats that differ may be too few for a number.
    """
    import numpy as np
    from scipy.special import bdtr

    n, need = len(samples), minimum_n(q)
    if n < need:
        return Estimate(n=n, why=f"n too small: {n} of {need}")
    ordered = np.sort(samples)
    value = float(ordered[math.ceil(q * n) - 1])
    effective = int(n / inefficiency((samples <= value).astype(np.float64)))
    if effective < need:
        why = f"n too small: {n} dependent samples weigh as {effective} of {need}"
        return Estimate(n=effective, why=why)
    tail = (1 - LEVEL) / 2
    # P(at most k of `effective` samples lie below the true percentile), k = 0 .. effective
    below = bdtr(np.arange(effective + 1, dtype=float), effective, q)
    lower = int(np.searchsorted(below, tail, side="right"))
    upper = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    scale = n / effective
    low = float(ordered[max(1, math.floor(lower * scale)) - 1])
    high = float(ordered[min(n, math.ceil(upper * scale)) - 1])
    return Estimate(value=value, low=low, high=high, n=effective)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
