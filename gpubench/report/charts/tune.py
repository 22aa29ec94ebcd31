"""The chart of a search: its Pareto front.

As in `report.charts.vega` a specification holds no data; colour says the backend, shape what
became of a configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench.analysis.tune import result
from gpubench.analysis.tune.racing import Standing
from gpubench.analysis.tune.result import OUTCOMES, View, outcome
from gpubench.report import formatting
from gpubench.report.charts import vega
from gpubench.report.charts.vega import COLOURS, TIP, Point, layer
from gpubench.report.sections import headline
from gpubench.suite.goal import Metric

SHAPES = {
    "best": ("diamond", True, 190), "leader": ("diamond", False, 120),
    "alive": ("triangle-up", True, 80), "worse": ("circle", True, 36),
    "violates": ("square", False, 55), "failed": ("cross", False, 60),
}  # fmt: skip
"""What became of it -> shape, filled, size; no two alike, so colour is not needed."""


def build(found: View) -> dict[str, Any]:
    """``{charts: [{id, title, caption, spec, points}], backends, shapes}`` for the page."""
    backends = list(dict.fromkeys(s.cell.backend for s in found.standings if s.n))
    colours = {name: f"var(--s{n % COLOURS})" for n, name in enumerate(backends)}
    chart = _front(found, colours)
    seen = {p["state"] for p in chart["points"]}
    return {
        "charts": [chart] if chart["points"] else [],
        "backends": list(colours.items()),
        "shapes": [(SHAPES[name], OUTCOMES[name]) for name in SHAPES if name in seen],
    }  # fmt: skip


def _front(found: View, colours: dict[str, str]) -> dict[str, Any]:
    front, took_ns, points = result.front(found), result.times(found), list[Point]()
    metric = result.latency_of(found.goal)
    own = all(c.scenario == "latency" for c in found.file.header.planned)
    name = f"{metric.name} of a batch" if own else "median time of a batch"
    for s in found.standings:
        summary = found.summaries[s.cell.key]
        took, rate = took_ns.get(s.cell.key), summary.throughput.value
        state = outcome(found, s)
        if state not in SHAPES or not took or not rate:
            continue
        tip = {"configuration": headline.where(summary),
               "images/s": formatting.full(summary.throughput, "images/s"), name: metric.text(took),
               "outcome": _why(found, s)}  # fmt: skip
        points.append({"x": took / 1e6, "y": rate, "backend": s.cell.backend, "state": state,
                       "front": s.cell.key in front, "tip": tip})  # fmt: skip
    rules = _limits(found)
    text = ("Up and to the left is better. The grey line is the Pareto front: no other "
            "configuration whose answers match is better in both.")  # fmt: skip
    text += " Red lines: limits." if rules else ""
    x = _axis([p["x"] for p in points], f"{name} (ms)", "x")
    y = _axis([p["y"] for p in points], "images/s", "y")
    marks = {"layer": [vega.front(), *_marks(colours)], "encoding": {"x": x, "y": y}}
    spec = vega.layered(340, "fit", [*rules, marks])
    return {"id": "front", "title": "Throughput against latency", "caption": text, "spec": spec,
            "points": points}  # fmt: skip


def _why(found: View, s: Standing) -> str:
    """'worse: 12 % behind'."""
    return ": ".join(part for part in (OUTCOMES[outcome(found, s)], s.reason) if part)


def _limits(found: View) -> list[dict[str, Any]]:
    """Lines where a limit is one of the two axes."""
    axes = {Metric("throughput"): "y", result.latency_of(found.goal): "x"}
    mark = {"type": "rule", "color": "var(--bad)", "strokeDash": [2, 3], "strokeWidth": 1.5}
    return [
        layer(mark, {"color": {"value": "var(--bad)"}, axes[limit.metric]: {
            "datum": limit.bound * (1e-6 if limit.metric.kind == "latency" else 1.0),
            "type": "quantitative"}},
            data=vega.NOWHERE)
        for limit in found.goal.limits if limit.metric in axes
    ]  # fmt: skip


def _axis(values: Sequence[float], title: str, field: str) -> dict[str, Any]:
    """Logarithmic where values differ much."""
    wide = vega.span(values) > (4 if field == "x" else vega.LOG_FROM)
    scale: dict[str, Any] = {"nice": False, "padding": 14}
    scale |= {"type": "log"} if wide else {"zero": field == "y"}
    axis: dict[str, Any] = {"format": ",.6~g"} | ({"grid": False} if field == "x" else {})
    if wide:
        axis |= vega.stops(values, field)
        title += vega.LOG
    return vega.quantitative(field, title=title, scale=scale, axis=axis)


def _marks(colours: dict[str, str]) -> list[dict[str, Any]]:
    """One layer for each outcome, what matters most on top."""
    colour = vega.nominal("backend", colours, colours.values())
    made = []
    for state, (shape, filled, size) in reversed(SHAPES.items()):
        path = vega.CROSS if shape == "cross" else shape
        mark = {"type": "point", "shape": path, "size": size, "strokeWidth": 1.6,
                "opacity": 0.55 if state == "worse" else 1}  # fmt: skip
        fill = colour if filled else {"value": "var(--paper)"}
        edge = {"stroke": {"value": "var(--ink)"}} if state == "best" else {"color": colour}
        made.append(layer(mark, {**edge, "fill": fill, **TIP}, f"datum.state == '{state}'"))
    return made
