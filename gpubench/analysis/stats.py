"""Statistics of repeated timings: pure functions on numbers, no records, no formatting.

The sampling unit is the repeat (a fresh process): samples of one process are not independent. So
every value of a cell, percentiles among them, is a mean of logs over its repeats. Few repeats are
too few to tell their own spread: cells of one run that were measured in the same rounds tell it
together (`TwoWay`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from gpubench.units import count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
"""Confidence of every interval that is shown."""

MAD_SD = 1.4826
"""1 / (normal quantile 0.75): median size of a normal deviation -> sd."""
MOST_LOG = 700.0
"""Of what is exponentiated: two repeats that differ wildly have an interval beyond any float."""
MOST_HALF_WIDTH = 0.5
"""Relative. An interval that is wider says nothing that the repeats themselves do not say."""
NOISIER = 0.02
"""A cell keeps its own spread where an F test says at this level that it exceeds the others'."""
WILD = math.log(1.5)
"""Standard deviation of logs beyond what somebody else's work does to a repeat."""
FEWEST = 3
"""Cells that tell the spread of one another's level: of two nobody knows whose noise it is."""
LAG1_LIMIT = 0.1
MIN_BATCHES = 16
TAIL = 0.9
"""The percentile that must have a number for a higher one to have one."""


class Estimate(Struct, frozen=True, kw_only=True):
    """A value with its 95 % interval. Absent bounds (or value) come with ``why``."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Sampling units behind it: repeats, pairs, or effective samples for a percentile."""
    why: str = ""
    """Why there is no interval ('1 repeat') or no value ('n too small: 20 of 36')."""
    span: tuple[float, float] | None = None
    """Lowest and highest repeat, in place of an interval beyond `MOST_HALF_WIDTH`."""

    @property
    def usable(self) -> bool:
        """It may be ranked, tied and drawn: there is a value, and no interval that is too wide."""
        return self.value is not None and self.span is None

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        low, value, high = (
            None if v is None else v * factor for v in (self.low, self.value, self.high)
        )
        span = (self.span[0] * factor, self.span[1] * factor) if self.span else None
        return Estimate(value=value, low=low, high=high, n=self.n, why=self.why, span=span)

    @property
    def relative_half_width(self) -> float | None:
        """(high - low) / 2 / value; None without an interval, inf where it is not usable."""
        if self.span is not None:
            return math.inf
        if not self.value or self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / abs(self.value)


class LogRatio(Struct, frozen=True, kw_only=True):
    """Mean difference of logs: its standard error and degrees of freedom (0: no interval).

    Of `log_mean` the mean of the logs themselves.
    """

    mean: float
    error: float
    dof: float
    n: tuple[int, int]
    span: tuple[float, float] | None = None
    """Lowest and highest difference of logs that any repeats show."""

    def mirrored(self) -> LogRatio:
        """Of baseline / candidate."""
        span = None if self.span is None else (-self.span[1], -self.span[0])
        return replace(self, mean=-self.mean, span=span)

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

    def p_either_way(self, shift: float) -> tuple[float, float]:
        """`p_above` of it and of its mirror image."""
        return self.p_above(shift), self.mirrored().p_above(shift)

    def estimate(self) -> Estimate:
        """The ratio itself: exp of the difference."""
        bounds = self.interval()
        n = min(self.n)
        if bounds is None:
            return Estimate(value=math.exp(self.mean), n=n, why=repeats(n))
        low, high = (math.exp(max(-MOST_LOG, min(MOST_LOG, bound))) for bound in bounds)
        found = Estimate(value=math.exp(self.mean), low=low, high=high, n=n)
        if self.span is None or (found.relative_half_width or 0.0) <= MOST_HALF_WIDTH:
            return found
        ends = math.exp(self.span[0]), math.exp(self.span[1])
        return Estimate(value=found.value, n=n, why=USELESS, span=ends)


USELESS = "no usable interval"
"""Why an `Estimate` has a `span`."""


def repeats(n: int) -> str:
    """'1 repeat', '3 repeats'."""
    return count(n, "repeat")


@lru_cache(maxsize=4096)
def t_quantile(p: float, dof: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, p))


