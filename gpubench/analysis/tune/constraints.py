"""Does a configuration keep a limit, and would it again?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.tune import objective
from gpubench.analysis.tune.noise import FAR, Noise
from gpubench.suite.goal import Limit

PROMISED = 0.99
"""Chance that another repeat keeps a limit that is called met."""
TWICE = 2
"""Repeats that nothing is promised below."""
SETTLED = 3
"""Repeats after which a limit that more of them could not show to be met counts as broken."""
MOST = 40
"""Repeats of one configuration, at most, for the samples that a percentile needs."""

State = Literal["met", "open", "violated"]


class Kept(Struct, frozen=True):
    """One limit and one configuration."""

    limit: Limit
    value: float | None
    """Mean of logs over repeats; None where it was not measured."""
    state: State
    """met: every repeat kept it, and with PROMISED another would. violated: with PROMISED another
    would break it; one alone must be beyond it by FAR, since a burst may have hit it. Percentiles
    are met only with `stats.minimum_n` samples."""
    worst: float | None = None
    """What one repeat in a hundred would show, or worse."""
    missing: int = 0
    """Samples that the percentile still needs."""
    hopeless: bool = False
    """open, and more repeats would not help: too close to the limit, or MOST of them would still
    be too few samples."""
    near: bool = False
    """hopeless only for being close: no repeat has broken it yet."""

    @property
    def text(self) -> str:
        """'p99 latency 19.2 ms, one repeat in 100 would show 21.3 ms: limit 20 ms'."""
        metric, bound = self.limit.metric, self.limit.metric.text(self.limit.bound)
        if self.value is None:
            return f"{metric.name} could not be measured: limit {bound}"
        said = f"{metric.name} {metric.text(self.value)}"
        if self.missing:
            said += f", {self.missing} samples too few to tell"
        elif self.state == "open" and self.worst is not None:
            said += f", one repeat in 100 would show {metric.text(self.worst)}"
        return f"{said}: limit {bound}"


def judged(limit: Limit, values: Sequence[float], noise: Noise, samples: int) -> Kept:
    """``values``: one for each repeat; ``samples``: latencies of all of them.

    The bound is the one-sided prediction bound of Student's t for one more value, with an sd that
    is pooled over configurations (Hahn & Meeker, "Statistical Intervals", 1991, section 4.7).
    """
    if not values:
        return Kept(limit, None, "open", hopeless=True)
    costs = [objective.cost(limit.metric, v) for v in values]
    bound = objective.cost(limit.metric, limit.bound)
    n, centre, reach = len(costs), fmean(costs), noise.t(PROMISED)
    half = reach * math.sqrt(1 + 1 / n)
    of_latency = limit.metric.kind == "latency"
    missing = max(0, stats.minimum_n(limit.metric.quantile) - samples) if of_latency else 0
    sign = -1 if limit.metric.more_is_better else 1
    value, worst = (math.exp(sign * x) for x in (centre, centre + half))
    state: State = "open"
    if centre - (half if n >= TWICE else max(half, FAR)) > bound:
        state = "violated"
    elif max(costs) <= bound and centre + half <= bound and n >= TWICE and not missing:
        state = "met"
    close = n >= SETTLED and (max(costs) > bound or centre + reach > bound)
    few = missing > (MOST - n) * samples / n
    hopeless = state == "open" and (close or few)
    near = hopeless and not few and max(costs) <= bound
    return Kept(limit, value, state, worst, missing, hopeless, near)


def over(limit: Limit, value: float, margin: float) -> bool:
    """Whether ``value``, made better by ``margin`` (0.1: 10 %), still breaks the limit."""
    best = objective.cost(limit.metric, value) - math.log1p(margin)
    return best > objective.cost(limit.metric, limit.bound)


def beyond(found: Kept) -> float:
    """How far beyond the limit one repeat in a hundred would be, in logs."""
    metric = found.limit.metric
    if found.worst is None:
        return math.inf
    return objective.cost(metric, found.worst) - objective.cost(metric, found.limit.bound)
