"""The paired test of an interleaved A/B: random signs on ranks, and nothing assumed of the noise.

Where both arms are the same, the order of a pair's arms was drawn at random, so its difference is
as likely d as -d, whatever the machine did meanwhile (Fisher, "The Design of Experiments", 1935,
section 21). The p-value is the share of all 2^n sign patterns whose statistic is at least the one
seen. The statistic is the signed-rank sum (Wilcoxon, "Individual comparisons by ranking methods",
1945), not the mean: on shared machines one turn in ten is hit by somebody else's work and 40 %
slower, and a few such pairs would drown a change of 5 % in a mean. As a rank, each counts as one
pair. The interval and the estimate that belong to the test are those of Hodges & Lehmann
("Estimates of location based on rank tests", 1963), from the averages of all twos of differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def p_above(differences: Sequence[float], shift: float = 0.0) -> float:
    """One-sided p-value of 'the differences lie around ``shift`` or lower'; exact, never random.

    Ties share their mean rank; a difference of exactly ``shift`` counts as below it. The statistic
    rises with each d, so the level holds wherever d is smaller than symmetric about ``shift``. No
    value: 1. Raises ValueError for what is not finite.
    """
    import numpy as np

    d = np.asarray(differences, np.float64) - shift
    if not len(d):
        return 1.0
    if not np.isfinite(d).all():
        raise ValueError(f"differences must be finite, not {list(differences)}")
    size = np.abs(d)
    # doubled, so that mean ranks are whole; sizes that differ by rounding alone are ties
    _, group, count = np.unique(
        np.round(size / (size.max() or 1.0), 12), return_inverse=True, return_counts=True
    )
    ranks = (2 * np.cumsum(count) - count + 1)[group]
    chances = _signs(tuple(sorted(ranks.tolist())))
    return min(1.0, float(chances[int(ranks[d > 0].sum()) :].sum()))


def around(differences: Sequence[float], level: float) -> tuple[float, float | None, float | None]:
    """(estimate, low, high) of where the differences lie: Hodges & Lehmann's, at ``level``.

    Between two neighbouring averages the bounds are interpolated, so that the level is met and not
    exceeded. There are none where 2 / 2^n > 1 - ``level``: below 6 differences at 95 %.
    """
    import numpy as np

    d = np.asarray(differences, np.float64)
    first, second = np.triu_indices(len(d))
    averages = np.sort((d[first] + d[second]) / 2)
    centre = float(np.median(averages))
    below, tail = _tail(len(d)), (1 - level) / 2
    at = int(np.searchsorted(below, tail, side="right"))  # P(sum < at) <= tail < P(sum <= at)
    if not at:
        return centre, None, None
    part = (tail - below[at - 1]) / (below[at] - below[at - 1])
    low = averages[at - 1] + part * (averages[at] - averages[at - 1])
    high = averages[-at] - part * (averages[-at] - averages[-at - 1])
    return centre, float(low), float(high)


@lru_cache(maxsize=256)
def _signs(ranks: tuple[int, ...]) -> Floats:
    """P(sum of the ranks with a plus = s), s = 0, 1, ..., each sign a fair coin."""
    import numpy as np

    chance = np.zeros(sum(ranks) + 1)
    chance[0] = 1.0
    for rank in ranks:
        chance[rank:] = (chance[rank:] + chance[: len(chance) - rank]) / 2 if rank else chance
        chance[:rank] /= 2
    return chance


@lru_cache(maxsize=256)
def _tail(n: int) -> Floats:
    """P(signed-rank sum <= k), k = 0 .. n (n + 1) / 2, of n differences without ties."""
    import numpy as np

    return np.cumsum(_signs(tuple(range(1, n + 1))))