@lru_cache(maxsize=64)
def normal_quantile(p: float) -> float:
    """Quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(p))


def log_mean(values: Sequence[float], pilot: int = 0) -> LogRatio:
    """Mean of the logs of ``values`` > 0, in the order of the repeats.

    The mean is of all; the error is from the spread of the first ``pilot`` alone (0 or 1: of all)
    when these decided how many repeats there are. With the spread of all, a 95 % interval covers
    92 % (Stein 1945; the source is with `TwoWay.needed`).
    """
    logs = [math.log(v) for v in values]
    first, n = logs[:pilot] if pilot > 1 else logs, len(logs)
    dof = len(first) - 1
    centre = math.fsum(first) / len(first)
    variance = math.fsum((x - centre) ** 2 for x in first) / dof if dof else 0.0
    return LogRatio(mean=math.fsum(logs) / n, error=math.sqrt(variance / n), dof=dof, n=(n, n),
                    span=(min(logs), max(logs)))  # fmt: skip


def geometric_mean(values: Sequence[float], pilot: int = 0) -> Estimate:
    """Mean of logs over repeats with the t interval. ``values`` and ``pilot``: as of `log_mean`."""
    n = len(values)
    if not n:
        return Estimate(why="no repeats")
    if n == 1:
        return Estimate(value=values[0], n=1, why=repeats(1))
    if min(values) == max(values):  # exp(log(x)) may miss x, and with it the interval
        return Estimate(value=values[0], low=values[0], high=values[0], n=n)
    return log_mean(values, pilot).estimate()


def paired(base: Sequence[float], candidate: Sequence[float], pilot: int = 0) -> LogRatio:
    """log(candidate / base) over pairs of the same round, so that drift common to both cancels."""
    return log_mean([c / b for b, c in zip(base, candidate, strict=True)], pilot)


def welch(
    base: Sequence[float], candidate: Sequence[float], pilots: tuple[int, int] = (0, 0)
) -> LogRatio:
    """log(candidate / base) of unpaired repeats, unequal variances (Welch 1947)."""
    b, c = (log_mean(v, pilot) for v, pilot in zip((base, candidate), pilots, strict=True))
    variance, dof = b.error**2 + c.error**2, 0.0
    if min(b.dof, c.dof) > 0:
        parts = b.error**4 / b.dof + c.error**4 / c.dof
        dof = variance**2 / parts if parts else b.dof + c.dof
    span = math.log(min(candidate) / max(base)), math.log(max(candidate) / min(base))
    return LogRatio(mean=c.mean - b.mean, error=math.sqrt(variance), dof=dof,
                    n=(len(base), len(candidate)), span=span)  # fmt: skip


def log_ratio(
    base: Mapping[int, float], candidate: Mapping[int, float], pilots: tuple[int, int] = (0, 0)
) -> LogRatio:
    """log(candidate / base) from repeat values by round, in the order of the rounds.

    Paired over the rounds that both ran when these are at least two (a second stage may have
    measured one of them more often), else Welch's on all.
    """
    both = [r for r in base if r in candidate]
    if len(both) > 1:
        first = of_pilot(both, max(pilots))
        return paired([base[r] for r in both], [candidate[r] for r in both], first)
    firsts = of_pilot(base, pilots[0]), of_pilot(candidate, pilots[1])
    return welch(list(base.values()), list(candidate.values()), firsts)


def of_pilot(repeats: Iterable[int], pilot: int) -> int:
    """How many of ``repeats``, of which some may be lost, are of the first ``pilot``."""
    return sum(r < pilot for r in repeats)


def ratio(
    base: Mapping[int, float], candidate: Mapping[int, float], pilots: tuple[int, int] = (0, 0)
) -> Estimate:
    """candidate / base: see `log_ratio`."""
    if not base or not candidate:
        return Estimate(why="not measured")
    return log_ratio(base, candidate, pilots).estimate()


# ------------------------------------------------------------------------------ cells of one run


class Spread(Struct, frozen=True):
    """Variance of what the rounds leave of a cell's log, and its degrees of freedom."""

    variance: float
    dof: float
    own: bool = False
    """From the cell's own repeats alone: it is noisier than the others."""


