"""The charts of a comparison: every cell's effect (forest plot), and what lies behind a verdict.

As in `report.charts.vega` a specification holds no data. Effects are drawn as logarithms of
the cost, so that twice and half are equally far from nothing; the labels say per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpubench.analysis.compare.compare import View
from gpubench.analysis.compare.paired import Both
from gpubench.analysis.compare.verdicts import VERDICTS, Comparison
from gpubench.analysis.summary import Summary
from gpubench.report.charts import vega
from gpubench.report.charts.vega import TIP, Point, layer, nominal, quantitative
from gpubench.report.sections import compare
from gpubench.suite.types import Rule

LOOKS = {
    "REGRESSED": ("var(--bad)", "triangle-right", True),
    "MISSING": ("var(--bad)", "cross", False),
    "INCOMPARABLE": ("var(--warn)", "square", False),
    "INCONCLUSIVE": ("var(--warn)", "diamond", False),
    "IMPROVED": ("var(--good)", "triangle-left", True),
    "EQUIVALENT": ("var(--soft)", "circle", True),
}
"""Verdict -> colour, shape, filled: no two share shape and filling, so colour is not needed."""

PATHS = {
    "circle": "M7 2a5 5 0 1 0 .01 0z", "square": "M2.5 2.5h9v9h-9z", "diamond": "M7 1l5 6-5 6-5-6z",
    "triangle-left": "M2 7l9.5-5v10z", "triangle-right": "M12 7L2.5 2v10z",
    "cross": "M5 2h4v3h3v4H9v3H5V9H2V5h3z",
}  # fmt: skip
"""Vega's shapes in a box of 14 x 14."""

KINDS = {
    "pair": ("circle", False),
    "baseline": ("circle", False),
    "candidate": ("square", True),
}
"""What a point of a cell's chart is -> shape, filled."""

WIDE = 2.5
"""Intervals reach out of the picture beyond so many times the largest effect (or the margin)."""
STEP = 24
"""Pixels of one line."""
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ARROW = {"left": "M1,-1L-0.5,0L1,1", "right": "M-1,-1L0.5,0L-1,1"}


def forest(found: Sequence[Comparison], rule: Rule) -> dict[str, Any]:
    """``{spec, points, step}``: a line per cell whose speed has an effect, worst first."""
    found = [c for c in found if c.judged == "speed"]
    rows = [(c, logs) for c in compare.ordered(found) if (logs := compare.cost(c))]
    margin = math.log1p(rule.delta)
    limit = max([3 * margin, *(WIDE * abs(x) for _, (x, _, _) in rows if abs(x) > margin)])
    names = _names([c for c, _ in rows])
    points: list[Point] = []
    for (c, (x, low, high)), name in zip(rows, names, strict=True):
        ends = [None if v is None else min(limit, max(-limit, v)) for v in (low, high)]
        points.append({
            "row": name, "verdict": c.verdict, "x": x, "low": ends[0], "high": ends[1],
            "beyond": [side for side, end, v in zip(("left", "right"), ends, (low, high),
                                                     strict=True) if end != v],
            "tip": compare.texts([c], found)[0],
        })  # fmt: skip
    seen = [v for p in points for v in (p["x"], p["low"], p["high"]) if v is not None]
    reach = max([1.3 * margin, *(1.05 * abs(v) for v in seen)])
    spec = _forest_spec(margin, reach, len(points))
    return {"spec": spec, "points": points, "step": STEP}


def _names(rows: Sequence[Comparison]) -> list[str]:
    """Labels, no two alike: of equal ones, all but the first have the cell's key."""
    found: list[str] = []
    for c in rows:
        found.append(f"{c.label} ({c.key})" if c.label in found else c.label)
    return found


def _forest_spec(margin: float, reach: float, lines: int) -> dict[str, Any]:
    scale = {"domain": [-reach, reach], "nice": False}
    title = "effect: + is slower (logarithmic scale)"
    x = quantitative("x", title=title, scale=scale, axis=_share_axis(reach))
    colours, shapes, filled = zip(*LOOKS.values(), strict=True)
    paint = [c if f else "var(--paper)" for c, f in zip(colours, filled, strict=True)]
    place = {"x": x, "y": vega.rows(230), "color": nominal("verdict", LOOKS, colours)}
    ends = {"x": x | {"field": "low"}, "x2": {"field": "high"}}
    rule = {"type": "rule", "strokeWidth": 2}
    layers = [_band("x", margin), layer(rule, place | ends, "datum.low != null")]
    for side, end in (("left", "low"), ("right", "high")):
        arrow = {"type": "point", "shape": _ARROW[side], "size": 50, "filled": False}
        beyond = f"indexof(datum.beyond, '{side}') >= 0"
        layers.append(layer(arrow, place | {"x": x | {"field": end}}, beyond))
    look = {"shape": nominal("verdict", LOOKS, shapes), "fill": nominal("verdict", LOOKS, paint)}
    mark = {"type": "point", "size": 90, "strokeWidth": 1.8, "opacity": 1}
    layers.append(layer(mark, place | look | TIP))
    return vega.layered(STEP * lines, "fit-x", layers)


def _band(axis: str, margin: float) -> dict[str, Any]:
    """Behind everything: where changes do not matter, and the line of no change."""
    ends = {axis: {"datum": -margin, "type": "quantitative"}, f"{axis}2": {"datum": margin}}
    rect = {"mark": {"type": "rect", "color": "var(--band)"}, "encoding": ends}
    nothing = {axis: {"datum": 0, "type": "quantitative"}}
    zero = layer({"type": "rule", "color": "var(--guide)"}, nothing)
    return {"data": vega.NOWHERE, "layer": [rect, zero]}


