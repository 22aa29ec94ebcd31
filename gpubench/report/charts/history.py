"""The chart of one cell over many runs: values with their intervals, levels, and changes."""

from __future__ import annotations

import json
from typing import Any

from gpubench.analysis.history.trend import Trend
from gpubench.report import formatting
from gpubench.report.charts.vega import TIP, layer, layered, nominal, quantitative

_SIDES = {"slower": ("var(--bad)", [1, 0]), "faster": ("var(--good)", [5, 3])}
"""A change -> colour and dashes of its line, so that colour is not needed."""
TICKS = 7
"""Runs that the axis names, besides those at which the level changed."""


def chart(t: Trend) -> dict[str, Any]:
    """A Vega-Lite specification with its data; runs are numbered from 1, and named by their dates
    and commits."""
    factor = 1e-6 if t.latency else 1.0
    points = []
    for index, p in enumerate(t.points, start=1):
        if p.value.value is None:
            continue
        low, high = (None if v is None else v * factor for v in (p.value.low, p.value.high))
        tip = {"run": p.run, "started": p.started, "commit": p.commit or "unknown",
               "value": formatting.full(p.value, t.unit),
               "flags": ", ".join(p.flags) or "none"}  # fmt: skip
        points.append({"x": index, "y": p.value.value * factor, "low": low, "high": high,
                       "state": "clean" if not p.flags else "flagged", "tip": tip})  # fmt: skip
    levels = [{"x": x.first + 0.6, "x2": x.last + 1.4, "y": x.value * factor} for x in t.levels]
    changes = [{"x": c.at + 0.5, "side": "slower" if c.slower else "faster"} for c in t.changes]
    spec = _spec("p50 latency (ms)" if t.latency else "images/s", t)
    return spec | {"datasets": {"points": points, "levels": levels, "changes": changes}}


def _axis(t: Trend) -> dict[str, Any]:
    """Names of runs: the date, and below it the commit."""
    last = len(t.points) - 1
    new = {c.at for c in t.changes}
    some = {round(last * n / (TICKS - 1)) for n in range(TICKS)}
    free = {n for n in some if all(abs(n - at) > last / TICKS / 1.5 for at in new)}
    named = {n + 1: [t.points[n].started[:10], t.points[n].commit[:7]] for n in sorted(new | free)}
    return {
        "values": list(named),
        "labelExpr": f"({json.dumps(named)})[datum.value]",
        "grid": False,
    }


def _spec(title: str, t: Trend) -> dict[str, Any]:
    x = quantitative("x", title="run, oldest first: date and commit", axis=_axis(t),
                     scale={"domain": [0.5, len(t.points) + 0.5], "nice": False})  # fmt: skip
    y = quantitative("y", title=title, axis={"format": ",.6~g", "tickCount": 5},
                     scale={"zero": False, "nice": False, "padding": 12})  # fmt: skip
    colours, dashes = (nominal("side", _SIDES, each) for each in zip(*_SIDES.values(), strict=True))
    layers = [
        layer({"type": "rule", "strokeWidth": 2}, {"x": x, "color": colours, "strokeDash": dashes},
              data={"name": "changes"}),
        layer({"type": "rule", "color": "var(--guide)", "strokeWidth": 2.5},
              {"x": x, "x2": {"field": "x2"}, "y": y}, data={"name": "levels"}),
        layer({"type": "rule", "color": "var(--mean)", "strokeWidth": 1.4},
              {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}, "datum.low != null",
              {"name": "points"}),
    ]  # fmt: skip
    for state, fill in (("clean", "var(--mean)"), ("flagged", "var(--paper)")):
        mark = {"type": "point", "shape": "circle", "size": 50, "strokeWidth": 1.6, "opacity": 1,
                "stroke": "var(--mean)", "fill": fill}  # fmt: skip
        layers.append({"data": {"name": "points"}, "mark": mark,
                       "transform": [{"filter": f"datum.state == '{state}'"}],
                       "encoding": {"x": x, "y": y, **TIP}})  # fmt: skip
    return layered(280, "fit", layers, {})
