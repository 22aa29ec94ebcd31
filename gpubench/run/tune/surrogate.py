"""What a configuration is likely to be worth, before it is measured: from those that were.

Logarithms of costs are taken as a sum of effects: of each coordinate alone (a batch of 8 is worth
much the same to every backend), of pairs with the backend, and of the particular combination. That
is a Gaussian process whose kernel is the sum of their kernels (D. Duvenaud, H. Nickisch, C. E.
Rasmussen, "Additive Gaussian processes", 2011; C. E. Rasmussen, C. K. I. Williams, "Gaussian
processes for machine learning", 2006, section 2.2). Its mean is the roofline's bound, where there
is one. The standard deviations are set, not fitted: a search sees too few configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from gpubench.suite.types import OptionValue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Coordinates = Mapping[str, OptionValue]

LEVEL = 1.0
"""Standard deviations of logs. Of what all configurations have in common."""
EFFECT = {"backend": 0.4, "precision": 0.4}
"""Of a coordinate alone."""
OTHER = 0.2
"""Of any other: batch size, placement, an option."""
WITH_BACKEND = 0.15
"""Of a coordinate and the backend together ..."""
PRECISION_OF_BACKEND = 0.4
"""... where the coordinate is the precision: which kernels there are."""
COMBINATION = 0.08
"""Of one combination, which its neighbours share in part."""
ALONE = 0.03
"""Of one combination, which nothing else tells."""
ERROR = 0.05
"""Of a measurement."""
STEP = 0.8
"""Correlation of the effects of a number and of its double."""
SWITCH = 0.5
"""Of two combinations of one backend and precision that differ in an option."""


class Predictor:
    """Costs of all configurations from those of some of them."""

    def __init__(self, points: Mapping[str, Coordinates]) -> None:
        """``points``: by key, the coordinates of every configuration."""
        self._place = {key: place for place, key in enumerate(points)}
        names = dict.fromkeys(name for point in points.values() for name in point)
        self._alike = {n: _alike([point.get(n) for point in points.values()]) for n in names}
        self._rows: dict[str, Floats] = {}
        """By key of what was measured: nobody asks for the others, so a space may be large."""
        self._variance = self._row(next(iter(points)))[0]

    def predict(
        self, costs: Mapping[str, float], bounds: Mapping[str, float], keys: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Key -> (expected log cost, its standard deviation) for ``keys``.

        ``costs``: log costs that were measured; ``bounds``: least possible log costs, of all keys
        or of none.
        """
        import numpy as np

        seen = [key for key in costs if key in self._place]
        here, there = ([self._place[k] for k in names] for names in (seen, keys))
        prior = np.array([bounds.get(k, 0.0) for k in seen])
        found = np.array([costs[k] for k in seen]) - prior
        centre = found.mean() if seen else 0.0
        rows = np.reshape([self._row(key) for key in seen], (len(seen), len(self._place)))
        own, cross = rows[:, here] + ERROR**2 * np.eye(len(here)), rows[:, there].T
        weights = np.linalg.solve(own, np.column_stack([found - centre, cross.T]))
        mean = centre + cross @ weights[:, 0] + np.array([bounds.get(k, 0.0) for k in keys])
        left = self._variance - np.einsum("ij,ji->i", cross, weights[:, 1:])
        sd = np.sqrt(np.maximum(left, ALONE**2))
        return {k: (float(m), float(s)) for k, m, s in zip(keys, mean, sd, strict=True)}

    def _row(self, key: str) -> Floats:
        """Prior covariances of one log cost with those of all configurations, (n,)."""
        if key in self._rows:
            return self._rows[key]
        place = self._place[key]
        alike = {name: of(place) for name, of in self._alike.items()}
        backend = alike["backend"]
        whole = COMBINATION**2 * backend * alike["precision"]
        total = LEVEL**2 + 0.0 * backend
        for name, same in alike.items():
            total += EFFECT.get(name, OTHER) ** 2 * same
            if name == "precision":
                total += PRECISION_OF_BACKEND**2 * backend * same
            elif name != "backend":
                total += WITH_BACKEND**2 * backend * same
                whole = whole * (SWITCH + (1 - SWITCH) * same)
        total += whole
        total[place] += ALONE**2
        self._rows[key] = total
        return total


def _alike(values: Sequence[OptionValue | None]) -> Callable[[int], Floats]:
    """Correlation of a coordinate's effects: 1 where it is the same; numbers have neighbours.

    Of the value at one place with those at all.
    """
    import numpy as np

    if all(type(v) in (int, float) and v > 0 for v in values):  # type: ignore[operator]
        logs = np.array([math.log2(v) for v in values])  # type: ignore[arg-type]
        return lambda place: STEP ** np.abs(logs[place] - logs)
    codes = {repr(v): code for code, v in enumerate(values)}
    found = np.array([codes[repr(v)] for v in values])
    return lambda place: (found == found[place]).astype(np.float64)
