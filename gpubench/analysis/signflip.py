"""The paired test of an interleaved A/B: random signs, and nothing assumed about the noise.

Where both arms are the same, the order of a pair's arms was drawn at random, so its difference is
as likely d as -d, whatever the machine did meanwhile (Fisher, "The Design of Experiments", 1935,
section 21). The p-value is the share of all 2^n sign patterns whose sum is at least the one seen.
Turning the signs of a set of pairs takes twice its sum away, so a pattern counts exactly when the
sum over its turned pairs is at most 0. Hence p falls as any d grows: a test that keeps its level
where d is symmetric about the margin keeps it wherever d is smaller, and rounding d down is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT = 26
"""Up to so many pairs every pattern is counted: two halves, met in the middle."""
GRID = 4096
"""Beyond that, d is rounded down to max |d| / GRID, and sums of whole numbers are counted."""


def p_above(differences: Sequence[float], shift: float = 0.0) -> float:
    """One-sided p-value of 'the mean of ``differences`` is at most ``shift``'; never random.

    Exact for up to EXACT values (Horowitz & Sahni's meeting in the middle: 2^n patterns in 2^(n/2)
    log steps), and for more an upper bound, beyond the exact one by as much as a shift of
    max |d| / GRID makes. No value: 1.
    """
    import numpy as np

    d = np.asarray(differences, np.float64) - shift
    if not len(d):
        return 1.0
    if not np.isfinite(d).all():
        raise ValueError(f"differences must be finite, not {list(differences)}")
    return _met(d) if len(d) <= EXACT else _counted(d)


def _met(d: NDArray[np.float64]) -> float:
    """Share of the subsets of ``d`` whose sum is at most 0."""
    import numpy as np

    # Patterns that tie with the one seen count, however their sums were rounded.
    most = 1e-9 * float(np.abs(d).sum())
    first, second = _sums(d[: len(d) // 2]), np.sort(_sums(d[len(d) // 2 :]))
    below = np.searchsorted(second, most - first, side="right")
    return float(below.sum()) / 2.0 ** len(d)


def _sums(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of all 2^n subsets."""
    import numpy as np

    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums, sums + x])
    return sums


def _counted(d: NDArray[np.float64]) -> float:
    """As `_met`, of ``d`` rounded down to a grid: P(sum of a random subset <= 0), step by step."""
    import numpy as np

    step = float(np.abs(d).max()) / GRID
    if step == 0:
        return 1.0
    whole = np.floor(d / step + 1e-9).astype(int)
    chance = np.zeros(int(np.abs(whole).sum()) + 1)
    zero, low, high = int(-whole[whole < 0].sum()), 0, 0  # chance[zero + s] is that of the sum s
    chance[zero] = 1.0
    for x in whole:
        held = chance[zero + low : zero + high + 1] / 2
        chance[zero + low : zero + high + 1] = held
        chance[zero + low + x : zero + high + x + 1] += held
        low, high = min(low, low + x), max(high, high + x)
    return min(1.0, float(chance[: zero + 1].sum()))
