"""The stages of pipelines as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench.analysis.pipeline import Breakdown
from gpubench.analysis.summary import Summary
from gpubench.analysis.tables import pipeline
from gpubench.report.charts.vega import COLOURS, TIP, layer, layered, nominal, quantitative
from gpubench.units import duration, percent

MOST = 40
"""Bars of one chart; the table holds all."""
BAR = 38
"""Pixels of height of a bar and its name."""
TITLES = {
    "latency": "Stages of one batch, one after another",
    "throughput": "Stages of one batch, and the time that they take overlapped",
}


def page(summaries: Sequence[Summary]) -> dict[str, Any]:
    """``{steps: [(name, colour)], charts: [{id, title, left_out, spec}]}``; {} without a path."""
    found = pipeline.staged(summaries)
    if not found:
        return {}
    colours = [f"var(--s{n % COLOURS})" for n in range(len(pipeline.NAMES))]
    charts = []
    for scenario, title in TITLES.items():
        rows = [(s, b) for s, b in found if s.cell.scenario == scenario]
        rows.sort(key=lambda row: _per_image(row[0], row[1].overlapped_ns or row[1].serial_ns))
        if rows:
            charts.append({
                "id": f"stages-{scenario}", "title": title, "left_out": len(rows[MOST:]),
                "spec": _spec(_points(rows[:MOST]), colours),
            })  # fmt: skip
    steps = list(zip(pipeline.NAMES.values(), colours, strict=True))
    return {"steps": steps, "charts": charts}


def _per_image(s: Summary, ns: float) -> float:
    """Milliseconds."""
    return ns / s.cell.batch_size / 1e6


def _points(rows: Sequence[tuple[Summary, Breakdown]]) -> list[dict[str, Any]]:
    several = len({s.run for s, _ in rows}) > 1
    many = len({(s.cell.model, s.cell.images, s.cell.device) for s, _ in rows}) > 1
    points: list[dict[str, Any]] = []
    for at, (s, b) in enumerate(rows):
        c = s.cell
        more = f" {c.model} {c.images} {c.device}" if many else ""
        label = c.label.replace(f" {c.scenario} pipeline", "", 1)
        name = f"{s.run}: {label}{more}" if several else f"{label}{more}"
        for n, (k, part) in enumerate(pipeline.parts(b).items()):
            tip = {"cell": name, "stage": pipeline.named(k), "share": percent(part.share),
                   "time per batch": duration(part.value)}  # fmt: skip
            points.append({"row": at, "name": name, "stage": n, "tip": tip,
                           "ms": _per_image(s, part.value)})  # fmt: skip
        if b.overlapped_ns is not None:
            tip = {"cell": name, "overlapped": f"{duration(b.overlapped_ns)} per batch"}
            points.append({"row": at, "name": name, "tip": tip,
                           "overlapped": _per_image(s, b.overlapped_ns)})  # fmt: skip
    return points


def _spec(points: list[dict[str, Any]], colours: list[str]) -> dict[str, Any]:
    """Rows are numbers, so that two cells never share a bar; their names are drawn on top."""
    y = {"field": "row", "type": "ordinal", "axis": None, "scale": {"paddingInner": 0.55,
         "paddingOuter": 0.4}}  # fmt: skip
    x = quantitative("ms", stack="zero", title="ms per image",
                     axis={"format": ",.6~g", "tickCount": 6})  # fmt: skip
    colour = nominal("stage", range(len(colours)), colours)
    bar = {"x": x, "color": colour, "order": {"field": "stage"}, **TIP}
    bars = layer({"type": "bar"}, bar, "isValid(datum.ms)")
    tick = {"type": "tick", "thickness": 3, "color": "var(--ink)", "size": 18}
    ticks = layer(tick, {"x": quantitative("overlapped"), **TIP}, "isValid(datum.overlapped)")
    names = {
        "transform": [{"aggregate": [], "groupby": ["row", "name"]}],
        "mark": {"type": "text", "align": "left", "baseline": "bottom", "dy": -9, "fontSize": 12,
                 "color": "var(--ink)", "limit": 900},
        "encoding": {"x": {"value": 0}, "text": {"field": "name"}},
    }  # fmt: skip
    height = BAR * len({p["row"] for p in points})
    return layered(height, "fit-x", [bars, ticks, names], {"values": points}, y=y)