class TwoWay(Struct, frozen=True, kw_only=True):
    """log value = cell + round + residual: cells of one run, measured in the same rounds.

    The residual variance is pooled over the cells; one that is noisier (`NOISIER`) keeps its own.
    A ratio within the run loses the rounds' effects; the level of a cell has them in its interval.
    """

    values: Mapping[str, Mapping[int, float]]
    """Cell -> round -> value > 0."""
    pilot: int
    """Of how many rounds the spread fixed the number of repeats; 0: of none."""
    spreads: Mapping[str, Spread]
    """Empty where the values leave nothing to tell a spread from."""
    dof: float
    """Of the pooled residual variance."""
    rounds: tuple[float, int, float]
    """Mean square of the rounds' effects, its degrees of freedom, how many residuals of variance
    1 and effects of variance 1 it is worth: E = residual variance + weight x effects' variance."""

    @property
    def cells(self) -> int:
        """That the residual variance is pooled over."""
        return sum(len(self.values[key]) > 1 for key in self.spreads)

    def _level(self, key: str) -> Spread:
        """Of one repeat of the cell, its round's effect included."""
        (square, count, weight), own = self.rounds, self.spreads[key]
        return self._sum([(square / weight, count), (own.variance * (1 - 1 / weight), own.dof)])

    def _sum(self, parts: Sequence[tuple[float, float]]) -> Spread:
        """Of what has these (variance, degrees of freedom).

        Half-way between Satterthwaite's and Cochran's squared quantiles of t: three to five rounds
        with effects of their own are held 92 to 95 times in 100 with the former, 95 to 98 with the
        latter.
        """
        variance, p = math.fsum(v for v, _ in parts), (1 + LEVEL) / 2
        squares = math.fsum(v**2 / dof for v, dof in parts if v)
        dof = min(self.dof, variance**2 / squares if squares else math.inf)
        cochran = math.fsum(v * t_quantile(p, d) ** 2 for v, d in parts if v)
        return Spread((variance + cochran / t_quantile(p, dof) ** 2) / 2, dof)

    def _pooled(self, key: str) -> bool:
        """Whether others tell the spread of its level."""
        return key in self.spreads and self.cells > 2 and self.rounds[1] > 0

    def level(self, key: str) -> Estimate:
        """Value of a cell with its interval."""
        found = self.values.get(key, {})
        if not self._pooled(key):
            return geometric_mean(list(found.values()), of_pilot(found, self.pilot))
        n, one = len(found), self._level(key)
        mean = log_mean(list(found.values()))
        e = replace(mean, error=math.sqrt(one.variance / n), dof=one.dof).estimate()
        if len({*found.values()}) == 1 and e.low and e.high:  # exp(log(x)) may miss x
            value = next(iter(found.values()))
            return Estimate(value=value, low=min(value, e.low), high=max(value, e.high), n=n)
        return e

    def ratio(self, base: str, candidate: str) -> LogRatio:
        """log(candidate / base), both of them with values."""
        b, c = self.values[base], self.values[candidate]
        both = [r for r in b if r in c]
        spreads = [self.spreads[key] for key in (base, candidate) if key in self.spreads]
        if len(spreads) < 2 or (not both and not self.rounds[1]):
            return log_ratio(b, c, (self.pilot, self.pilot))
        if both:
            found = paired([b[r] for r in both], [c[r] for r in both])
        else:
            found = welch(list(b.values()), list(c.values()))
            spreads = [self._level(key) for key in (base, candidate)]
        parts = [(s.variance / n, s.dof) for s, n in zip(spreads, found.n, strict=True)]
        total = self._sum(parts)
        return replace(found, error=math.sqrt(total.variance), dof=total.dof)

    def needed(self, key: str, target: float) -> int:
        """Repeats for a 95 % interval of relative half-width ``target``, from the pilot's rounds.

        Stein's two-stage rule on logarithms (Stein, "A two-sample test for a linear hypothesis
        whose power is independent of the variance", Annals of Mathematical Statistics 16, 1945):
        the spread is the pilot's, with the pilot's degrees of freedom, so that the interval keeps
        its level. These are those of all cells together, and few only for a cell alone.
        """
        found = self.values.get(key, {})
        values = list(found.values())
        if self._pooled(key):
            one = self._level(key)
        elif len(values) > 1:
            alone = log_mean(values, of_pilot(found, self.pilot))
            one = Spread(alone.error**2 * len(values), alone.dof)
        else:
            return len(values)
        half = t_quantile((1 + LEVEL) / 2, one.dof) * math.sqrt(one.variance)
        return max(len(values), math.ceil((half / math.log1p(target)) ** 2))


def two_way(values: Mapping[str, Mapping[int, float]], pilot: int = 0) -> TwoWay:
    """Least squares; cells and rounds may be missing. ``values``, ``pilot``: as in `TwoWay`.

    A cell that is `WILD` says nothing of the others, the wildest first: it stands alone.
    """
    logs = {
        key: {r: math.log(v) for r, v in found.items() if not pilot or r < pilot}
        for key, found in values.items()
    }
    told = {key: found for key, found in logs.items() if found}
    while True:
        fit, sds = _fitted(values, pilot, told)
        wildest = max(sds, key=lambda key: sds[key], default="")
        if len(told) <= FEWEST or sds.get(wildest, 0.0) <= WILD:
            return fit
        del told[wildest]


