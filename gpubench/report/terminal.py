"""The terminal: a compact summary after a run, the full tables, and a comparison."""

from __future__ import annotations

import io
import math
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from itertools import takewhile

from msgspec import Struct
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from gpubench import escape, units
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.analysis.scaling.diagnosis import Diagnosis, diagnose
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import (
    UNTRIED,
    Summary,
    baseline_of,
    flags_of,
    pooling,
    problems,
    speedup,
    summarise,
)
from gpubench.analysis.tables import accuracy, devices
from gpubench.analysis.tables.pipeline import STAGES, skipped
from gpubench.analysis.tables.run import FAILED, SCALING, of_cells
from gpubench.analysis.tables.table import AXES, Table
from gpubench.analysis.tune.result import Evidence
from gpubench.records.record import RecordFile
from gpubench.report import formatting, terminal_tables
from gpubench.report.sections import (
    answers,
    compare,
    headline,
    pipeline,
    recommendation,
    scaling,
    wrong_answers,
)
from gpubench.report.terminal_tables import ANSWERS
from gpubench.suite.types import Rule, title

_NO_INTERVALS = "1 repeat of every cell, so times and rates have no intervals."
ORDER = ("verdict", "cell", "metric", "baseline", "candidate", "effect", "pairs", "repeats",
         "pair sd", "finds")  # fmt: skip
"""Of a comparison's columns; why is said below."""
NARROW = {
    92: ("verdict", "cell", "metric", "effect"),
    110: ("verdict", "cell", "metric", "baseline", "candidate", "effect"),
}
"""Below so many columns, these of a comparison's; the others move to a line of words."""
MOST = 10
"""Lines on pipelines at the end of a run."""
SKIPS = ("unavailable", "unsupported")
LEFT_OUT = ("limited by", "one replica owns")
"""Columns of the scaling table that would break the others; causes are told below the table."""
STYLE = {"REGRESSED": "bold red", "MISSING": "red", "INCOMPARABLE": "yellow",
         "INCONCLUSIVE": "yellow", "IMPROVED": "green", "EQUIVALENT": "green"}  # fmt: skip


def render(
    files: Sequence[RecordFile], evidence: Evidence | None = None, *, keys: bool = False
) -> str:
    """The whole report as plain text, as wide as the terminal (140 columns where there is none).

    ``evidence``: of a search, the A/B of what it recommends. ``keys``: of cells, for ``--cell``.
    """
    summaries, view = compare.view(files)
    parts: list[RenderableType] = []
    if view:
        parts += [comparison(view.rows, rule=view.rule), Text()]
    found = diagnose(summaries)
    parts += map(text, recommendation.told(files, evidence))
    parts.append(_answers(answers.told(files, summaries, found)))
    parts += map(text, formatting.differences(files))
    for made in of_cells(summaries, found):
        parts.append(Text())
        if made.title == FAILED:
            parts.append(_problems(made, summaries, keys))
        else:
            parts.append(_stages(made, summaries) if made.title == STAGES else grid(made, keys))
        if made.title == SCALING and (short := scaling.shown(found)):
            parts.append(_shortfalls(short))
    parts += map(_differing, wrong_answers.groups(summaries))
    parts += map(text, headline.marks(summaries))
    where = "" if keys else " (gpubench report --keys shows them)"
    for file in files:
        parts += map(text, formatting.nodes(file.header.nodes))
        parts.append(text(f"Raw records: {file.path}"))
        parts.append(text(f"Run a cell again: {formatting.command(file.header)}{where}"))
        parts += (text(f"Note on {file.path}: {note}") for note in file.notes)
    return printed(parts)


def printed(parts: Sequence[RenderableType]) -> str:
    """As plain text, as wide as the terminal (140 columns where there is none)."""
    out, width = io.StringIO(), max(80, shutil.get_terminal_size((140, 50)).columns)
    console = Console(file=out, width=width, color_system=None, legacy_windows=False,
                      force_jupyter=False)  # fmt: skip
    for part in parts:
        console.print(part)
    return escape.terminal(out.getvalue())  # a long word may have been broken before '::'


def text(words: str, style: str = "") -> Text:
    """One harmless line."""
    return Text(formatting.line(words), style=style)


def _below(lines: Sequence[str], style: str = "") -> list[RenderableType]:
    return [Padding(text(line, style), (0, 0, 0, 2)) for line in lines]


