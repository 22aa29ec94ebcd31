"""Why replicas do less than their number promises: the causes of a shortfall, with their evidence.

A shortfall is claimed only where the interval of the efficiency shows it, all pairs taken together
(Holm), and a cause only where the records show that. Each cause says what it alone would leave of
the ideal; its share of the shortfall follows on the logarithmic scale, where causes that multiply
add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.scaling import causes as found_by
from gpubench.analysis.scaling.causes import MATTERS, Pair
from gpubench.analysis.scaling.efficiency import chance, efficiency, scaling_pairs
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, but
from gpubench.units import percent

LEAST = 0.05
"""Of the shortfall: what explains less is left out."""
LEFT_OVER = 0.2
"""Of the shortfall; the estimates of the other causes err by as much."""


KINDS: dict[str, tuple[str, str]] = {
    "straggler": (
        "straggler",
        "look at that device's clocks, heat, link and neighbours, or leave it out",
    ),
    "dispatch": ("waiting for the slowest", "hand batches out to whoever is free: dynamic"),
    "scheduler": ("scheduler", "larger batches: each is one request to the scheduler"),
    "host-bound": ("host-bound", "larger batches, CUDA graphs, compilation; more host cores"),
    "copy-bound": ("copies", "fewer bytes per image, pinned memory, links of their own"),
    "small-batch": ("smaller batch", "a larger total batch, so that each replica has enough"),
    "cpu-quota": ("CPU quota", "raise the container's CPU limit, or use fewer replicas"),
    "oversubscribed": ("too few cores", "fewer replicas, or fewer cores for each"),
    "cpu-starved": ("starved of CPU", "leave cores free; pin what else runs elsewhere"),
    "cpu-steal": ("stolen CPU time", "a machine whose cores are not shared with others"),
    "other-processes": ("other processes", "stop them, or keep them off these cores"),
    "thermal": ("heat or power brake", "better cooling; lower clocks that it can keep"),
    "power-cap": ("power cap", "a higher power limit, or compare at clocks it can keep"),
    "clocks": ("lower clocks", "lock the clocks to what all devices can keep together"),
    "shared-device": ("shared device", "one replica per device, unless the batch is small"),
    "shared-memory": (
        "memory, cache or power",
        "smaller models or precisions; replicas on other sockets; fewer replicas",
    ),
    "unexplained": ("unexplained", "compare the samples over time, and measure again"),
}
"""Every cause, by key: what it is called, and what to do about it."""


class Cause(Struct, frozen=True, kw_only=True):
    """One cause of one shortfall."""

    key: str
    words: str
    """One sentence with its numbers."""
    evidence: dict[str, Any]
    """The numbers; times in ns, shares in 0..1, clocks in MHz, rates per s."""
    remedy: str
    share: float | None = None
    """How much of the shortfall it explains, 0..1; None where that cannot be said."""

    @property
    def name(self) -> str:
        """'straggler'."""
        return KINDS[self.key][0]

    @property
    def short(self) -> str:
        """'straggler 62 %'."""
        return self.name if self.share is None else f"{self.name} {percent(self.share, 0)}"


class Diagnosis(Struct, frozen=True, kw_only=True):
    """A cell with several replicas against its one-replica cell."""

    summary: Summary
    one: Summary
    kind: str
    """'weak' or 'strong'."""
    efficiency: Estimate
    why_not: str = ""
    """Why no shortfall is claimed; '' where one is."""
    causes: list[Cause] = []
    """The one that explains most first; empty where no shortfall is claimed."""
    not_recorded: list[str] = []
    """What could have told more."""

    @property
    def short(self) -> str:
        """'straggler 62 %, copies 38 %', or 'none shown'."""
        return ", ".join(cause.short for cause in self.causes) or "none shown"


def diagnose(rows: Sequence[Summary]) -> list[Diagnosis]:
    """Every scaling pair of ``rows``, in their order."""
    pairs = [(s, one, kind, efficiency(s, one)) for s, one, kind in scaling_pairs(rows)]
    chances = stats.holm([chance(s, one) for s, one, *_ in pairs])
    same_batch = {id(s): one for s, one, kind, _ in pairs if kind == "weak"}
    compute = {
        (but(s, "boundary"), kind): e for s, _, kind, e in pairs if s.cell.boundary == "compute"
    }
    made = []
    for (s, one, kind, e), p in zip(pairs, chances, strict=True):
        base, alone = same_batch.get(id(s), one), compute.get((but(s, "boundary"), kind))
        pair = Pair(many=s, one=one, base=base, efficiency=e, compute=alone)
        why = _not_shown(e, p, len(pairs))
        causes, lacks = ([], []) if why else (_causes(pair), found_by.not_recorded(pair))
        made.append(Diagnosis(summary=s, one=one, kind=kind, efficiency=e, why_not=why,
                              causes=causes, not_recorded=lacks))  # fmt: skip
    return made


def _not_shown(e: Estimate, p: float, pairs: int) -> str:
    """``p``: of 'it reaches the ideal', corrected for all ``pairs`` (Holm)."""
    if e.value is None or e.high is None:
        return e.why if e.span else f"no interval: {e.why}"
    if e.value >= 1 - MATTERS:
        return f"{percent(e.value)} is within {percent(MATTERS, 0)} of the ideal"
    if e.high >= 1:
        return "the interval reaches the ideal"
    shown = p < (1 - stats.LEVEL) / 2
    return "" if shown else f"one of {pairs} comparisons, by chance perhaps: p = {p:.2g} after Holm"


def _causes(p: Pair) -> list[Cause]:
    """Ranked, what is not explained last.

    Shares that together exceed the shortfall, because causes overlap, are scaled.
    """
    found = [f for finder in found_by.FINDERS for f in finder(p)]
    total = math.log(p.efficiency.value or 1e-9)
    known = {n: math.log(f.left) / total for n, f in enumerate(found) if f.left is not None}
    over = max(1.0, math.fsum(known.values()))
    shares: dict[int, float | None] = {n: share / over for n, share in known.items()}
    left_over = 1 - math.fsum(known.values())
    if left_over > LEFT_OVER and len(known) == len(found):
        found.append(found_by.rest(p, found))
        shares[len(found) - 1] = left_over
    made = [
        Cause(key=f.key, words=f.words, evidence=f.evidence, remedy=KINDS[f.key][1],
              share=shares.get(n))
        for n, f in enumerate(found)
        if (shares.get(n, 1.0) or 0.0) >= LEAST
    ]  # fmt: skip
    return sorted(made, key=lambda c: (c.key == "unexplained", c.share is None, -(c.share or 0)))
