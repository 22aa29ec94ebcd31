"""The terminal: a compact summary after a run, the full tables, and a comparison."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import takewhile

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from gpubench import escape, units
from gpubench.analysis import answertable
from gpubench.analysis.cells import (
    UNTRIED,
    Summary,
    baseline_of,
    flags_of,
    problems,
    speedup,
    summarise,
)
from gpubench.analysis.diagnosis import Diagnosis, diagnose
from gpubench.analysis.layout import AXES, Column, Table
from gpubench.analysis.pathtables import STAGES, skipped
from gpubench.analysis.stats import Estimate
from gpubench.analysis.tables import SCALING, of_cells
from gpubench.analysis.tuning import Evidence
from gpubench.analysis.verdicts import Comparison
from gpubench.record import RecordFile
from gpubench.report import (
    differing,
    grids,
    headline,
    pathview,
    recommend,
    shortfalls,
    show,
    verdicts,
)
from gpubench.suite import Rule

_RIGHT = Column(name="right", unit="share")
_NO_INTERVALS = "1 repeat of every cell, so times and rates have no intervals."
NARROW = {
    92: ("verdict", "cell", "effect"),
    110: ("verdict", "cell", "baseline", "candidate", "effect"),
}
"""Below so many columns, these of a comparison's; the others move to a line of words."""
SHORTFALLS = 10
"""Lines on scaling, and on whole paths, at the end of a run, at most; the worst come first."""
LEFT_OUT = ("limited by", "one replica owns")
"""Columns of the scaling table that would break the others; causes are told below the table."""
STYLE = {"REGRESSED": "bold red", "MISSING": "red", "INCOMPARABLE": "yellow",
         "INCONCLUSIVE": "yellow", "IMPROVED": "green", "EQUIVALENT": "green"}  # fmt: skip


def render(files: Sequence[RecordFile], evidence: Evidence | None = None) -> str:
    """The whole report as plain text, as wide as the terminal (140 columns where there is none).

    ``evidence``: of a search, the A/B of what it recommends.
    """
    console = plain()
    summaries, view = verdicts.view(files)
    if view:
        console.print(comparison(view.rows, rule=view.rule))
        console.print()
    found = diagnose(summaries)
    told = [*recommend.told(files, evidence), *headline.lines(summaries)]
    told += pathview.headline(summaries)
    for line in [*told, *show.differences(files)]:
        console.print(Text(show.line(line)))
    for made in of_cells(summaries, found):
        console.print()
        console.print(_stages(made, summaries) if made.title == STAGES else grid(made))
        if made.title == SCALING and (short := shortfalls.shown(found)):
            console.print(_shortfalls(short))
    for group in differing.groups(summaries):
        console.print(_differing(group))
    for line in headline.marks(summaries):
        console.print(Text(show.line(line)))
    for file in files:
        for line in show.nodes(file.header):
            console.print(Text(show.line(line)))
        console.print(Text(show.line(f"Raw records: {file.path}")))
        console.print(Text(show.line(f"Run a cell again: {show.command(file.header)}")))
        for note in file.notes:
            console.print(Text(show.line(f"Note on {file.path}: {note}")))
    return printed(console)


def plain() -> Console:
    """What takes plain text, as wide as the terminal (140 columns where there is none)."""
    width = max(80, shutil.get_terminal_size((140, 50)).columns)
    return Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)


def printed(console: Console) -> str:
    """All that such a console was given."""
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    return escape.terminal(text)  # a long word may have been broken before '::'


def _shortfalls(found: Sequence[tuple[str, Diagnosis]]) -> RenderableType:
    """Their causes with their evidence."""
    parts: list[RenderableType] = []
    for head, d in found:
        parts.append(Text(show.line(head), style="bold"))
        told = [f"{c.short}: {shortfalls.sentence(c)}" for c in d.causes]
        told += filter(None, [shortfalls.lacks(d)])
        parts += [Padding(Text(show.line(text)), (0, 0, 0, 2)) for text in told]
    return Group(*parts)