def _shortfalls(found: Sequence[tuple[str, Diagnosis]]) -> RenderableType:
    """Their causes with their evidence."""
    parts: list[RenderableType] = []
    for head, d in found:
        told = [f"{c.short}: {scaling.sentence(c)}" for c in d.causes]
        parts += [text(head, "bold"), *_below([*told, *filter(None, [scaling.lacks(d)])])]
    return Group(*parts)


def _stages(table: Table, summaries: Sequence[Summary]) -> RenderableType:
    """A line for each cell: so many columns would break."""
    notes = (text(note, "dim") for note in table.notes)
    return Group(text(table.title, "bold"), *map(text, pipeline.lines(summaries)), *notes)


def _differing(group: wrong_answers.Group) -> RenderableType:
    head = text(f"{wrong_answers.TITLE}: {group.head}", "bold")
    return Group(Text(), head, *_below(wrong_answers.lines(group)))


def _problems(table: Table, summaries: Sequence[Summary], keys: bool) -> RenderableType:
    """What was skipped, by its cause; then what failed, a row for each cell."""
    status = next(n for n, column in enumerate(table.columns) if column.name == "status")
    left = [row for row in table.rows if row[status] not in (["unavailable"], ["unsupported"])]
    skipped = _below(problem_lines(summaries, SKIPS))
    head = [text(table.title, "bold"), *skipped] if skipped else []
    return Group(*head, *([grid(replace(table, rows=left), keys)] if left else []))


def grid(table: Table, keys: bool = False) -> RenderableType:
    """One table; ± is half the 95 % interval."""
    single = bool(table.rows) and all(any(_single(v) for v in row) for row in table.rows)
    shown = [(n, c) for n, c in enumerate(table.columns) if c.name not in LEFT_OUT]
    alike = {n for n, c in shown if c.name in AXES and c.name != "backend"
             and len(table.rows) > 1 and len({row[n] for row in table.rows}) == 1}  # fmt: skip
    places = [n for n, c in shown if n not in alike and (keys or c.unit != "key")
              and (c.unit != "flags" or any(row[n] for row in table.rows))]  # fmt: skip
    columns = [table.columns[n] for n in places]
    made = terminal_tables.Folding(
        title=table.title,
        names=[formatting.line(c.name) for c in columns],  # a step's of preparing, from the records
        rows=[[formatting.line(formatting.compact(row[n], table.columns[n].unit, single=single))
               for n in places]
              for row in table.rows],
        styles=["yellow" if _marks(table, row) else "" for row in table.rows],
        right=[formatting.is_number(c) for c in columns],
        whole=[c.unit == "key" or c.name in ("backend", "what") for c in columns],
        first=max(1, sum(1 for _ in takewhile(lambda c: c.name in (*AXES, "run"), columns))),
    )  # fmt: skip
    same = [f"{table.columns[n].name} {table.rows[0][n]}" for n in sorted(alike)]
    notes = formatting.with_shared([*table.notes, *([_NO_INTERVALS] if single else [])], same)
    return Group(made, *(text(note, "dim") for note in notes))


def _single(value: object) -> bool:
    return isinstance(value, Estimate) and value.why == formatting.SINGLE


def _marks(table: Table, row: list[object]) -> object:
    return next((v for v, c in zip(row, table.columns, strict=True) if c.unit == "flags"), None)


def summary(files: Sequence[RecordFile]) -> RenderableType:
    """For the end of a run: rows side by side with what they compete with, the fastest first; what
    was skipped, failed or is doubtful; and the answer, where the eye is when a command has ended.
    """
    summaries = summarise(files)
    timed = [s for s in summaries if s.timed]
    told = _most([f"Pipeline: {line}" for line in pipeline.lines(summaries)])
    said = [
        *accuracy.doubts(s.parity for s in timed),
        *skipped(summaries),
        *formatting.differences(files),
        *headline.marks(summaries),
    ]
    said += [f"Note: {note}" for file in files for note in file.notes]
    problems = [
        text(line, "red" if ": failed" in line.partition(" (")[0] else "dim")
        for line in problem_lines(summaries)
    ]
    return Group(
        *(_compared(files, timed) if timed else []),
        *map(text, told),
        *(text(words, "yellow") for words in said),
        *problems,
        Text(),
        _answers(answers.told(files, summaries, diagnose(summaries))),
    )


