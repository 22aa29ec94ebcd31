"""Why scaling falls short, in words: one line for each shortfall, and its causes with evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench.analysis.scaling.diagnosis import Cause, Diagnosis
from gpubench.report import formatting
from gpubench.units import percent

TITLE = "Why scaling falls short"
NOTE = (
    "Only shortfalls that the interval shows. The share says how much of the shortfall a cause "
    "explains, on the logarithmic scale; causes that overlap are scaled to the whole."
)
FOLD = 12
"""More of them start folded."""


def shown(found: Sequence[Diagnosis]) -> list[tuple[str, Diagnosis]]:
    """Those with a shortfall and their heads, the worst first.

    A head: 'openvino fp32 b8 x2 throughput (weak scaling): 78.1 % [76.0, 80.2] of the ideal'.
    """
    worst = sorted((d for d in found if not d.why_not), key=lambda d: d.efficiency.value or 0.0)
    several = len({d.summary.run for d in found}) > 1
    return [(f"{d.summary.run}: {_head(d)}" if several else _head(d), d) for d in worst]


def _head(d: Diagnosis) -> str:
    reached = formatting.full(d.efficiency, "fraction")
    flagged = formatting.flagged(d.summary, d.one, before=", ")
    return f"{d.summary.cell.label} ({d.kind} scaling): {reached} of the ideal{flagged}"


def lines(found: Sequence[Diagnosis]) -> list[str]:
    """Of each shortfall its head, its causes, and the first evidence of the first one."""
    return [f"{head}: {d.short}{_first(d)}" for head, d in shown(found)]


def _first(d: Diagnosis) -> str:
    return f"; {d.causes[0].words.partition(';')[0]}" if d.causes else ""


def sentence(cause: Cause) -> str:
    """Evidence and what to do: 'replica 1 .. below the others -> look at that device'."""
    return f"{cause.words} -> {cause.remedy}"


def lacks(d: Diagnosis) -> str:
    """'Not recorded: CPU clock.' or ''."""
    return f"Not recorded: {', '.join(d.not_recorded)}." if d.not_recorded else ""


def plain(found: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    """Every pair as JSON-able values, also those without a shortfall, with why."""
    return [
        {
            "run": d.summary.run, "cell": d.summary.key, "one": d.one.key, "scaling": d.kind,
            "efficiency": d.efficiency, "shown": not d.why_not, "why_not": d.why_not,
            "causes": d.causes, "not_recorded": d.not_recorded,
        }
        for d in found
    ]  # fmt: skip


def page(found: Sequence[Diagnosis]) -> dict[str, Any]:
    """What the page's section needs; {} where there is no shortfall."""
    items = [
        {
            "head": head, "lacks": lacks(d),
            "causes": [
                (c.name, "" if c.share is None else percent(c.share, 0), c) for c in d.causes
            ],
        }
        for head, d in shown(found)
    ]  # fmt: skip
    return {"title": TITLE, "note": NOTE, "fold": FOLD, "list": items} if items else {}
