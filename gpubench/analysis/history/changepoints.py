"""Change points of a short, noisy series of numbers: where its level changed for good.

Where it could have changed is `ruptures`' answer: exact segmentation into constant means under a
penalty (Killick, Fearnhead & Eckley, "Optimal detection of changepoints with a linear
computational cost", JASA 107, 2012). It needs numpy and scipy alone. Apache Otava, the other
maintained choice, pins numpy to one minor release, brings clients of four databases and of a chat
service along, and tests each split it has chosen as if it had not been chosen.

A split counts only if the change is larger than the margin; if a t-test says so, at a level shared
by every place where it could have been, with the error that neighbouring runs' likeness adds; and
if the order of the runs matters at all (a permutation test), because sessions are not normal: a
machine with two states would else alarm in most long series. In simulations of unchanged series
of 6 to 150 runs with a noise of 3 %, at alpha 1 %, at most 1.2 % of normal ones alarmed, 0.8 % of
heavy-tailed ones (Student's t, 3 degrees of freedom), 2 % of those with two states or odd runs,
and 11 % of those in which neighbouring runs correlate by 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from gpubench.analysis import stats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHORTEST = 3
"""Runs on either side of a change, at least: a single odd run is no new level."""

ORDER = 0.01
"""Share of the orders of a series that may look as much like a change as its own."""
SHUFFLES = 299
"""Orders tried, seeded."""


class Break(Struct, frozen=True, kw_only=True):
    """A change in a series of numbers."""

    at: int
    effect: stats.LogRatio
    """Mean after it less mean before it."""
    p: float
    """Corrected for every place in the series."""


def changes(costs: Sequence[float], delta: float, alpha: float) -> list[Break]:
    """Where the mean of ``costs`` (logs) changes by more than ``delta``; alpha: any false one.

    From the segmentation that the penalty allows down to a single change: the first of which every
    change is significant.
    """
    where = places(costs)
    if not where:
        return []
    import numpy as np
    import ruptures

    calm, margin = calmed(costs), math.log1p(delta)
    raw, x = np.array(costs) - calm[0], np.array(calm) - calm[0]
    # Schwarz' criterion: a change has a place and a mean; and what is far below the margin, in
    # the shortest of segments, is not looked for
    penalty = max(2 * _noise(calm) ** 2 * math.log(len(x)), SHORTEST / 2 * (margin / 2) ** 2)
    search = ruptures.KernelCPD(kernel="linear", min_size=SHORTEST).fit(x)
    for count in range(len(search.predict(pen=penalty)) - 1, 0, -1):
        found = _tested(x, search.predict(n_bkps=count), where)
        if all(b.p < alpha and abs(b.effect.mean) > margin for b in found):
            return found if _ordered(raw, count) else []
    return []


def places(costs: Sequence[float]) -> int:
    """Where a change could be."""
    return max(0, len(costs) - 2 * SHORTEST + 1)


def _noise(costs: Sequence[float]) -> float:
    """Standard deviation around the levels, whatever these are: from neighbours' differences.

    The median of their absolute values, so that the changes themselves do not count.
    """
    steps = [abs(b - a) for a, b in pairwise(costs)]
    return median(steps) * 1.4826 / math.sqrt(2) if steps else 0.0


def calmed(costs: Sequence[float]) -> list[float]:
    """With odd runs put onto the median of their neighbourhood, where they are 3 sd from it.

    Hampel's identifier (Davies & Gather, "The identification of multiple outliers", JASA 88,
    1993) over five runs: a level of `SHORTEST` runs is a majority of these and stays, a shorter
    one goes.
    """
    reach, limit = SHORTEST - 1, 3 * _noise(costs)
    near = [median(costs[max(0, i - reach) : i + reach + 1]) for i in range(len(costs))]
    return [m if abs(x - m) > limit else x for x, m in zip(costs, near, strict=True)]


def _ordered(x: NDArray[np.float64], count: int) -> bool:
    """Whether ``count`` changes explain more of ``x`` than of its runs in any other order.

    A permutation test, for series whose noise is not normal, such as that of a machine with two
    states. At `ORDER`, or at what so few runs can show at most.
    """
    import numpy as np

    level = max(ORDER, 5 / math.comb(len(x), SHORTEST))
    seen, hits, rng = _left(x, count), 1, np.random.default_rng(len(x))
    for _ in range(SHUFFLES):
        hits += _left(rng.permutation(x), count) <= seen * (1 + 1e-9)
        if hits > level * (SHUFFLES + 1):
            return False
    return True


def _left(x: NDArray[np.float64], count: int) -> float:
    """Sum of squares around the best ``count`` + 1 levels."""
    import numpy as np
    import ruptures

    search = ruptures.KernelCPD(kernel="linear", min_size=SHORTEST).fit(x)
    segments = pairwise([0, *search.predict(n_bkps=count)])
    return sum(float(np.square(x[a:b] - x[a:b].mean()).sum()) for a, b in segments)


def _tested(x: NDArray[np.float64], ends: Sequence[int], places: int) -> list[Break]:
    """A t-test of neighbouring segments, with the noise of all segments."""
    import numpy as np

    segments = [x[a:b] for a, b in pairwise([0, *ends])]
    dof = len(x) - len(segments)
    rest = np.concatenate([s - s.mean() for s in segments])
    power = float(rest @ rest)
    # Neighbouring runs are alike (the same week): as if there were fewer. Fitted means bias this
    # autocorrelation by about -1 / run and segment.
    lag = float(rest[:-1] @ rest[1:]) / power if power else 0.0
    rho = min(0.9, max(0.0, lag + len(segments) / len(x)))
    variance = power / dof * (1 + rho) / (1 - rho)
    found = []
    for end, (before, after) in zip(ends, pairwise(segments), strict=False):
        n = len(before), len(after)
        effect = stats.LogRatio(
            mean=float(after.mean() - before.mean()),
            error=math.sqrt(variance * (1 / n[0] + 1 / n[1])), dof=dof, n=n,
        )  # fmt: skip
        p = 2 * replace(effect, mean=abs(effect.mean)).p_above(0.0)
        found.append(Break(at=end, effect=effect, p=min(1.0, p * places)))
    return found