def fleet(files: Sequence[RecordFile]) -> RenderableType:
    """`summary`, and what each kind of machine reached at its best."""
    found = devices.build(summarise(files))
    return Group(summary(files), *([grid(found)] if found.rows else []))


def _answers(rows: Sequence[tuple[str, list[str], bool]]) -> RenderableType:
    """What a newcomer asks, and what to type next."""
    made = Grid.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, lines, bad in rows:
        style = "red" if bad else "bold" if name == "fastest" else ""
        made.add_row(text(name, "bold"), Group(*(text(line, style) for line in lines)))
    return made


def _compared(files: Sequence[RecordFile], timed: Sequence[Summary]) -> list[RenderableType]:
    """Their table, below what all rows have in common."""
    bases = baseline_of(timed)
    axes = {id(s): _axes(s) for s in timed}
    first = axes[id(timed[0])].items()
    shared = dict(one for one in first if all(one in each.items() for each in axes.values()))
    groups: dict[str, list[Summary]] = {}
    for s in timed:
        own = (words for axis, words in axes[id(s)].items() if axis not in shared)
        groups.setdefault(", ".join(own), []).append(s)
    beside = any(len(group) > 1 for group in groups.values())
    checked = {id(s): _checked(s) for s in timed}
    heads = Counter(words.partition(" [")[0] for words in checked.values())
    (usual, _), *others = heads.most_common()
    single = all(_single(s.throughput) or _single(s.p50) for s in timed)
    short = partial(formatting.compact, single=single)
    latencies = [s for s in timed if s.cell.scenario == "latency"]
    flagged = any(map(flags_of, timed))
    rows: list[dict[str, str] | str] = []
    styles: list[str] = []
    for name, group in groups.items():
        if beside and name:
            rows.append(name)
            styles.append("bold")
        for s in sorted(group, key=_cost):
            words = [" ".join([s.cell.backend, *formatting.options(s.cell)]),
                     *([] if beside or not name else [name])]  # fmt: skip
            row = {"cell": formatting.line(", ".join(words))}
            if latencies:
                row["p50"] = short(s.p50, "ns") if s in latencies else formatting.NOTHING
            row["images/s"] = short(s.throughput, "images/s")
            if len(bases) > len({*map(id, bases.values())}):
                row["speed-up"] = short(_speedup(s, bases), "x")
            if others:
                found = checked[id(s)]
                row[ANSWERS] = "" if found.partition(" [")[0] == usual else found
            if flagged:
                row["flags"] = formatting.line(", ".join(flags_of(s)))
            rows.append(row)
            styles.append("red" if not s.ranked else "yellow")
    note = _NO_INTERVALS if single else "±: half the interval"
    note += "" if single else f"{_folded(rows)}. {pooling([s for s in timed if s.ranked])}"
    if any(" to " in value for row in rows if isinstance(row, dict) for value in row.values()):
        note += " a to b: the repeats, too far apart for an interval."
    if others:
        note += f" {ANSWERS} (top-1 with the reference's answers / with labels): {usual} where "
        note += "nothing else is said."
    told = [words for axis, words in shared.items() if axis != "run"]
    head = f"{formatting.title(files)}: {', '.join(told)}; "
    head += ", ".join(dict.fromkeys(formatting.machine(f.header) for f in files))
    return [text(head), terminal_tables.Cells(rows, styles), text(note, "dim")]


def _folded(rows: Sequence[dict[str, str] | str]) -> str:
    """Take the ± out that most rows share, as rows whose noise was pooled do; which, in words."""
    told = []
    cells = [row for row in rows if isinstance(row, dict)]
    for name in ("p50", "images/s", "speed-up"):
        seen = Counter(row[name].partition(" ±")[2] for row in cells if "±" in row.get(name, ""))
        share, many = next(iter(seen.most_common(1)), ("", 0))
        if 2 * many > len(cells) and many > 1:
            told.append(f"±{share} of {name}")
            for row in cells:
                row[name] = row[name].removesuffix(f" ±{share}")
    return f"; where a row says none, {', '.join(told)}" if told else ""


