"""What all charts share: the style of a Vega-Lite specification, its colours, shapes and axes.

A specification holds no data: the page gives it. Colours are CSS variables, so light, dark and
print need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

COLOURS = 8
"""Series colours defined in style.css as --s0 .. --s7 (after Okabe & Ito)."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 3])
LOG_FROM = 20.0
"""An axis whose values span more than this factor is logarithmic."""
LOG = ", log scale"
"""End of the title of such an axis."""

CROSS = "M-1,-1L1,1M1,-1L-1,1"
TIP = {"tooltip": {"field": "tip"}}
NOWHERE: dict[str, Any] = {"values": [{}]}
"""Data of a layer that is drawn once, whatever the points."""
Point = dict[str, Any]

GUIDE: dict[str, Any] = {"type": "line", "color": "var(--guide)", "strokeWidth": 1.5,
                         "strokeDash": [5, 4]}  # fmt: skip
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
"""The page's own, by name: Vega measures text outside the page, where nothing can be inherited."""
CONFIG: dict[str, Any] = {
    "background": "transparent", "font": FONT, "view": {"stroke": None},
    "axis": {"labelColor": "var(--soft)", "titleColor": "var(--ink)", "gridColor": "var(--line)",
             "domainColor": "var(--edge)", "tickColor": "var(--edge)", "labelFontSize": 12,
             "titleFontSize": 12, "titleFontWeight": 500, "titlePadding": 8,
             "labelOverlap": "greedy"},
}  # fmt: skip


def layered(
    height: Any,
    fit: str,
    layers: list[dict[str, Any]],
    data: dict[str, Any] = {"name": "points"},  # noqa: B006  # never changed
    **encoding: Any,
) -> dict[str, Any]:
    """A Vega-Lite chart of these layers, over the points that the page gives it, or ``data``."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container", "height": height, **({"data": data} if data else {}),
        "autosize": {"type": fit, "contains": "padding", "resize": True},
        **({"encoding": encoding} if encoding else {}), "layer": layers, "config": CONFIG,
    }  # fmt: skip


def layer(
    mark: dict[str, Any],
    encoding: dict[str, Any],
    only: str = "",
    data: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One layer; ``only``: of the points for which this holds, such as "datum.low != null".

    ``data``: others than the chart's own points.
    """
    some = {"transform": [{"filter": only}]} if only else {}
    return {**({"data": data} if data else {}), **some, "mark": mark, "encoding": encoding}


def quantitative(field: str, **how: Any) -> dict[str, Any]:
    """``field`` on an axis of numbers; ``how``: Vega-Lite's own words, such as title and scale."""
    return {"field": field, "type": "quantitative", **how}


def rows(width: int) -> dict[str, Any]:
    """Field ``row`` as a line for each name, in the points' order; names have ``width`` pixels."""
    axis = {"labelExpr": "split(datum.label, '\\n')", "labelLimit": width, "ticks": False,
            "domain": False, "grid": True, "labelPadding": 8, "labelOverlap": False}  # fmt: skip
    return {"field": "row", "type": "nominal", "sort": None, "title": None, "axis": axis}


def front() -> dict[str, Any]:
    """The grey line of a Pareto front, through the points that are on it."""
    mark = GUIDE | {"interpolate": "step-after"}
    return layer(mark, {"color": {"value": "var(--guide)"}, "order": {"field": "x"}}, "datum.front")


def nominal(field: str, domain: Iterable[Any], values: Iterable[Any]) -> dict[str, Any]:
    """``field`` as a colour, shape or dash: each of ``domain`` looks like its one of ``values``."""
    return {"field": field, "type": "nominal", "legend": None,
            "scale": {"domain": list(domain), "range": list(values)}}  # fmt: skip


def span(values: Sequence[float]) -> float:
    """Largest / smallest of those above 0."""
    seen = [v for v in values if v > 0]
    return max(seen) / min(seen) if seen else 1.0


def stops(values: Sequence[float], channel: str) -> dict[str, Any]:
    """Ticks 1, 2, 5, 10, .. of a logarithmic axis; closer where less than a decade is drawn."""
    seen = [math.log10(v) for v in values if v > 0]
    decades = range(math.floor(min(seen)), math.ceil(max(seen)) + 1)
    wide, close = (
        [m * 10.0**d for d in decades for m in steps]
        for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
    )
    drawn = f"domain('{channel}')"
    return {"values": {"expr": f"{drawn}[1] > 10 * {drawn}[0] ? {wide} : {close}"}}
