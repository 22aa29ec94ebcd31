"""Samples over time, with the GPU's clock and temperature: what each repeat really looked like.

The turns of a cell are put one after another, in the order measured, so the x axis is time spent
sampling. Long series are thinned to the smallest and the largest sample of each bucket, so spikes
survive. Coordinates are whole numbers of a step, which keeps the page small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpubench.analysis import stats
from gpubench.analysis.scaling.efficiency import place
from gpubench.analysis.summary import Summary, flags_of
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.report.charts import vega
from gpubench.report.charts.vega import COLOURS, layer, quantitative

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST = 160
"""Points of one replica's turn, at most."""
LEAST = 6
BUDGET = 120_000
"""Points of a whole page; with very many series each has fewer, down to LEAST."""
STEPS = 20_000
"""Whole numbers on an axis: finer than any screen."""

UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))
GAUGES = (
    ("sm_mhz", "SM clock (MHz)", "MHz"),
    ("temperature_c", "temperature (\u00b0C)", "\u00b0C"),
)


def build(summaries: Sequence[Summary]) -> dict[str, Any]:
    """``{spec, gauge, gauges, steps, cells: [...]}``; a cell: see `_cell`."""
    timed = [s for s in summaries if s.timed]
    turns = sum(len(visit) for s in timed for r in s.timed for visit in r.visits)
    most = max(LEAST, min(MOST, BUDGET // max(1, turns)))
    runs = {s.run for s in timed}
    cells = [_cell(s, most, len(runs) > 1) for s in timed]
    return {"spec": _spec(200), "gauge": _spec(80), "gauges": GAUGES, "steps": STEPS,
            "cells": cells}  # fmt: skip


def note(cell: dict[str, Any]) -> str:
    """What a cell's line in the list says of its series."""
    repeats, total, shown = cell["repeats"], cell["total"], cell["shown"]
    text = f"{stats.repeats(repeats)}, {total:,} samples"
    text += f", {shown:,} drawn" if shown < total else ""
    return ". ".join(part for part in (text, cell["cpu"]) if part)


def _cell(s: Summary, most: int, several: bool) -> dict[str, Any]:
    """One cell's series.

    ``turns``: where each starts and what it is; ``samples`` and ``gauges``: x, y (whole numbers
    of ``dx`` s and ``dy`` units) of each turn and replica, and of each gauge, turn and GPU.
    ``places``: where each replica ran, in a run of several machines.
    """
    turns = list(_turns(s))
    drawn = [[_series(x) for x in visit] for _, _, visit, _ in turns]
    spans = [span for visit in drawn for _, span in visit if len(span)]
    longest = max((float(span.max()) for span in spans), default=1.0)
    shortest = max(1.0, min((float(span.min()) for span in spans), default=1.0))
    factor, unit = next((f, u) for f, u in UNITS if longest >= f or f == 1.0)
    dx = sum(seconds for *_, seconds in turns) / STEPS
    dy = 10.0 ** (math.floor(math.log10(shortest / factor)) - 3)
    made: dict[str, Any] = {
        "label": f"{s.run}: {s.cell.label}" if several else s.cell.label, "flags": flags_of(s),
        "unit": unit, "dx": dx, "dy": dy, "log": longest > vega.LOG_FROM * shortest, "cpu": _cpu(s),
        "repeats": len(s.timed), "total": sum(map(len, spans)), "shown": 0, "turns": [],
        "samples": [], "gauges": {name: [] for name, *_ in GAUGES},
        "places": [place(x, True) for x in s.timed[0].replicas] if s.nodes else [],
    }  # fmt: skip
    begin = 0.0
    for number, (record, at, visit, seconds) in enumerate(turns):
        made["turns"].append([round(begin / dx), _name(record, at)])
        first = min(x.start_ns for x in visit) / 1e9
        for x, (starts, span) in zip(visit, drawn[number], strict=True):
            keep = thin(span, most)
            made["shown"] += len(keep)
            across, up = (begin - first + starts[keep]) / dx, span[keep] / factor / dy
            where = [values.round().astype(int).tolist() for values in (across, up)]
            made["samples"].append([number, x.replica, *where])
        for name, gpu, t, y in _gauges(record, at, first, seconds):
            made["gauges"][name].append([number, gpu, [round((begin + v) / dx) for v in t], y])
        begin += seconds
    return made


def _turns(s: Summary) -> Iterator[tuple[Record, int, list[Samples], float]]:
    """(record, number of the turn, its samples, seconds from the first start to the last end)."""
    for record in s.timed:
        for at, visit in enumerate(record.visits):
            span = max(x.end_ns for x in visit) - min(x.start_ns for x in visit)
            yield record, at, visit, max(1, span) / 1e9


def _name(record: Record, at: int) -> str:
    turn = f", turn {at + 1}" if record.again else ""
    flags = f" ({', '.join(record.flags)})" if record.flags else ""
    return f"repeat {record.repeat}{turn}{flags}"


def _series(x: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start of each sample, s after the common start, and ns of one iteration in it."""
    import numpy as np

    spans = np.asarray(x.durations_ns, np.float64)
    ends = spans.cumsum()
    # the loop takes a little time between samples
    scale = (x.end_ns - x.start_ns) / ends[-1] if len(ends) and ends[-1] else 0.0
    return (x.start_ns + (ends - spans) * scale) / 1e9, np.asarray(x.batch_ns, np.float64)


def thin(values: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Places to keep, in order: all, or the least and the greatest of each of ``most`` / 2 buckets.

    Min-max decimation, as M4 does for each pixel column (Jugel et al., "M4: a visualization-
    oriented time series data aggregation", VLDB 2014), without first and last.
    """
    import numpy as np

    if len(values) <= most:
        return np.arange(len(values))
    width = -(-len(values) // (most // 2))
    filling = np.full(-len(values) % width, values[-1])
    rows = np.concatenate([values, filling]).reshape(-1, width)
    starts = np.arange(len(rows)) * width
    kept = np.concatenate([starts + rows.argmin(axis=1), starts + rows.argmax(axis=1)])
    return np.unique(np.minimum(kept, len(values) - 1))


def _gauges(
    record: Record, at: int, first: float, seconds: float
) -> Iterator[tuple[str, int, list[float], list[float]]]:
    """(gauge, GPU, s since the turn's first sample, readings) from telemetry that has them."""
    begins = record.telemetry.get("turns_s", [])
    for gpu in record.telemetry.get("gpus", []) if at < len(begins) else []:
        series = gpu.get("series", {})
        times = [t - begins[at] - first for t in series.get("t_s", [])]
        inside = [n for n, t in enumerate(times) if 0 <= t <= seconds]
        for name, *_ in GAUGES:
            values = series.get(name, [])
            kept = [(times[n], values[n]) for n in inside if n < len(values)]
            points = [(t, v) for t, v in kept if v is not None]
            if points:
                yield name, gpu.get("index", 0), [t for t, _ in points], [v for _, v in points]


def _cpu(s: Summary) -> str:
    """'CPU clock 2,450 to 3,100 MHz', read at the begin and the end of every repeat; or ''."""
    read = [r.telemetry.get("cpu", {}).get("mhz") for r in s.timed]
    found = [mhz for mhz in read if mhz]
    if not found:
        return ""
    low, high = min(m["min"] for m in found), max(m["max"] for m in found)
    return f"CPU clock {low:,.0f} to {high:,.0f} MHz, read at the begin and the end of each repeat"


def _spec(height: int) -> dict[str, Any]:
    """Lines over time; the page fills in titles, the domain of x, and whether y is logarithmic."""
    x = quantitative("x", title="", axis={"format": ".6~g", "grid": False},
                     scale={"domain": [0, 1], "nice": False})  # fmt: skip
    ticks = {"format": ",.6~g", "tickCount": height // 40, "minExtent": 60, "maxExtent": 60}
    y = quantitative("y", title="", axis=ticks,
                     scale={"zero": False, "nice": False, "padding": 6})  # fmt: skip
    colour = vega.nominal("colour", range(COLOURS), [f"var(--s{n})" for n in range(COLOURS)])
    begin = quantitative("begin")
    rule = {"type": "rule", "color": "var(--edge)", "strokeDash": [3, 3]}
    name = {"type": "text", "align": "left", "baseline": "bottom", "dx": 2, "dy": -2,
            "fontSize": 11, "color": "var(--soft)",
            "limit": {"expr": "datum.room * width - 8"}}  # fmt: skip
    line = {"type": "line", "strokeWidth": 1, "point": {"size": 10, "opacity": 1}}
    look = {"x": x, "y": y, "color": colour, "detail": {"field": "part"}, "order": {"field": "x"},
            **vega.TIP}  # fmt: skip
    turns = {"name": "turns"}
    return vega.layered(height, "fit-x", [
        layer(rule, {"x": begin}, data=turns),
        layer(name, {"x": begin, "y": {"value": 0}, "text": {"field": "name"}}, data=turns),
        layer(line, look),
    ])  # fmt: skip
