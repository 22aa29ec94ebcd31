"""The whole pipeline for people: a line for each pipeline cell, and its stages as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench.analysis.pipeline import Breakdown
from gpubench.analysis.summary import Summary
from gpubench.analysis.tables import pipeline
from gpubench.report import formatting
from gpubench.units import duration, percent, significant

LEAST_SHARE = 0.03
"""Stages below it are not in the line of text."""


def headline(summaries: Sequence[Summary]) -> list[str]:
    """'Of the whole pipeline's latency a compute-only number leaves out 22 % to 67 %.'"""
    measured = {
        "latency": [s for s in summaries if s.cell.scenario == "latency" and s.medians],
        "throughput": [s for s in summaries if s.cell.scenario == "throughput" and s.rates],
    }
    lines = []
    for name, rows in measured.items():
        if found := _range(rows):
            what = "latency" if name == "latency" else "time for each image at full load"
            lines.append(
                f"Of the whole pipeline's {what} a compute-only number leaves out {found}."
            )
    return lines


def _range(rows: Sequence[Summary]) -> str:
    """'22 % to 67 %' of what lies beside each other in ``rows``; '' where no interval shows it."""
    sides = [x for x in pipeline.beside(rows) if {"compute", "pipeline"} <= {*x}]
    shares = [e for x in sides if (e := pipeline.hidden(x)).value is not None]
    shown = [e.value for e in shares if e.value and e.low and e.low > 0]
    if not shown:
        return ""
    text = " to ".join(dict.fromkeys(percent(v, 0) for v in (min(shown), max(shown))))
    some = f" (shown in {len(shown)} of {len(shares)} comparisons)"
    return text + (some if len(shown) < len(shares) else "")


def lines(summaries: Sequence[Summary]) -> list[str]:
    """Of each pipeline cell: its stages, what they add up to, and what holds it back."""
    several = len({s.run for s in summaries}) > 1
    found = pipeline.staged(summaries)
    return [_line(f"{s.run}: " if several else "", s, b) for s, b in found]


def _line(run: str, s: Summary, b: Breakdown) -> str:
    parts = pipeline.parts(b)
    told = [f"{pipeline.named(k)} {duration(p.value)} ({percent(p.share, 0)})"
            for k, p in parts.items() if p.share >= LEAST_SHARE]  # fmt: skip
    text = f"{run}{s.cell.label}: {', '.join(told)}; sum {duration(b.serial_ns)}"
    if b.overlapped_ns is not None:
        text += f", overlapped {duration(b.overlapped_ns)}"
    if b.share_of_slowest is not None:
        text += f" ({percent(b.share_of_slowest, 0)} of the {b.group} alone)"
    free = significant(b.images_per_s_if_free)
    text += f"; {formatting.show(s.throughput, 'images/s').main} images/s, {free} if the "
    text += f"bottleneck, {pipeline.named(b.bottleneck)}, were free"
    cores = pipeline.divided(s)
    return f"{text}{cores and f'; {cores}'}{formatting.flagged(s)}."


def plain(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Every breakdown as JSON-able values, with what the record says of it."""
    return [
        {"run": s.run, "cell": s.key, "breakdown": b, "facts": pipeline.told(s)}
        for s, b in pipeline.staged(summaries)
    ]
