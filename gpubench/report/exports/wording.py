"""A comparison in one line, for formats that have a single message for it."""

from __future__ import annotations

from gpubench.analysis.compare import Comparison
from gpubench.analysis.stats import repeats
from gpubench.report import verdicts
from gpubench.units import significant


def sentence(c: Comparison) -> str:
    """'1.000 ms -> 1.052 ms, time +5.2 % [+4.1, +6.3] (95 %); 24 pairs, pair sd ...; reason'.

    The effect is that of `gpubench.report.verdicts`: of the time, so + is slower in any metric.
    """
    if not c.ratio:
        return verdicts.why(c)
    before, after = verdicts.values(c)
    parts = [f"{c.pairs} pair{'' if c.pairs == 1 else 's'}" if c.pairs else _repeats(c)]
    if c.pair_sd is not None:
        parts.append(f"pair sd {verdicts.percent(c.pair_sd, c.pair_sd)}")
    if c.smallest_detectable is not None:
        parts.append(f"would have found {verdicts.percent(c.smallest_detectable)}")
    if c.p is not None:
        parts.append(f"p = {significant(c.p, 2)}")
    level = " (95 %)" if c.low is not None and c.high is not None else ""
    effect = f"{before} -> {after}, time {verdicts.effect(c)}{level}"
    return "; ".join(filter(None, (effect, ", ".join(parts), verdicts.why(c))))


def _repeats(c: Comparison) -> str:
    """Of two stored runs: '3 repeats', or '3 and 5 repeats'."""
    return repeats(c.n[0]) if c.n[0] == c.n[1] else f"{c.n[0]} and {repeats(c.n[1])}"