def _stages(table: Table, summaries: Sequence[Summary]) -> RenderableType:
    """A line for each cell: so many columns would break."""
    told = [Text(show.line(line)) for line in pathview.lines(summaries)]
    notes = [Text(show.line(note), style="dim") for note in table.notes]
    return Group(Text(show.line(table.title), style="bold"), *told, *notes)


def _differing(group: differing.Group) -> RenderableType:
    told = [Padding(Text(show.line(line)), (0, 0, 0, 2)) for line in differing.lines(group)]
    head = Text(show.line(f"{differing.TITLE}: {group.head}"), style="bold")
    return Group(Text(), head, *told)


def grid(table: Table) -> RenderableType:
    """One table; ± is half the 95 % interval."""
    single = bool(table.rows) and all(any(_single(v) for v in row) for row in table.rows)
    places = [n for n, column in enumerate(table.columns) if column.name not in LEFT_OUT]
    columns = [table.columns[n] for n in places]
    made = grids.Folding(
        title=table.title,
        names=[show.line(c.name) for c in columns],  # a step's of preparing, from the records
        rows=[[show.line(show.compact(row[n], table.columns[n], single=single)) for n in places]
              for row in table.rows],
        styles=["yellow" if _marks(table, row) else "" for row in table.rows],
        right=[show.is_number(c) for c in columns],
        whole=[c.unit == "key" or c.name in ("backend", "what") for c in columns],
        first=max(1, sum(1 for _ in takewhile(lambda c: c.name in (*AXES, "run"), columns))),
    )  # fmt: skip
    notes = [*table.notes, *([_NO_INTERVALS] if single else [])]
    return Group(made, *(Text(show.line(note), style="dim") for note in notes))


def _single(value: object) -> bool:
    return isinstance(value, Estimate) and value.why == show.SINGLE


def _marks(table: Table, row: list[object]) -> object:
    return next((v for v, c in zip(row, table.columns, strict=True) if c.unit == "flags"), None)


def summary(files: Sequence[RecordFile]) -> RenderableType:
    """For the end of a run: a row per cell, then what was skipped or failed, then the headline."""
    summaries = summarise(files)
    bases = baseline_of(summaries)
    several = len(files) > 1
    same = (
        f" {summaries[0].cell.scenario}" if len({s.cell.scenario for s in summaries}) == 1 else ""
    )
    timed = [s for s in summaries if s.timed]
    single = all(_single(s.throughput) or _single(s.p50) for s in timed)
    short = partial(show.compact, single=single)
    rows, styles = [], []
    for s in timed:
        label = f"{s.run} {s.cell.label}" if several else s.cell.label
        p50 = short(s.p50, show.NS) if s.cell.scenario == "latency" else show.NOTHING
        rows.append({
            "cell": show.line(label.replace(same, "", 1)), "p50": p50,
            "images/s": short(s.throughput, show.RATE),
            "speed-up": short(_speedup(s, bases), show.TIMES),
            grids.ANSWERS: _answers(s), "flags": show.line(", ".join(flags_of(s))),
        })  # fmt: skip
        styles.append("red" if not s.ranked else "yellow")
    note = _NO_INTERVALS if single else "±: half the 95 % interval."
    note += " agree: top-1 with the reference; right: with the labels."
    parts: list[RenderableType] = (
        [grids.Cells(rows, styles), Text(note, style="dim")] if rows else []
    )
    parts += _problems(summaries)
    told = [*headline.lines(summaries), *pathview.headline(summaries)]
    told += _most([f"Path: {line}" for line in pathview.lines(summaries)])
    parts += [Text(show.line(line)) for line in told]
    falls = [f"Scaling: {line}" for line in shortfalls.lines(diagnose(summaries))]
    parts += [Text(show.line(line)) for line in _most(falls)]
    said = skipped(summaries)
    said += show.differences(files)
    said += headline.marks(summaries)
    said += [f"Note: {note}" for file in files for note in file.notes]
    parts += [Text(show.line(words), style="yellow") for words in said]
    return Group(*parts)


def _most(lines: list[str]) -> list[str]:
    more = len(lines) - SHORTFALLS
    return lines[:SHORTFALLS] + ([f"{more} more: gpubench report"] if more > 0 else [])


