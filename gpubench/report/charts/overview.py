"""Charts: Vega-Lite specifications and the points they draw, chosen in the page by ``page.js``.

A specification holds no data: the page filters points by group, replicas and series, so that one
chart never mixes two machines, models, boundaries or replica counts. Colours are CSS variables,
so light, dark and print need no second drawing. Colour says backend, shape says the variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench.analysis.scaling.efficiency import efficiency, scaling_pairs
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, flags_of, rated
from gpubench.report import formatting
from gpubench.report.charts import vega
from gpubench.report.charts.vega import Point, layer
from gpubench.report.sections import headline
from gpubench.suite.types import title
from gpubench.units import count

LEAST = 3
"""Batch sizes (or numbers of replicas) that a chart over them needs."""
_BATCH = "batch size (images per replica)"


def build(summaries: Sequence[Summary], first: Summary | None = None) -> dict[str, Any]:
    """``{series, groups, start, charts: [{id, title, caption, by, spec, points}]}`` for the page.

    ``first``: the cell whose view the page opens on.
    """
    timed = [s for s in summaries if s.timed]
    series = dict.fromkeys((s.cell.backend, _variant(s)) for s in timed)
    backends = list(dict.fromkeys(backend for backend, _ in series))
    variants = list(dict.fromkeys(variant for _, variant in series))
    looks = [
        {
            "name": f"{backend} {variant}",
            "colour": f"var(--s{backends.index(backend) % vega.COLOURS})",
            "shape": vega.SHAPES[variants.index(variant) % len(vega.SHAPES)],
            "dash": vega.DASHES[variants.index(variant) % len(vega.DASHES)],
        }
        for backend, variant in series
    ]
    several = len({s.run for s in timed}) > 1
    groups = list(dict.fromkeys(_group(s, several) for s in timed))
    made = [_throughput(timed), _tradeoff(timed), _scaling(timed)]
    for chart in made:
        for point in chart["points"]:
            cell = point.pop("cell")
            point |= {"group": groups.index(_group(cell, several)), "size": cell.cell.batch_size}
        chart["points"] = _lines(chart)
    made = [c for c in made if c["points"]]
    for chart in made:
        chart["spec"] = _spec(chart, looks)
    start = {"group": groups.index(_group(first, several)), "replicas": first.cell.replicas} if \
        first else {}  # fmt: skip
    return {"series": looks, "groups": groups, "charts": made, "start": start}


def _lines(chart: dict[str, Any]) -> list[Point]:
    """Points of pictures over at least `LEAST` sizes: two are better read in the table."""
    size = "x" if chart["id"] == "scaling" else "size"
    sizes: dict[tuple[Any, ...], set[float]] = {}
    for p in chart["points"]:
        sizes.setdefault((p["group"], p[chart["by"]]), set()).add(p[size])
    return [p for p in chart["points"] if len(sizes[p["group"], p[chart["by"]]]) >= LEAST]


def _variant(s: Summary) -> str:
    c = s.cell
    return " ".join([c.precision, *formatting.unusual(c).values(), *formatting.options(c)])


def _series(s: Summary) -> str:
    return f"{s.cell.backend} {_variant(s)}"


def _group(s: Summary, several: bool) -> str:
    c = s.cell
    cores = f", {count(c.cores, 'core')} a replica" if c.cores else ""
    run = f", run {s.run}" if several else ""
    return f"{title(c.model)} ({c.weights}), {c.images}, {c.device}{cores}, {c.boundary}{run}"


def _point(s: Summary, x: float, y: Estimate, tip: dict[str, str]) -> Point:
    flags = flags_of(s)
    state = "unranked" if not s.ranked else "flagged" if flags else "clean"
    return {
        "cell": s, "series": _series(s), "replicas": s.cell.replicas, "state": state,
        "x": x, "y": y.value or 0.0, "low": y.low, "high": y.high,
        "tip": {"cell": headline.where(s), **tip, "flags": ", ".join(flags) or "none"},
    }  # fmt: skip


def _throughput(timed: list[Summary]) -> dict[str, Any]:
    points = [_point(s, s.cell.batch_size, s.throughput,
                     {"images/s": formatting.full(s.throughput, "images/s")})
              for s in rated(timed) if s.throughput.usable]  # fmt: skip
    return _chart("throughput", "Throughput against batch size", "All replicas together; higher "
                  "is better.", points, x=_BATCH, y="images/s", batch=True)  # fmt: skip


def _tradeoff(timed: list[Summary]) -> dict[str, Any]:
    """Each configuration's latency cell joined with the cell that has its throughput."""

    def identity(s: Summary) -> tuple[Any, ...]:
        return s.run, _group(s, True), _series(s), s.cell.batch_size, s.cell.replicas

    slow = {identity(s): s for s in timed if s.cell.scenario == "latency" and s.p50.usable}
    points = []
    for s in rated(timed):
        other = slow.get(identity(s))
        if other is None or not s.throughput.usable:
            continue
        tip = {"images/s": formatting.full(s.throughput, "images/s"),
               "p50 latency": formatting.full(other.p50, "ns")}  # fmt: skip
        ms = other.p50.scaled(1e-6)
        made = _point(s, ms.value or 0.0, s.throughput, tip)
        marks = flags_of(other, s)
        state = "flagged" if marks else "clean"
        made["state"] = state if s.ranked and other.ranked else "unranked"
        made["tip"]["flags"] = ", ".join(marks) or "none"
        made["left"], made["right"] = ms.low, ms.high
        points.append(made)
    pareto(points)
    return _chart("tradeoff", "Throughput against latency", "Up and to the left is better. The "
                  "grey line is the Pareto front of the ranked cells.", points,
                  x="p50 latency (ms)", y="images/s")  # fmt: skip