def _fitted(
    values: Mapping[str, Mapping[int, float]], pilot: int, logs: Mapping[str, Mapping[int, float]]
) -> tuple[TwoWay, dict[str, float]]:
    """The fit to ``logs``, and each cell's own residual sd."""
    import numpy as np
    from scipy.special import fdtrc

    keys = list(logs)
    at = {r: n for n, r in enumerate(sorted({r for found in logs.values() for r in found}))}
    nothing = TwoWay(values=values, pilot=pilot, spreads={}, dof=0.0, rounds=(0.0, 0, 1.0))
    if len(keys) < FEWEST - 1:
        return nothing, {}
    seen, y = np.zeros((2, len(keys), len(at)))
    for row, key in enumerate(keys):
        for r, log in logs[key].items():
            seen[row, at[r]], y[row, at[r]] = 1.0, log
    share = seen / seen.sum(1, keepdims=True)
    y = seen * (y - (y * share).sum(1, keepdims=True))  # cells are eliminated
    design = np.diag(seen.sum(0)) - share.T @ seen
    sizes, axes = np.linalg.eigh(design)
    there = sizes > 1e-9 * len(keys)
    rank = int(there.sum())
    dof = float(seen.sum()) - len(keys) - rank
    if dof < 1:
        return nothing, {}
    inverse = (axes[:, there] / sizes[there]) @ axes[:, there].T
    effects = inverse @ y.sum(0)
    rest = seen * (y - effects + (share @ effects)[:, None])
    own = share @ inverse
    leverage = share + np.diag(inverse) - 2 * own + (own * share).sum(1, keepdims=True)
    free, squares = (seen * (1 - leverage)).sum(1), (rest**2).sum(1)
    pooled, counts = float(squares.sum()) / dof, seen.sum(1).tolist()
    spreads, sds = dict.fromkeys(keys, Spread(pooled, dof)), {}
    for key, n, d, total in zip(keys, counts, free.tolist(), squares.tolist(), strict=True):
        if n < 2 or d <= 0:
            continue
        # against the fit to all the others: their residuals, and the cell's about their rounds
        alone, others = Spread(total * (n - 1) / d**2, n - 1, own=True), dof - (n - 1)
        sds[key] = math.sqrt(alone.variance)
        theirs = (pooled * dof - total * (n - 1) / d) / max(1.0, others) * (n - 1) / d
        if others >= 1 and theirs > 0 and fdtrc(n - 1, others, alone.variance / theirs) < NOISIER:
            spreads[key] = alone
    weight = float(np.trace(design)) / rank
    return TwoWay(values=values, pilot=pilot, spreads=spreads, dof=dof,
                  rounds=(float(y.sum(0) @ effects) / rank, rank, weight)), sds  # fmt: skip


def wilson(hits: float, n: int) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927)."""
    if n <= 0:
        return Estimate(why="no labels")
    p, z = hits / n, normal_quantile((1 + LEVEL) / 2)
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
    return Estimate(value=p, low=low, high=high, n=n)


def clopper_pearson(hits: int, n: int) -> Estimate:
    """A proportion with its exact interval (Clopper & Pearson 1934): it covers at least 95 %."""
    if n <= 0:
        return Estimate(why="nothing tried")
    low, high = exact_bounds(hits, n, (1 - LEVEL) / 2)
    return Estimate(value=hits / n, low=low, high=high, n=n)


def exact_bounds(hits: int, n: int, tail: float) -> tuple[float, float]:
    """A share, each end wrong with a chance of at most ``tail`` (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv

    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


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


def too_few(series: Sequence[Floats], q: float) -> str:
    """Why percentile ``q`` of each repeat's samples (in the order measured) has no number; ''.

    A repeat needs enough for one without bias. All together must be as many as an order-statistic
    interval would need: dependent ones, by the indicator of x <= the repeat's own percentile,
    count as fewer. What repeats differ by is in the interval over repeats. Where dependence is too
    strong for a p90, the few samples beyond a higher one cannot show that it is not.
    """
    import numpy as np

    n, need, least = sum(map(len, series)), minimum_n(q), math.ceil(1 / (1 - q) - 1e-9)
    if n < need:
        return f"n too small: {n} of {need}"
    fewest = min(map(len, series))
    if fewest < least:
        return f"n too small: a repeat with {fewest} of {least}"
    if q > TAIL and (why := too_few(series, TAIL)):
        return why
    below = np.concatenate([x <= np.quantile(x, q, method="inverted_cdf") for x in series])
    effective = int(n / inefficiency(below.astype(np.float64)))
    return "" if effective >= need else (
        f"n too small: {n} dependent samples weigh as {effective} of {need}"
    )  # fmt: skip


def percentile(samples: Floats, q: float) -> float:
    """Percentile ``q`` (0 < q < 1) of one repeat's samples, by Hazen's definition.

    Number 5 of Hyndman and Fan, "Sample quantiles in statistical packages" (1996): its mean over
    repeats has hardly a bias, where a nearest rank of a hundred samples is half a standard
    deviation too low at p99.
    """
    import numpy as np

    return float(np.quantile(samples, q, method="hazen"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def holm_both(chances: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """`holm` of tests in both directions: one family, since either way a false alarm is one."""
    adjusted = holm([p for both in chances for p in both])
    return list(zip(adjusted[::2], adjusted[1::2], strict=True))
