"""The terminal: a compact summary after a run, the full tables, and a comparison."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from gpubench.analysis.cells import (
    Summary,
    baseline_of,
    flags_of,
    problems,
    speedup,
    summarise,
)
from gpubench.analysis.compare import CAVEAT, VERDICTS, Comparison
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tables import Column, Table, of_cells
from gpubench.record import RecordFile
from gpubench.report import headline, show
from gpubench.units import percent

_NS, _RATE = Column(name="p50", unit="ns"), Column(name="images/s", unit="images/s")
_TIMES = Column(name="speed-up", unit="x")
_NO_INTERVALS = "1 repeat of every cell, so there are no intervals."
STYLE = {"REGRESSED": "bold red", "MISSING": "red", "INCOMPARABLE": "yellow",
         "INCONCLUSIVE": "yellow", "IMPROVED": "green", "EQUIVALENT": "green"}  # fmt: skip


def render(files: Sequence[RecordFile]) -> str:
    """The whole report as plain text, as wide as the terminal (140 columns where there is none)."""
    width = max(80, shutil.get_terminal_size((140, 50)).columns)
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, legacy_windows=False)
    summaries = summarise(files)
    for line in headline.lines(summaries):
        console.print(Text(line))
    for made in of_cells(summaries):
        console.print()
        console.print(grid(made))
    for flag, n in headline.flags(summaries):
        console.print(Text(f"{flag} ({n} cells): {show.meaning(flag)}"))
    for file in files:
        console.print(Text(f"Raw records: {file.path}"))
        console.print(Text(f"Run a cell again: {show.command(file.header)}"))
        for note in file.notes:
            console.print(Text(f"Note on {file.path}: {note}"))
    return out.getvalue()


def grid(table: Table) -> RenderableType:
    """One table; ± is half the 95 % interval."""
    made = _grid(table.title)
    single = bool(table.rows) and all(any(_single(v) for v in row) for row in table.rows)
    for column in table.columns:
        whole = column.unit == "key" or column.name in ("backend", "what")
        right = show.is_number(column)
        made.add_column(column.name, justify="right" if right else "left", no_wrap=whole)
    for row in table.rows:
        made.add_row(
            *(Text(show.compact(v, c, single=single))
              for v, c in zip(row, table.columns, strict=True)),
            style="" if not _marks(table, row) else "yellow",
        )  # fmt: skip
    notes = [*table.notes, *([_NO_INTERVALS] if single else [])]
    return Group(made, *(Text(note, style="dim") for note in notes))


def _single(value: object) -> bool:
    return isinstance(value, Estimate) and value.why == show.SINGLE


def _grid(title: str) -> Grid:
    return Grid(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
                pad_edge=False)  # fmt: skip


def _marks(table: Table, row: list[object]) -> object:
    return next((v for v, c in zip(row, table.columns, strict=True) if c.unit == "flags"), None)


def summary(files: Sequence[RecordFile]) -> RenderableType:
    """For the end of a run: a row per cell, then what was skipped or failed, then the headline."""
    summaries = summarise(files)
    bases = baseline_of(summaries)
    made = _grid("")
    for name in ("cell", "p50", "images/s", "speed-up", "agree / right", "flags"):
        words = name in ("cell", "flags")
        made.add_column(name, justify="left" if words else "right", no_wrap=name == "cell")
    several = len(files) > 1
    same = (
        f" {summaries[0].cell.scenario}" if len({s.cell.scenario for s in summaries}) == 1 else ""
    )
    timed = [s for s in summaries if s.timed]
    single = all(_single(s.throughput) or _single(s.p50) for s in timed)
    short = partial(show.compact, single=single)
    for s in timed:
        label = f"{s.run} {s.cell.label}" if several else s.cell.label
        p50 = short(s.p50, _NS) if s.cell.scenario == "latency" else show.NOTHING
        made.add_row(
            Text(label.replace(same, "", 1)), p50, short(s.throughput, _RATE),
            short(_speedup(s, bases), _TIMES), _answers(s),
            Text(", ".join(flags_of(s)), style="red" if not s.ranked else "yellow"),
        )  # fmt: skip
    note = _NO_INTERVALS if single else "±: half the 95 % interval."
    note += " agree: top-1 with the reference; right: with the labels."
    parts: list[RenderableType] = [made, Text(note, style="dim")] if made.row_count else []
    parts += _problems(summaries)
    parts += [Text(line) for line in headline.lines(summaries)]
    parts += [Text(f"{f} ({n} cells): {show.meaning(f)}", style="yellow")
              for f, n in headline.flags(summaries)]  # fmt: skip
    return Group(*parts)


def _speedup(s: Summary, bases: dict[int, Summary]) -> Estimate:
    base = bases.get(id(s))
    if base is s:
        return Estimate(why="baseline")
    return speedup(base, s) if base else Estimate()


def _answers(s: Summary) -> str:
    """'100.0 % / 93.8 %'."""
    if s.parity is None:
        return "not checked"
    agree = percent(s.parity.top1_agreement)
    if not s.parity.labelled:
        return agree
    return f"{agree} / {percent(s.parity.correct / s.parity.labelled)}"


def _problems(summaries: Sequence[Summary]) -> list[RenderableType]:
    """Cells that share backend, status, reason and remedy are one line."""
    same = Counter(
        (p.summary.cell.backend, p.status, p.reason, p.remedy) for p in problems(summaries)
    )
    lines: list[RenderableType] = []
    for (backend, status, reason, remedy), n in same.items():
        style = "red" if status.startswith("failed") else "dim"
        line = f"{backend}: {status} ({n} cell{'' if n == 1 else 's'}): {reason}"
        lines.append(Text(line + (f" -> {remedy}" if remedy else ""), style=style))
    return lines


def comparison(comparisons: Sequence[Comparison]) -> RenderableType:
    """Verdict first: the counts, then a row per cell, the most urgent verdicts on top."""
    if not comparisons:
        return Text("MISSING: the two runs have nothing to compare", style="red")
    order = list(VERDICTS)
    rows = sorted(comparisons, key=lambda c: order.index(c.verdict))
    count = Counter(c.verdict for c in rows)
    head = ", ".join(f"{n} {name}" for name, n in count.items())
    made = _grid("")
    for name in ("verdict", "cell", "baseline", "candidate", "ratio", "repeats", "finds", "reason"):
        left = name in ("verdict", "cell", "reason")
        made.add_column(name, justify="left" if left else "right", overflow="fold")
    for c in rows:
        unit = _NS if c.metric.endswith("[ns]") else _RATE
        ratio = Estimate(value=c.ratio, low=c.low, high=c.high)
        found = show.NOTHING if c.smallest_detectable is None else percent(c.smallest_detectable)
        made.add_row(
            Text(c.verdict, style=STYLE[c.verdict]), Text(c.label), show.full(c.baseline, unit),
            show.full(c.candidate, unit), show.full(ratio, _TIMES), f"{c.n[0]}, {c.n[1]}",
            found, Text(c.reason),
        )  # fmt: skip
    note = "ratio: candidate / baseline; finds: the slowdown this would have found 95 times in 100"
    notes = (Text(line, style="dim") for line in (note, CAVEAT))
    return Group(Text(head, style=STYLE[rows[0].verdict]), made, *notes)