def pareto(points: Sequence[Point]) -> None:
    """Set ``front`` on ranked points that no other ranked point of the same picture beats."""
    pictures: dict[tuple[Any, ...], list[Point]] = {}
    for p in points:
        p["front"] = False
        if p["state"] != "unranked":
            pictures.setdefault((_group(p["cell"], True), p["replicas"]), []).append(p)
    for picture in pictures.values():
        best = 0.0
        for p in sorted(picture, key=lambda p: (p["x"], -p["y"])):
            if p["y"] > best:
                best, p["front"] = p["y"], True


def _scaling(timed: list[Summary]) -> dict[str, Any]:
    """Speed-up X_g / X_1 over devices; the one-replica anchor is 1 by definition.

    It belongs to the line of its rivals. Replicas that share the only device stand at 1 themselves.
    """
    points: list[Point] = []
    anchors: dict[tuple[Any, ...], Point] = {}
    shared_device = False
    for s, one, kind in scaling_pairs(timed):
        g, e = s.cell.devices, efficiency(s, one)
        if not e.usable:
            continue
        shared_device |= g < s.cell.replicas
        size = s.cell.batch_size if kind == "weak" else s.cell.total_batch
        what = f"weak: batch {size} per replica" if kind == "weak" else f"strong: {size} in total"
        shared = {"what": what, "rank": [kind == "strong", size]}
        gain = e.scaled(g)
        tip = {"speed-up": formatting.full(gain, "x"), "efficiency": formatting.full(e, "fraction")}
        points.append(_point(s, g, gain, tip) | shared)
        anchor = _point(one, 1, Estimate(value=1.0), {"speed-up": "1 by definition"})
        if s.cell.replicas_per_device == 1:
            line = {"series": _series(s)}
            anchors.setdefault((id(one), what, _series(s)), anchor | shared | line)
    points += anchors.values()
    return _chart("scaling", "Scaling against ideal", "Throughput relative to one replica; the "
                  "grey line is ideal.", points, x="devices" if shared_device else "replicas",
                  y="speed-up over one replica", by="what", batch=True)  # fmt: skip


def _chart(name: str, title: str, caption: str, points: list[Point], *, x: str, y: str,
           by: str = "replicas", batch: bool = False) -> dict[str, Any]:  # fmt: skip
    return {"id": name, "title": title, "caption": caption, "by": by, "points": points,
            "axes": {"x": x, "y": y, "stops": batch}}  # fmt: skip


def _spec(chart: dict[str, Any], looks: list[dict[str, Any]]) -> dict[str, Any]:
    """The specification of one chart; data arrive later under the name ``points``."""
    axes, points = chart.pop("axes"), chart["points"]
    x = vega.quantitative("x", title=axes["x"], scale={"nice": False, "padding": 14})
    if axes["stops"]:
        x["axis"] = {"values": sorted({p["x"] for p in points}), "format": "d", "grid": False}
    wide_x = chart["id"] != "scaling" and vega.span([p["x"] for p in points]) > 4
    log_x = {"type": "log", "base": 2 if axes["stops"] else 10}
    x["scale"] |= log_x if wide_x else {"zero": False}
    if not axes["stops"]:
        x["axis"] = {"format": ",.6~g"}
    if wide_x:
        x["title"] += vega.LOG
        x["axis"] |= {} if axes["stops"] else vega.stops([p["x"] for p in points], "x")
    y = vega.quantitative("y", title=axes["y"])
    log_y = vega.span([p["y"] for p in points]) > vega.LOG_FROM
    y["scale"] = {"type": "log", "nice": False, "padding": 14} if log_y else {"zero": True}
    y["axis"] = {"format": ",.6~g"}
    y["axis"] |= vega.stops([p["y"] for p in points], "y") if log_y else {"tickCount": 6}
    y["title"] += vega.LOG if log_y else ""
    names = [look["name"] for look in looks]
    colour, shape, dash = (
        vega.nominal("series", names, [look[key] for look in looks])
        for key in ("colour", "shape", "dash")
    )
    rule = {"type": "rule", "strokeWidth": 1.6}
    layers = {"scaling": [_ideal()], "tradeoff": [vega.front()]}.get(chart["id"], [])
    if axes["stops"]:
        line = {"type": "line", "strokeWidth": 1.8}
        layers.append(layer(line, {"strokeDash": dash}, "datum.state != 'unranked'"))
    up = {"y": {"field": "low"}, "y2": {"field": "high"}}
    layers.append(layer(rule, up, "datum.low != null"))
    if chart["id"] == "tradeoff":
        across = {"x": {"field": "left"}, "x2": {"field": "right"}}
        layers.append(layer(rule, across, "datum.left != null"))
    mark: dict[str, Any] = {"type": "point", "size": 70, "filled": False, "strokeWidth": 1.8}
    for state, fill in (("clean", colour), ("flagged", {"value": "var(--paper)"})):
        look = {"shape": shape, **vega.TIP, "fill": fill}
        layers.append(layer(mark, look, f"datum.state == '{state}'"))
    cross = {"type": "point", "size": 60, "shape": vega.CROSS, "strokeWidth": 2}
    layers.append(layer(cross, vega.TIP, "datum.state == 'unranked'"))
    return vega.layered(280, "fit", layers, x=x, y=y, color=colour)


def _ideal() -> dict[str, Any]:
    """The grey line behind: ideal scaling."""
    ends = {"aggregate": [{"op": "max", "field": "x", "as": "x"}], "groupby": []}
    both = [ends, {"calculate": "[1, datum.x]", "as": "x"}, {"flatten": ["x"]}]
    line = {"calculate": "datum.x", "as": "y"}
    return {"transform": [*both, line], **layer(vega.GUIDE, {"color": {"value": "var(--guide)"}})}
