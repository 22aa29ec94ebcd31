"""A history: every cell over many runs, with the runs at which its level changed, worst first.

An effect is the change of the cost (time for a batch or an image), as in a comparison: above 0 is
slower in every row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpubench import escape
from gpubench.analysis.history.changepoints import SHORTEST
from gpubench.analysis.history.trend import Change, Point, Trend
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tables.table import Column, Table
from gpubench.errors import InputError
from gpubench.report import formatting
from gpubench.report.sections.compare import log_cost, percent, share
from gpubench.suite.types import Rule
from gpubench.units import count

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1
"""Version of the JSON layout; a change that breaks readers raises it."""
OPEN, CHANGED = 12, 40
"""Of so many cells (with a change: so many) the charts are drawn at once, of others on demand."""

MOST = 3
"""Of the cells that drift, or have two states, so many are named in the headline."""
LATEST = 40
"""Runs of each cell in its course."""
BARS = "▁▂▃▄▅▆▇█"
LEAST_SPAN = 0.1
"""Of the costs (logs) that fill the height of a course: noise must not look like a change."""

_EFFECT = Column("effect", "", "lower", "change of the time for a batch or an image; + is slower")


def render(
    trends: Sequence[Trend], form: str, *, rule: Rule | None = None, notes: Sequence[str] = ()
) -> str:
    """The whole history in one of `FORMATS`.

    ``rule``: the one that `analysis.history.trend.trends` was given. ``notes``: what was left
    out, as `find` says. Raises InputError for another format and where there is no run.
    """
    if form not in _FORMATS:
        raise InputError(f"unknown history format {form!r}; choose one of {', '.join(FORMATS)}")
    if not trends:
        raise InputError("no history: no run has measured a cell")
    return _FORMATS[form](trends, rule or Rule(), notes)


# ------------------------------------------------------------------------------ words and rows


def headline(trends: Sequence[Trend], rule: Rule) -> list[str]:
    """What a reader should take away."""
    runs = len({p.run for t in trends for p in t.points})
    many = f"{count(len(trends), 'cell')} over {count(runs, 'run')}"
    changed = [len(t.changes) for t in trends if t.changes]
    seen = [t.detectable for t in trends if t.detectable is not None]
    lines = [f"No change is shown in {many}."]
    if changed:
        lines = [f"{count(sum(changed), 'change')} in {len(changed)} of {many}."]
    if seen:
        lines.append(f"Lasting changes of {percent(min(seen))} or more would be seen "
                     f"({percent(max(seen))} in the noisiest cell).")  # fmt: skip
    moved = [f"{name}: {'; '.join(told)}." for name, t in zip(names(trends), trends, strict=True)
             if (told := gradual(t))]  # fmt: skip
    lines += moved[:MOST]
    if moved[MOST:]:
        others = count(len(moved) - MOST, "more cell")
        lines.append(f"{others} with a drift, or with two states.")
    worst = trends[0]
    if worst.behind > rule.delta:
        said = next((f"; {_said(worst, c)}" for c in reversed(worst.changes) if c.slower), "")
        lines.append(f"Furthest behind its best level, by {percent(worst.behind)}: "
                     f"{names(trends)[0]}{said}.")  # fmt: skip
    off = [(name, *t.latest) for name, t in zip(names(trends), trends, strict=True) if t.latest]
    if off:
        name, runs_off, least = max(off, key=lambda o: (o[2], -o[1]))
        more = f" (and {len(off) - 1} more)" if off[1:] else ""
        which = "run" if runs_off == 1 else f"{runs_off} runs"
        way = "slower" if least > 0 else "faster"
        lines.append(f"The latest {which} of {name}{more}: {way} by {percent(abs(least))}; only "
                     f"{SHORTEST} runs make a change.")  # fmt: skip
    runs_needed = 2 * SHORTEST
    short = sum(sum(p.used for p in t.points) < runs_needed for t in trends)
    if short:
        lines.append(f"Too few runs to look for changes in {short} of {len(trends)} cells: "
                     f"{runs_needed} are needed, {SHORTEST} on either side.")  # fmt: skip
    return lines


def gradual(t: Trend) -> list[str]:
    """What it did besides changes: 'drifts by +5.0 % [+4.7, +5.3] over 40 runs, up to run-70'."""
    said = [
        f"drifts by {_effect(t, d.ratio)} over {count(d.last - d.first, 'run')}, "
        f"up to {t.points[d.last].run}"
        for d in t.drifts
    ]
    if two := t.states:
        levels = " and ".join(formatting.full(v, t.unit)
                              for v in (two.fast, two.slow))  # fmt: skip
        said.append(f"goes to and fro between {levels}, {count(two.switches, 'time')}")
    return said


def names(trends: Sequence[Trend]) -> list[str]:
    """Labels; with the workload and the machine's fingerprint where several occur."""
    several = len({t.workload for t in trends}) > 1
    machines = len({t.fingerprint for t in trends}) > 1
    found = []
    for t in trends:
        extra = [t.workload] * several + [f"machine {t.fingerprint[:8]}"] * machines
        found.append(" | ".join([t.label, *extra]))
    alike = Counter(found)
    return [n if alike[n] == 1 else f"{n} | {t.key}" for n, t in zip(found, trends, strict=True)]


