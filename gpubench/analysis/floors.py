"""Is a floor of right answers kept? By what so many images can tell, not by the share as counted.

A share of 15 in 16 lies anywhere from 72 to 99 %: it keeps no floor of 90 %, and breaks none. The
three states are those of Wilson's score test at `stats.LEVEL` (Wilson 1927): *kept* where the
interval lies above the floor, *broken* where it lies below, else *undecided*.
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from gpubench import units
from gpubench.analysis import stats
from gpubench.records.parity import Parity
from gpubench.suite.types import Policy

MOST_NAMED = 100_000
"""Images that are named as what would tell, at most."""


class Floor(Struct, frozen=True):
    """One floor and the answers that were counted."""

    name: str
    """'min_accuracy'."""
    least: float
    hits: int
    n: int

    @property
    def state(self) -> Literal["kept", "undecided", "broken"]:
        if self.least >= 1:  # of all images: only those asked about can be meant
            return "kept" if self.hits == self.n else "broken"
        share = stats.wilson(self.hits, self.n)
        if (share.low or 0.0) >= self.least:
            return "kept"
        return "broken" if (share.high or 0.0) <= self.least else "undecided"

    @property
    def text(self) -> str:
        """'min_accuracy 0.9: 93.8 % [71.7, 98.9] of 16 images; undecided, about 246 would tell'."""
        share = stats.wilson(self.hits, self.n)
        low, high = (f"{100 * x:.1f}" for x in (share.low or 0.0, share.high or 0.0))
        counted = f"{units.percent(self.hits / self.n)} [{low}, {high}] of {self.n} images"
        said = f"{self.name} {self.least:g}: {counted}"
        return said if self.state != "undecided" else f"{said}; undecided, {self._enough()}"

    def _enough(self) -> str:
        off = self.hits / self.n - self.least
        need = _z() ** 2 * self.least * (1 - self.least) / off**2 if off else math.inf
        if need > MOST_NAMED:
            return "too close for any number of images"
        return f"about {math.ceil(need):,} would tell"


def of(parity: Parity | None) -> Floor | None:
    """The floor of accuracy that was asked for, by these answers; None without one."""
    if parity is None or parity.min_accuracy is None or not parity.labelled:
        return None
    return Floor("min_accuracy", parity.min_accuracy, parity.correct, parity.labelled)


def least_images(least: float) -> int:
    """Images without which nothing is shown to keep the floor, even if every answer is right."""
    return 1 if least >= 1 else math.ceil(_z() ** 2 * least / (1 - least))


def hopeless(policy: Policy, pool: float) -> str:
    """Why min_accuracy cannot be decided with so few images; '' where it may, or there is none.

    ``pool``: labelled pictures that there are, at most; infinite where they are not counted.
    """
    if policy.min_accuracy is None:
        return ""
    asked = max(policy.parity_images, policy.accuracy_images)
    n, need = min(asked, pool), least_images(policy.min_accuracy)
    if n >= need:
        return ""
    remedies = ["raise accuracy_images"] * (asked < need)
    remedies += ["give more images with labels"] * (pool < need)
    return (
        f"min_accuracy = {policy.min_accuracy:g} cannot be decided with {n:g} images, even if all "
        f"answers are right: that takes at least {need}; {' and '.join(remedies)}"
    )


def _z() -> float:
    return stats.normal_quantile((1 + stats.LEVEL) / 2)
