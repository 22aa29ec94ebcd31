"""The stages of pipelines as stacked bars, drawn without scripts: widths in per cent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from gpubench.analysis.pipeline import Breakdown
from gpubench.analysis.summary import Summary
from gpubench.analysis.tables import pipeline, table
from gpubench.report.charts.vega import COLOURS
from gpubench.units import duration, percent

MOST = 40
"""Bars of one chart; the table holds all."""
TITLES = {
    "latency": "Stages of one batch, one after another",
    "throughput": "Stages of one batch, and the time that they take overlapped",
}


class Bar(Struct, frozen=True, kw_only=True):
    """One cell."""

    key: str
    name: str
    value: str
    """Time of an image."""
    parts: list[tuple[str, str, float]]
    """(colour, 'decode 24.1 ms, 61 %', width) of each stage, in order."""
    overlapped: float | None
    """Place of the time that the stages take all at work at once."""


def page(summaries: Sequence[Summary]) -> dict[str, Any]:
    """``{steps: [(name, colour)], charts: [{title, left_out, bars}]}``; {} without a path."""
    found = pipeline.staged(summaries)
    if not found:
        return {}
    charts = []
    for scenario, title in TITLES.items():
        rows = [(s, b) for s, b in found if s.cell.scenario == scenario]
        rows.sort(key=lambda row: _per_image(row[0], row[1].overlapped_ns or row[1].serial_ns))
        if rows:
            charts.append({"title": title, "left_out": len(rows[MOST:]), "bars": _bars(rows[:MOST]),
                           "overlapped": scenario == "throughput"})  # fmt: skip
    colours = [_colour(k) for k in pipeline.NAMES]
    return {"steps": list(zip(pipeline.NAMES.values(), colours, strict=True)), "charts": charts}


def _colour(stage: str) -> str:
    return f"var(--s{list(pipeline.NAMES).index(stage) % COLOURS})"


def _per_image(s: Summary, ns: float) -> float:
    return ns / s.cell.batch_size


def _bars(rows: Sequence[tuple[Summary, Breakdown]]) -> list[Bar]:
    """All on one scale."""
    names = table.labels([s for s, _ in rows], hidden=("boundary",))
    most = max(_per_image(s, max(b.serial_ns, b.overlapped_ns or 0.0)) for s, b in rows) or 1.0
    made = []
    for (s, b), name in zip(rows, names, strict=True):
        parts = [
            (_colour(k), f"{pipeline.named(k)} {duration(part.value)}, {percent(part.share, 0)}",
             round(100 * _per_image(s, part.value) / most, 2))
            for k, part in pipeline.parts(b).items()
        ]  # fmt: skip
        together = None if b.overlapped_ns is None else _per_image(s, b.overlapped_ns)
        shown = together or _per_image(s, b.serial_ns)
        made.append(Bar(key=s.key, name=name, value=f"{duration(shown)} an image", parts=parts,
                        overlapped=together and round(100 * together / most, 2)))  # fmt: skip
    return made