def course(t: Trend) -> str:
    """The cost of its last runs as bars, higher is slower: '▂▂▁▂|▇▇▇'; '|': the level changed."""
    cost = {i: math.log(p.value.value) * (1 if t.latency else -1)
            for i, p in enumerate(t.points) if p.value.value}  # fmt: skip
    last = range(len(t.points))[-LATEST:]
    known = [cost[i] for i in last if i in cost]
    if not known:
        return ""
    low, span = min(known), max(LEAST_SPAN, max(known) - min(known))
    bars = [BARS[round((len(BARS) - 1) * (cost[i] - low) / span)] if i in cost else " "
            for i in last]  # fmt: skip
    at = {c.at for c in t.changes}
    return "".join("|" * (i in at) + bar for i, bar in zip(last, bars, strict=True))


def cells(trends: Sequence[Trend]) -> Table:
    """A row per cell, worst first: what became of it at one glance."""
    rows = [
        [name, len(t.points), course(t), formatting.full(t.points[-1].value, t.unit),
         _against(t, t.points[-1]),
         formatting.NOTHING if t.detectable is None else percent(t.detectable),
         list(dict.fromkeys(flag for p in t.points[-LATEST:] for flag in p.flags))]
        for name, t in zip(names(trends), trends, strict=True)
    ]  # fmt: skip
    columns = (Column("cell"), Column("runs", "count"), Column("course"), Column("latest"),
               Column("against best"), Column("detects"), Column("flags", "flags"))  # fmt: skip
    note = (f"course: the cost of the last {LATEST} runs, higher is slower, | where the level "
            "changed; detects: the lasting change that would be seen. Every run: -f html, md or "
            "json.")  # fmt: skip
    return Table("Cells", columns, rows, [note])


def tables(trends: Sequence[Trend], rule: Rule) -> list[Table]:
    """Changes (where there are any) and runs: a row per run and cell, worst cell first."""
    pairs = list(zip(names(trends), trends, strict=True))
    changes = [
        [_side(c), name, _effect(t, c.ratio), formatting.full(c.before, t.unit),
         formatting.full(c.after, t.unit), _when(p), p.run, _commit(p),
         " and ".join(t.points[i].run for i in c.between), f"{c.p:.2g}"]
        for name, t in pairs for c in t.changes for p in [t.points[c.at]]
    ]  # fmt: skip
    made = Table(
        "Changes",
        (Column("what"), Column("cell"), _EFFECT, Column("before"), Column("after"),
         Column("since", help="start of the first run at the new level"), Column("run"),
         Column("commit"), Column("between", help="runs that it came between, with 95 %"),
         Column("p", help="corrected for every place and cell looked at")),
        changes,
        [f"A change is larger than {100 * rule.delta:g} % and lasts for {SHORTEST} runs or more; "
         f"the chance of any false one in this list is meant to be {100 * rule.alpha:g} %. "
         "The run named is the likeliest one."],
    )  # fmt: skip
    rows = [
        [name, _when(p), p.run, _commit(p), formatting.full(p.value, t.unit),
         _against(t, p), marks.get(i, ""), p.flags]
        for name, t in pairs
        for marks in [{c.at: _side(c) for c in t.changes}]
        for i, p in enumerate(t.points)
    ]  # fmt: skip
    runs = Table(
        "Runs",
        (*map(Column, ("cell", "started", "run", "commit")),
         Column("value", help="p50 of a batch, or images/s"),
         Column("against best", "", "lower",
                "cost against that of the cell's best level; + is slower"),
         Column("change", help="the level changed with this run"), Column("flags", "flags")),
        rows,
        [],
    )  # fmt: skip
    return [table for table in (made, runs) if table.rows]


