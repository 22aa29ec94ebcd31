"""What one run can tell apart, in a sentence: in place of the flags that its rows share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from gpubench.analysis.summary import FOLLOWS, LOAD, Summary
from gpubench.units import percent, significant

COARSE = 1.1
"""From this ratio on the sentence names what such a run cannot see."""
SMALL = "5 %"


class Resolution(Struct, frozen=True, kw_only=True):
    """Of the rows of one run."""

    ratio: float
    """Two rows that differ by this factor have intervals that do not touch: twice the typical
    half-width, on logs."""
    shared: list[str]
    """Flags that are told here and not at each row, the most frequent first; [] on a machine that
    was not busy."""


def resolution(summaries: Sequence[Summary]) -> Resolution | None:
    """Of one run; None where no row has an interval."""
    bounds = [(v.low, v.high) for s in summaries if s.ranked for v in [s.value]]
    halves = [math.log(high / low) / 2 for low, high in bounds if low and high]
    if not halves:
        return None
    shared = Counter(f for s in summaries if s.busy for f in (*LOAD, *FOLLOWS) if f in s.flags)
    ratio = math.exp(min(700.0, 2 * median(halves)))
    return Resolution(ratio=ratio, shared=[flag for flag, _ in shared.most_common()])


def sentence(summaries: Sequence[Summary]) -> str:
    """'The machine was busy (CPU-WITHHELD, DRIFT): this run separates 1.5x, not 5 %.'

    'This run separates 3.1 %.' on a machine that was not; '' without an interval.
    """
    found = resolution(summaries)
    if found is None:
        return ""
    many = f"{significant(found.ratio, 2)}\u00d7, not {SMALL}"
    told = many if found.ratio >= COARSE else percent(found.ratio - 1)
    if found.shared:
        return f"The machine was busy ({', '.join(found.shared)}): this run separates {told}."
    return f"This run separates {told}."