def _speedup(s: Summary, bases: dict[int, Summary]) -> Estimate:
    base = bases.get(id(s))
    if base is s:
        return Estimate(why="baseline")
    return speedup(base, s) if base else Estimate()


def _answers(s: Summary) -> str:
    """'100.0 % / 97.4 % [96.4, 98.2]': of what the row timed."""
    agree, right = answertable.agreement(s), answertable.accuracy(s)
    if agree is None:
        return "not checked"
    told = "" if right.value is None else f" / {show.full(right, _RIGHT)}"
    return units.percent(agree) + told


def _problems(summaries: Sequence[Summary]) -> list[RenderableType]:
    """Cells that share backend, status, reason and remedy are one line."""
    same = Counter(
        (p.summary.cell.backend, p.status, p.reason, p.remedy)
        for p in problems(summaries)
        if p.status not in UNTRIED
    )
    lines: list[RenderableType] = []
    for (backend, status, reason, remedy), n in same.items():
        style = "red" if status.startswith("failed") else "dim"
        line = f"{backend}: {status} ({units.count(n, 'cell')}): {reason}"
        line += f" -> {remedy}" if remedy else ""
        lines.append(Text(show.line(line), style=style))
    return lines


def comparison(
    comparisons: Sequence[Comparison],
    *,
    rule: Rule | None = None,
    everything: bool = False,
    code: int | None = None,
) -> RenderableType:
    """The verdict in one line, then a row per cell, worst first.

    Unchanged rows are one line with their count, unless ``everything``. ``rule``: the one that
    gave the verdicts (default: `Rule`'s own values, which are `compare`'s). ``code``: the exit
    code, where --fail-on made it another one.
    """
    rule = rule or Rule()
    worst = verdicts.ordered(comparisons)[0].verdict if comparisons else "MISSING"
    head = Text(show.line(verdicts.headline(comparisons, rule, code)), style=f"bold {STYLE[worst]}")
    if not comparisons:
        return head
    pairs = verdicts.paired(comparisons)
    changed, unchanged = verdicts.split(comparisons)
    rows = _Rows(changed + (unchanged if everything else []), pairs)
    parts: list[RenderableType] = [head, Text(_counts(comparisons))]
    parts += [Text(), rows] if rows.comparisons else []
    if unchanged:
        text = verdicts.folded(unchanged, rule)
        text += "" if everything else " (gpubench compare --all lists them)"
        parts.append(Text(text, style=STYLE[verdicts.UNCHANGED]))
    parts.append(Text())
    notes = [*verdicts.notes(comparisons, rule, code), f"{verdicts.LEGEND}."]
    return Group(*parts, *(Text(note, style="dim") for note in notes))


def _counts(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(f"{n} {name}" for name, n in verdicts.counts(comparisons).items())


class _Rows(Struct, frozen=True):
    """A line of numbers per cell, and why below it: sentences would break the columns."""

    comparisons: list[Comparison]
    pairs: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [
            {name: show.line(text) for name, text in verdicts.row(c, pairs=self.pairs).items()}
            for c in self.comparisons
        ]
        kept = next((k for least, k in NARROW.items() if options.max_width < least), tuple(rows[0]))
        names = [name for name in rows[0] if name in kept]
        more = [name for name in rows[0] if name not in kept]
        widths = {n: max(cell_len(n), *(cell_len(row[n]) for row in rows)) for n in names}
        others = sum(w + 2 for name, w in widths.items() if name != "cell")
        widths["cell"] = max(20, min(widths["cell"], options.max_width - others))
        yield grids.line({name: name for name in names}, widths, "bold", "bold")
        apart = ""
        for c, row in zip(self.comparisons, rows, strict=True):
            yield grids.line(row, widths, "", STYLE[c.verdict])
            reason = "" if c.verdict == verdicts.UNCHANGED else verdicts.why(c)  # said for all
            if c.code == "different-machine":  # long, and the same for every cell
                reason, apart = ("" if reason == apart else reason), reason
            notes = [f"{name} {row[name]}" for name in more if row[name] != show.NOTHING]
            text = "; ".join([*notes, *([reason] if reason else [])])
            if text:
                yield Padding(Text(show.line(text), style="dim"), (0, 0, 0, 2))
