"""What one run can tell apart, in a sentence: in place of the flags that its rows share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.summary import FOLLOWS, LOAD, Summary, log_speedup
from gpubench.units import percent, significant

COARSE = 1.1
"""From this ratio on the sentence names what such a run cannot see."""
SMALL = "5 %"


class Resolution(Struct, frozen=True, kw_only=True):
    """Of the rows of one run."""

    ratio: float | None
    """Two rows that differ by this factor are told apart: the typical half-width of a ratio of two
    rows, on logs. None where no two rows have an interval."""
    shared: list[str]
    """Flags that are told here and not at each row: what had the cores, then what follows from it,
    the most frequent first; [] on a machine that was not busy."""


def resolution(summaries: Sequence[Summary]) -> Resolution:
    """Of the rows of one run."""
    ranked = [s for s in summaries if s.ranked]
    pairs = [(a, b) for a, b in pairwise(ranked) if a.cell.scenario == b.cell.scenario]
    bounds = [d.interval() for a, b in pairs if (d := log_speedup(a, b))]
    halves = [(high - low) / 2 for low, high in filter(None, bounds)]
    shared = Counter(f for s in summaries if s.busy for f in (*LOAD, *FOLLOWS) if f in s.flags)
    return Resolution(
        ratio=math.exp(min(stats.MOST_LOG, median(halves))) if halves else None,
        shared=sorted(shared, key=lambda f: (f in FOLLOWS, -shared[f])),
    )


def sentence(summaries: Sequence[Summary]) -> str:
    """'The machine was busy (CPU-WITHHELD, DRIFT): this run separates 1.5\u00d7, not 5 %.'

    'This run separates rows that differ by 3.1 % or more.' on a machine that was not.
    """
    found = resolution(summaries)
    if found.ratio is None:
        told = "no interval of this run says what it separates"
    elif found.ratio >= COARSE:
        told = f"this run separates {significant(found.ratio, 2)}\u00d7, not {SMALL}"
    else:
        told = f"this run separates rows that differ by {percent(found.ratio - 1)} or more"
    if found.shared:
        return f"The machine was busy ({', '.join(found.shared)}): {told}."
    return f"{told[0].upper()}{told[1:]}."