def _share_axis(reach: float, overlap: str | bool = "greedy") -> dict[str, Any]:
    """Ticks at round per cents of an axis of logarithms."""
    step = next((s for s in _STEPS if math.expm1(reach) / s <= 4.5), 0.0)
    shares = [n * step for n in range(-4, 5)] if step else _doublings(reach)
    ticks = [math.log1p(s) for s in shares if s > -1 and abs(math.log1p(s)) <= reach]
    digits = 1 if step and step < 0.01 else 0
    text = f"datum.value ? format(100 * exp(datum.value) - 100, '+,.{digits}f') + ' %' : '0'"
    # without a count Vega leaves out every other tick of a small chart
    return {"values": ticks, "tickCount": len(ticks), "grid": False, "labelOverlap": overlap,
            "labelExpr": text}  # fmt: skip


def _doublings(reach: float) -> list[float]:
    most = math.floor(reach / math.log(2))
    every = max(1, math.ceil(most / 4))
    return [2.0**n - 1 for n in range(-most // every * every, most + 1, every)]


# ------------------------------------------------------------------------------ one cell


def behind(view: View) -> dict[str, Any]:
    """``{spec, cells: [{label, verdict, points, lines}]}`` of what is not unchanged, worst first.

    Points: d of every pair, in the order measured; of two stored runs every repeat against the
    mean of the baseline's. Lines: the effect with its interval over the points it comes from.
    """
    first, second = view.sides()
    pairs = {(m.baseline.key, m.candidate.key): m.pairs for m in view.arms.matches if m.pairs
             } if view.arms else {}  # fmt: skip
    cells = []
    for c in compare.split([c for c in view.rows if c.judged == "speed"])[0]:
        keys, logs = (c.baseline_key or c.key, c.key), compare.cost(c)
        b, s = first.get(keys[0]), second.get(keys[1])
        if b is None or s is None or logs is None:
            continue
        points = _pairs(pairs.get(keys, ())) if view.arms else _repeats(c, b, s)
        if not points:
            continue
        last = points[-1]["kind"]
        own = [p["x"] for p in points if p["kind"] == last][: c.pairs or None]
        line = {"x": min(own) - 0.4, "x2": max(own) + 0.4, "y": logs[0], "low": logs[1],
                "high": logs[2]}  # fmt: skip
        cells.append({"label": c.label, "verdict": c.verdict, "effect": compare.effect(c),
                      "why": compare.why(c), "points": points, "lines": [line],
                      "axis": _share_axis(_reach(points, view.rule), False)})  # fmt: skip
    spec = _behind_spec(math.log1p(view.rule.delta), view.arms is not None)
    return {"spec": spec, "cells": cells}


def _reach(points: Sequence[Point], rule: Rule) -> float:
    return 1.1 * max(math.log1p(rule.delta), *(abs(float(p["y"])) for p in points))


def _pairs(both: Sequence[Both]) -> list[Point]:
    points: list[Point] = []
    for each in both:
        r, pair = each.records[1], each.pair
        if pair is None:
            continue
        tip = {"pair": str(r.repeat + 1), "order": r.order or "unknown",
               "d": compare.percent(math.expm1(pair.d), signed=True),
               "flags": ", ".join(each.flags) or "none", "started": r.started}  # fmt: skip
        points.append({"x": r.repeat + 1, "y": pair.d, "kind": "pair", "tip": tip})
    return points


def _repeats(c: Comparison, base: Summary, candidate: Summary) -> list[Point]:
    """Repeat values against the baseline's mean; the candidate's come after the baseline's."""
    sign = 1 if c.metric.endswith("[ns]") else -1
    if not c.baseline:
        return []
    points: list[Point] = []
    for kind, side in (("baseline", base), ("candidate", candidate)):
        for repeat, value in side.values.items():
            y = sign * math.log(value / c.baseline)
            share = compare.percent(math.expm1(y), signed=True)
            tip = {"run": kind, "repeat": str(repeat), "against the baseline's mean": share}
            points.append({"x": len(points) + 1, "y": y, "kind": kind, "tip": tip})
    return points


def _behind_spec(margin: float, pairs: bool) -> dict[str, Any]:
    title = "pair, in the order measured" if pairs else "repeats: the baseline's, the candidate's"
    y = quantitative("y", title="change of the cost",
                     scale={"zero": True, "nice": False, "padding": 10})  # fmt: skip
    x = quantitative("x", title=title, axis={"format": "d", "tickMinStep": 1, "grid": False},
                     scale={"zero": False, "nice": False, "padding": 16})  # fmt: skip
    span = {"x": x, "x2": {"field": "x2"}}
    effect = {"data": {"name": "lines"}, "layer": [
        layer({"type": "rect", "color": "var(--mean)", "opacity": 0.18},
              span | {"y": y | {"field": "low"}, "y2": {"field": "high"}}, "datum.low != null"),
        layer({"type": "rule", "color": "var(--mean)", "strokeWidth": 2}, span | {"y": y}),
    ]}  # fmt: skip
    layers = [_band("y", margin), effect]
    for kind, (shape, filled) in KINDS.items():
        mark = {"type": "point", "shape": shape, "size": 55, "strokeWidth": 1.6, "filled": filled,
                "color": "var(--mean)", "opacity": 1}  # fmt: skip
        layers.append(layer(mark, {"x": x, "y": y, **TIP}, f"datum.kind == '{kind}'"))
    return vega.layered(200, "fit", layers)


def legend(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Verdicts that occur: name, cells, meaning, colour, path of the shape, filled."""
    return [
        {"name": name, "n": n, "meaning": VERDICTS[name], "colour": LOOKS[name][0],
         "path": PATHS[LOOKS[name][1]], "filled": LOOKS[name][2]}
        for name, n in compare.counts(found).items()
    ]  # fmt: skip
