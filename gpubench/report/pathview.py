"""The whole path for people: a line for each pipeline cell, and its stages as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench.analysis import pathtables
from gpubench.analysis.cells import Summary, flags_of
from gpubench.analysis.layout import Column
from gpubench.analysis.stages import Breakdown
from gpubench.report import show
from gpubench.report.charts import COLOURS, CONFIG
from gpubench.units import duration, percent, significant

MOST = 40
"""Bars of one chart; the table holds all."""
BAR = 38
"""Pixels of height of a bar and its name."""
LEAST_SHARE = 0.03
"""Stages below it are not in the line of text."""
_RATE = Column(name="images/s", unit="images/s")
TITLES = {
    "latency": "Stages of one batch, one after another",
    "throughput": "Stages of one batch, and the time that they take overlapped",
}


def headline(summaries: Sequence[Summary]) -> list[str]:
    """'Of the whole path's latency a compute-only number leaves out 22 % to 67 %.'"""
    measured = {
        "latency": [s for s in summaries if s.cell.scenario == "latency" and s.medians],
        "throughput": [s for s in summaries if s.cell.scenario == "throughput" and s.rates],
    }
    lines = []
    for name, rows in measured.items():
        if found := _range(rows):
            what = "latency" if name == "latency" else "time for each image at full load"
            lines.append(f"Of the whole path's {what} a compute-only number leaves out {found}.")
    return lines


def _range(rows: Sequence[Summary]) -> str:
    """'22 % to 67 %' of what lies beside each other in ``rows``; '' where no interval shows it."""
    sides = [x for x in pathtables.beside(rows) if {"compute", "pipeline"} <= {*x}]
    shares = [e for x in sides if (e := pathtables.hidden(x)).value is not None]
    shown = [e.value for e in shares if e.value and e.low and e.low > 0]
    if not shown:
        return ""
    text = " to ".join(dict.fromkeys(percent(v, 0) for v in (min(shown), max(shown))))
    some = f" (shown in {len(shown)} of {len(shares)} comparisons)"
    return text + (some if len(shown) < len(shares) else "")


def lines(summaries: Sequence[Summary]) -> list[str]:
    """Of each pipeline cell: its stages, what they add up to, and what holds it back."""
    several = len({s.run for s in summaries}) > 1
    found = pathtables.staged(summaries)
    return [_line(f"{s.run}: " if several else "", s, b) for s, b in found]


def _line(run: str, s: Summary, b: Breakdown) -> str:
    parts = pathtables.parts(b)
    told = [f"{pathtables.named(k)} {duration(p.value)} ({percent(p.share, 0)})"
            for k, p in parts.items() if p.share >= LEAST_SHARE]  # fmt: skip
    text = f"{run}{s.cell.label}: {', '.join(told)}; sum {duration(b.serial_ns)}"
    if b.overlapped_ns is not None:
        text += f", overlapped {duration(b.overlapped_ns)}"
    if b.share_of_slowest is not None:
        text += f" ({percent(b.share_of_slowest, 0)} of the {b.group} alone)"
    free = significant(b.images_per_s_if_free)
    text += f"; {show.show(s.throughput, _RATE).main} images/s, {free} if the bottleneck, "
    text += f"{pathtables.named(b.bottleneck)}, were free"
    cores, flags = pathtables.divided(s), flags_of(s)
    text += f"; {cores}" if cores else ""
    return text + (f"; flagged {', '.join(flags)}." if flags else ".")


def plain(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Every breakdown as JSON-able values, with what the record says of the path."""
    return [
        {"run": s.run, "cell": s.key, "breakdown": b, "facts": pathtables.facts(s)}
        for s, b in pathtables.staged(summaries)
    ]


def page(summaries: Sequence[Summary]) -> dict[str, Any]:
    """``{steps: [(name, colour)], charts: [{id, title, left_out, spec}]}``; {} without a path."""
    found = pathtables.staged(summaries)
    if not found:
        return {}
    colours = [f"var(--s{n % COLOURS})" for n in range(len(pathtables.NAMES))]
    charts = []
    for scenario, title in TITLES.items():
        rows = [(s, b) for s, b in found if s.cell.scenario == scenario]
        rows.sort(key=lambda row: _per_image(row[0], row[1].overlapped_ns or row[1].serial_ns))
        if rows:
            charts.append({
                "id": f"stages-{scenario}", "title": title, "left_out": len(rows[MOST:]),
                "spec": _spec(_points(rows[:MOST]), colours),
            })  # fmt: skip
    steps = list(zip(pathtables.NAMES.values(), colours, strict=True))
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
        for n, (k, part) in enumerate(pathtables.parts(b).items()):
            tip = {"cell": name, "stage": pathtables.named(k), "share": percent(part.share),
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
    x = {"field": "ms", "type": "quantitative", "stack": "zero", "title": "ms per image",
         "axis": {"format": ",.6~g", "tickCount": 6}}  # fmt: skip
    colour = {"field": "stage", "type": "nominal", "legend": None,
              "scale": {"domain": list(range(len(colours))), "range": colours}}  # fmt: skip
    tip = {"tooltip": {"field": "tip"}}
    bars = {
        "transform": [{"filter": "isValid(datum.ms)"}], "mark": {"type": "bar"},
        "encoding": {"x": x, "color": colour, "order": {"field": "stage"}, **tip},
    }  # fmt: skip
    ticks = {
        "transform": [{"filter": "isValid(datum.overlapped)"}],
        "mark": {"type": "tick", "thickness": 3, "color": "var(--ink)", "size": 18},
        "encoding": {"x": {"field": "overlapped", "type": "quantitative"}, **tip},
    }  # fmt: skip
    names = {
        "transform": [{"aggregate": [], "groupby": ["row", "name"]}],
        "mark": {"type": "text", "align": "left", "baseline": "bottom", "dy": -9, "fontSize": 12,
                 "color": "var(--ink)", "limit": 900},
        "encoding": {"x": {"value": 0}, "text": {"field": "name"}},
    }  # fmt: skip
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container", "height": BAR * len({p["row"] for p in points}),
        "data": {"values": points},
        "autosize": {"type": "fit-x", "contains": "padding", "resize": True},
        "encoding": {"y": y}, "layer": [bars, ticks, names], "config": CONFIG,
    }  # fmt: skip
