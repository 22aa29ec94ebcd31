"""Configurations in the order of their speed: a dot and its interval each, drawn without scripts.

Places on the axis are percentages of its width, so that a template can lay them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, baseline_of, but, flags_of, gain, rated, speedup
from gpubench.analysis.tables import devices, table
from gpubench.report import formatting
from gpubench.report.charts.vega import LOG_FROM
from gpubench.report.sections import headline
from gpubench.report.sections.headline import Winner

MOST = 14
"""Rows of one chart, the best of each backend among them; the table holds all."""
ROOM = 96.0
"""Per cent of the width that the longest interval takes."""


class Row(Struct, frozen=True, kw_only=True):
    """One configuration."""

    key: str
    label: str
    value: formatting.Shown
    times: str
    """How many times as fast as the baseline: '3.3× [2.7, 4.1]', 'baseline', or ''."""
    at: float | None
    low: float | None
    high: float | None
    """Places on the axis, per cent; None: not on it."""
    state: str
    """clean, flagged, or why it has no rank."""
    flags: list[str]


class Ranks(Struct, frozen=True, kw_only=True):
    """A chart of one workload and measure."""

    title: str
    caption: str
    rows: list[Row]
    left_out: int


def build(won: Sequence[Winner], summaries: Sequence[Summary]) -> list[Ranks]:
    """One for each."""
    return [_ranks(w, f", {name}" if name else "", summaries)
            for w, name in zip(won, headline.differing(won), strict=True)]  # fmt: skip


def by_device(summaries: Sequence[Summary]) -> Ranks | None:
    """The best configuration of each device; None where all runs are of one."""
    named, limit, found = devices.bests(summaries)
    if len({*named.values()}) < 2 or not found:
        return None
    drawn = list(found.values())
    axis = _axis([s.throughput for s in drawn if placed(s, s.throughput)])
    labels = table.labels(drawn, ("run",))
    rows = [_row(s, f"{named[s.run]}: {label}" if label else named[s.run], s.throughput, drawn[0],
                 axis, latency=False) for s, label in zip(drawn, labels, strict=True)]  # fmt: skip
    keeps = f" of those that keep {limit.text}" if limit else ""
    caption = f"images/s of its best configuration{keeps}; further right is faster"
    caption += f"{'; log scale' if axis[2] else ''}. Bars: 95 % intervals."
    return Ranks(title="Each device", caption=caption, rows=rows, left_out=0)


def _ranks(won: Winner, name: str, summaries: Sequence[Summary]) -> Ranks:
    """What ``won`` is the best of, best first; without rank come last.

    Latency: at the winner's batch size. Images/s: each configuration at its best batch size.
    """
    latency = won.measure == "latency"
    rows, values = _rows(won, summaries)
    firsts = list({s.cell.backend: s for s in reversed(rows)}.values())  # of each backend
    rest = [s for s in rows if all(s is not f for f in firsts)][: max(0, MOST - len(firsts))]
    kept = {id(s) for s in (*firsts, *rest)}
    drawn = [s for s in rows if id(s) in kept]
    bases = baseline_of(summaries)
    axis = _axis([values[id(s)] for s in drawn if placed(s, values[id(s)])])
    names = table.labels(drawn)
    made = [_row(s, name, values[id(s)], bases.get(id(s)), axis, latency)
            for s, name in zip(drawn, names, strict=True)]  # fmt: skip
    title = f"Latency at batch {won.summary.cell.batch_size}" if latency else "Throughput"
    better = "p50 of one batch; further left is faster" if latency else "images/s; further right is"
    better += "" if latency else " faster"
    scale = "; log scale" if axis[2] else ""
    caption = f"{better}{scale}. Bars: 95 % intervals."
    return Ranks(title=f"{title}{name}", caption=caption, rows=made,
                 left_out=len(rows) - len(drawn))  # fmt: skip


def _rows(won: Winner, summaries: Sequence[Summary]) -> tuple[list[Summary], dict[int, Estimate]]:
    """(the winner, then the others by value; their values by id)."""
    latency = won.measure == "latency"
    rows = [
        s for s in summaries if headline.workload(s) == headline.workload(won.summary) and s.timed
    ]
    if latency:
        batch = won.summary.cell.batch_size
        rows = [s for s in rows if s.cell.scenario == "latency" and s.cell.batch_size == batch]
    else:
        rows = rated(rows)
    values = {id(s): s.p50 if latency else s.throughput for s in rows}
    sign = 1 if latency else -1
    rows.sort(key=lambda s: (s is not won.summary, not placed(s, values[id(s)]),
                             sign * (values[id(s)].value or 0)))  # fmt: skip
    if not latency:
        best: dict[object, Summary] = {}
        for s in rows:
            best.setdefault(but(s, "batch_size"), s)
        rows = list(best.values())
    return rows, values


class Machines(Struct, frozen=True, kw_only=True):
    """Configurations x machines: each value, and how many times as fast as the first machine."""

    title: str
    names: list[str]
    rows: list[tuple[str, list[tuple[formatting.Shown, formatting.Shown]]]]


def machines(
    won: Sequence[Winner], summaries: Sequence[Summary], names: dict[str, str]
) -> Machines | None:
    """Of the first winner's workload and measure; None with fewer than two machines.

    ``names``: run -> machine.
    """
    if not won or len(names) < 2:
        return None
    latency = won[0].measure == "latency"
    ranked = _rows(won[0], summaries)[0]
    hidden = ("run",) if latency else ("run", "batch")
    beside: dict[object, dict[str, Summary]] = {}
    for s in ranked:
        axes = dict(zip(table.AXES, table.axis_values(s), strict=True))
        same = tuple(v for a, v in axes.items() if a not in hidden)
        beside.setdefault(same, {})[s.run] = s
    alike = list(beside.values())[:MOST]
    firsts = [next(iter(runs.values())) for runs in alike]
    rows = []
    for runs, label in zip(alike, table.labels(firsts, hidden), strict=True):
        cells = []
        base = runs.get(next(iter(names)))
        for run in names:
            other = runs.get(run)
            if other is None:
                cells.append((formatting.Shown(formatting.NOTHING, "not measured"),
                              formatting.Shown("")))  # fmt: skip
                continue
            value = formatting.show(other.p50 if latency else other.throughput,
                                    "ns" if latency else "images/s")  # fmt: skip
            times = base is not None and base is not other
            ratio = (speedup if latency else gain)(base, other) if base and times else None
            cells.append((value, formatting.show(ratio, "x") if ratio else formatting.Shown("")))
        rows.append((label, cells))
    what = f"Latency at batch {won[0].summary.cell.batch_size}" if latency else "Images/s"
    return Machines(title=f"{what} on each machine", names=list(names.values()), rows=rows)


def placed(s: Summary, e: Estimate) -> bool:
    """May stand on an axis: ranked, and its interval says something."""
    return s.ranked and e.usable


def _axis(seen: Sequence[Estimate]) -> tuple[float, float, bool]:
    """(left end, right end, logarithmic)."""
    lows = [e.low if e.low is not None else e.value for e in seen]
    highs = [e.high if e.high is not None else e.value for e in seen]
    least = min((v for v in lows if v and v > 0), default=1.0)
    most = max((v for v in highs if v), default=1.0)
    log = most / least > LOG_FROM
    return (least / 1.2 if log else 0.0), most, log


def _row(
    s: Summary,
    name: str,
    e: Estimate,
    base: Summary | None,
    axis: tuple[float, float, bool],
    latency: bool,
) -> Row:
    left, right, log = axis

    def place(v: float | None) -> float | None:
        if v is None or not placed(s, e):
            return None
        share = (math.log(v / left) / math.log(right / left)) if log else v / right
        return round(ROOM * max(0.0, share), 2)

    times = ""
    if base is s:
        times = "baseline"
    elif base is not None and placed(s, e):
        times = formatting.show((speedup if latency else gain)(base, s), "x").main
    flags = flags_of(s)
    state = "flagged" if flags else "clean"
    if not s.ranked:
        state = "not ranked"
    elif not placed(s, e):
        state = "no usable interval"
    return Row(key=s.key, label=name, value=formatting.show(e, "ns" if latency else "images/s"),
               times=times, at=place(e.value), low=place(e.low), high=place(e.high),
               state=state, flags=flags)  # fmt: skip
