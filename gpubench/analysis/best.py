"""Which configuration is the best, which cannot be told from it, and which of these is taken."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, log_gain, log_speedup
from gpubench.suite.types import Cell

ALIKE = 0.01
"""What costs no more than the best by more than this, as was seen, may be taken for being simpler.
(Of what was seen 2 % behind too much is 3 % behind, under bursts.)"""


class Best(Struct, frozen=True):
    """The configuration to take, by one measure."""

    summary: Summary
    value: Estimate
    ties: list[Summary]
    """All others that may be the best as well, the better ones first."""


def best(rows: Sequence[Summary], *, latency: bool) -> Best | None:
    """The best of ``rows`` by p50 (``latency``) or images/s; None where none may be ranked.

    ``ties``: a confidence set of the best (multiple comparisons with the best; Hsu, "Constrained
    simultaneous confidence intervals for multiple comparisons with the best", 1984). Each rival,
    whatever its backend, is told apart by a one-sided test; all tests together are wrong 5 times in
    100 at most (Bonferroni). Of the best and those ties within `ALIKE` of it the simplest is taken.
    Rows without a usable interval are left out where others have one.
    """
    sign = 1 if latency else -1
    valued = [(s, s.p50 if latency else s.throughput) for s in rows if s.ranked]
    found = [(s, e) for s, e in valued if e.usable] or [(s, e) for s, e in valued if e.value]
    found.sort(key=lambda f: sign * (f[1].value or 0.0))
    if not found:
        return None
    first, top = found[0]
    level = (1 - stats.LEVEL) / max(1, len(found) - 1)
    equal = [(s, e) for s, e in found[1:] if _chance(s, first, latency) >= level]
    near = (top.value or 0.0) * (1 + ALIKE) ** sign
    alike = [(s, e) for s, e in equal if sign * (e.value or 0.0) <= sign * near]
    taken, value = min([(first, top), *alike], key=lambda f: simplicity(f[0].cell))
    return Best(taken, value, [s for s, _ in [(first, top), *equal] if s is not taken])


def _chance(other: Summary, first: Summary, latency: bool) -> float:
    """p-value of '``first`` is no better than ``other``'."""
    found = (log_speedup if latency else log_gain)(other, first)
    return found.p_above(0.0) if found else 1.0


def simplicity(c: Cell) -> tuple[bool, bool, int, int, int]:
    """To sort by: what has the least that must be chosen, kept and explained comes first.

    fp32, float32 input, few options, few replicas, small batches, in this order.
    """
    return c.precision != "fp32", c.input != "float32", len(c.options), c.replicas, c.batch_size