def _axes(s: Summary) -> dict[str, str]:
    """In words what a cell and its baseline have in common."""
    c = s.cell
    return {
        "model": f"{title(c.model)} ({c.weights})", "images": f"images {c.images}",
        "device": c.device, "precision": c.precision, "scenario": c.scenario,
        "boundary": c.boundary, "batch": f"batch {c.batch_size}",
        "replicas": units.count(c.replicas, "replica"), **formatting.unusual(c),
        **({"cores": f"{units.count(c.cores, 'core')} each"} if c.cores else {}),
        "run": f"run {s.run}",
    }  # fmt: skip


def _cost(s: Summary) -> float:
    """What orders a group: the fastest first, and last what has no rank."""
    latency, value = s.cell.scenario == "latency", s.value.value
    if not s.ranked or not value:
        return math.inf
    return value if latency else 1 / value


def _most(lines: list[str]) -> list[str]:
    more = len(lines) - MOST
    return lines[:MOST] + ([f"{more} more: gpubench report"] if more > 0 else [])


def _speedup(s: Summary, bases: dict[int, Summary]) -> Estimate:
    base = bases.get(id(s))
    if base is s:
        return Estimate(why="baseline")
    return speedup(base, s) if base else Estimate()


def _checked(s: Summary) -> str:
    """'100.0 % / 97.4 % [96.4, 98.2]': of what the row timed."""
    agree, right = accuracy.agreement(s), accuracy.accuracy(s)
    if agree is None:
        return "not checked"
    told = "" if right.value is None else f" / {formatting.full(right, 'share')}"
    return units.percent(agree) + told


def problem_lines(summaries: Sequence[Summary], only: Collection[str] = ()) -> list[str]:
    """Cells that share backend, status, reason and remedy are one line; ``only``: of statuses."""
    same = Counter(
        (p.summary.cell.backend, p.status, p.reason, p.remedy)
        for p in problems(summaries)
        if p.status not in UNTRIED and (not only or p.status in only)
    )
    return [
        f"{backend}: {status} ({units.count(n, 'cell')}): {reason}{remedy and f' -> {remedy}'}"
        for (backend, status, reason, remedy), n in same.items()
    ]


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
    worst = compare.ordered(comparisons)[0].verdict if comparisons else "MISSING"
    head = text(compare.headline(comparisons, rule, code), f"bold {STYLE[worst]}")
    if not comparisons:
        return head
    changed, unchanged = compare.split(comparisons)
    rows = Verdicts(changed + (unchanged if everything else []), comparisons)
    parts: list[RenderableType] = [head, Text(compare.counted(comparisons))]
    parts += [Text(), rows] if rows.comparisons else []
    if unchanged:
        words = compare.folded(unchanged, rule)
        words += "" if everything else " (gpubench compare --all lists them)"
        parts.append(Text(words, style=STYLE[compare.UNCHANGED]))
    parts.append(Text())
    notes = [*compare.notes(comparisons, rule, code), f"{compare.LEGEND}."]
    return Group(*parts, *(Text(note, style="dim") for note in notes))


class Verdicts(Struct, frozen=True):
    """A line of numbers per cell, and why below it: sentences would break the columns."""

    comparisons: list[Comparison]
    found: Sequence[Comparison]
    """All that were compared."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [{name: formatting.line(said) for name, said in row.items()}
                for row in compare.texts(self.comparisons, self.found)]  # fmt: skip
        every = [name for name in ORDER if name in rows[0]]
        kept = next((k for least, k in NARROW.items() if options.max_width < least), every)
        names = [name for name in every if name in kept]
        more = [name for name in every if name not in kept]
        widths = {n: max(cell_len(n), *(cell_len(row[n]) for row in rows)) for n in names}
        others = sum(w + 2 for name, w in widths.items() if name != "cell")
        widths["cell"] = max(20, min(widths["cell"], options.max_width - others))
        yield terminal_tables.line({name: name for name in names}, widths, "bold", "bold")
        apart = ""
        for c, row in zip(self.comparisons, rows, strict=True):
            yield terminal_tables.line(row, widths, "", STYLE[c.verdict])
            reason = "" if c.verdict == compare.UNCHANGED else compare.why(c)  # said for all
            if c.code == "different-machine":  # long, and the same for every cell
                reason, apart = ("" if reason == apart else reason), reason
            notes = [f"{name} {row[name]}" for name in more if row[name] != formatting.NOTHING]
            notes += [reason] if reason else []
            yield from _below(["; ".join(notes)] if notes else [], "dim")
