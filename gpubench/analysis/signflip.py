"""The paired test of an interleaved A/B: random signs, and nothing assumed about the noise.

Where both arms are the same, the order of a pair's arms was drawn at random, so its difference is
as likely d as -d, whatever the machine did meanwhile (Fisher, "The Design of Experiments", 1935,
section 21). The p-value is the share of all 2^n sign patterns whose mean is at least the one seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT = 32
"""Up to so many pairs every sign pattern is counted: two halves, met in the middle."""
DRAWS = 99_999
"""Patterns drawn beyond that, seeded; the one seen counts as one more (Phipson & Smyth 2010)."""


def p_above(differences: Sequence[float], shift: float = 0.0) -> float:
    """One-sided p-value of 'the mean of ``differences`` is at most ``shift``'.

    Horowitz & Sahni's meeting in the middle counts 2^n patterns in 2^(n/2) log steps.
    """
    import numpy as np

    d = np.asarray(differences, np.float64) - shift
    if not len(d):
        return 1.0
    # Patterns that tie with the one seen count, however their sums were rounded.
    least = float(d.sum()) - 1e-9 * float(np.abs(d).sum())
    if len(d) <= EXACT:
        first, second = _sums(d[: len(d) // 2]), np.sort(_sums(d[len(d) // 2 :]))
        above = len(second) - np.searchsorted(second, least - first, side="left")
        return float(above.sum()) / 2.0 ** len(d)
    rng, hits, left = np.random.default_rng(len(d)), 1, DRAWS
    while left:
        signs = rng.integers(0, 2, (min(left, 10_000), len(d)), dtype=np.int8)
        hits += int(np.count_nonzero((2.0 * signs - 1.0) @ d >= least))
        left -= len(signs)
    return hits / (DRAWS + 1)


def _sums(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of ``d`` under all 2^n sign patterns."""
    import numpy as np

    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    return sums