def _side(c: Change) -> str:
    return "slower" if c.slower else "faster"


def _effect(t: Trend, ratio: Estimate) -> str:
    """Change of the cost: '+5.3 % [+4.1, +6.6]'."""
    logs = log_cost(ratio.value or 1.0, ratio.low, ratio.high, t.latency)
    return formatting.full(share(*logs), "amount")


def _against(t: Trend, p: Point) -> str:
    """Cost of one run against that of the cell's best level: '+5.3 %'."""
    levels = [level.value for level in t.levels]
    if not p.value.value or not levels:
        return ""
    ratio = p.value.value / min(levels) if t.latency else max(levels) / p.value.value
    return percent(ratio - 1, signed=True)


def _when(p: Point) -> str:
    return p.started.replace("T", " ")[:16]


def _commit(p: Point) -> str:
    return p.commit[:10]


def _said(t: Trend, c: Change) -> str:
    """'+5.3 % [+4.1, +6.6] since 2026-01-05 12:00 (run 1f00, commit abc1234567)'."""
    p = t.points[c.at]
    commit = f", commit {_commit(p)}" if p.commit else ""
    return f"{_effect(t, c.ratio)} since {_when(p)} (run {p.run}{commit})"


# ------------------------------------------------------------------------------ formats


def parts(trends: Sequence[Trend], rule: Rule, notes: Sequence[str] = ()) -> list[RenderableType]:
    """What a terminal shows, as of `render`."""
    from gpubench.report import terminal

    changes = [table for table in tables(trends, rule) if table.title == "Changes"]
    found: list[RenderableType] = [terminal.text(line) for line in headline(trends, rule)]
    for table in [*changes, cells(trends)]:
        found += [terminal.text(""), terminal.grid(table)]
    return found + [terminal.text(f"Note: {note}") for note in notes]


def _text(trends: Sequence[Trend], rule: Rule, notes: Sequence[str]) -> str:
    from gpubench.report import terminal

    return terminal.printed(parts(trends, rule, notes))


def _markdown(trends: Sequence[Trend], rule: Rule, notes: Sequence[str]) -> str:
    from gpubench.report.markdown import escape, listed, section

    lines = ["# gpubench: history", "", *listed(headline(trends, rule)), ""]
    for table in tables(trends, rule):
        lines += [*section(table), ""]
    return "\n".join([*lines, *(f"> **Note:** {escape(note)}" for note in notes)]).rstrip() + "\n"


def _json(trends: Sequence[Trend], rule: Rule, notes: Sequence[str]) -> str:
    """``{format, headline, rule, notes, trends}``; values in ns or images/s, ``behind`` a share."""
    told = {"delta": rule.delta, "alpha": rule.alpha}
    return escape.document({"format": FORMAT, "headline": headline(trends, rule), "rule": told,
                            "notes": notes, "trends": trends})  # fmt: skip


def _html(trends: Sequence[Trend], rule: Rule, notes: Sequence[str]) -> str:
    from gpubench.report.charts import history
    from gpubench.report.html import templating

    cells = [
        {"name": name, "index": i, "open": i < (CHANGED if t.changes else OPEN),
         "runs": count(len(t.points), "run"),
         "notes": [*(_said(t, c) for c in t.changes), *gradual(t)]}
        for i, (name, t) in enumerate(zip(names(trends), trends, strict=True))
    ]  # fmt: skip
    return templating.fill(
        "history.html.j2",
        ("page.js", "history.js"),
        {"trends": [history.chart(t) for t in trends]},
        True,
        title="History",
        headline=headline(trends, rule),
        notes=notes,
        cells=cells,
        tables=[templating.table(table, {}) for table in tables(trends, rule)],
    )


_FORMATS: dict[str, Callable[[Sequence[Trend], Rule, Sequence[str]], str]] = {
    "text": _text, "html": _html, "md": _markdown, "json": _json,
}  # fmt: skip
FORMATS = tuple(_FORMATS)
