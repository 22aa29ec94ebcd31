"""Markdown for GitHub: the answers, tables, long ones folded, environment at the end."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpubench import escape as escaping
from gpubench import units
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.analysis.scaling.diagnosis import Diagnosis, diagnose
from gpubench.analysis.summary import Summary, run_names
from gpubench.analysis.tables.run import SCALING, of_cells
from gpubench.analysis.tables.table import Table
from gpubench.analysis.tune.result import Evidence
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.sections import answers as answered
from gpubench.report.sections import compare, headline, recommendation, scaling, wrong_answers
from gpubench.suite.types import Rule

OPEN_ROWS = 30
"""Tables longer than this start folded."""

_SPECIAL = re.compile(r"([\\`*_\[\]|~#@$]|(?<=:)/(?=/)|(?<=\bwww)\.)")
"""Beside Markdown's own: '$' of mathematics, and what makes a link of a bare address."""


def escape(text: str) -> str:
    """Untrusted text in a table cell: no HTML, Markdown, mathematics or mention, one line."""
    plain = escaping.visible(" ".join(text.split()))
    return _SPECIAL.sub(r"\\\1", html.escape(plain, quote=False))


def render(files: Sequence[RecordFile], evidence: Evidence | None = None) -> str:
    """The whole report. ``evidence``: of a search, the A/B of what it recommends."""
    summaries, view = compare.view(files)
    lines = [f"# gpubench: {escape(formatting.title(files))}", ""]
    for name, file in zip(run_names(files), files, strict=True):
        head = file.header
        machine = formatting.machine(head)
        lines += [f"Run {escape(name)}, {escape(head.started)}, on {escape(machine)}. "
                  f"Raw records: {escape(file.path)}"]  # fmt: skip
        lines += [f"> **Note:** {escape(note)}" for note in file.notes]
        lines += ["", *listed(formatting.nodes(head.nodes))] if head.nodes else []
    lines += [f"> **{escape(line)}**" for line in formatting.differences(files)]
    if view:
        verdict = comparison(view.rows, rule=view.rule).rstrip("\n")
        lines += ["", "## Verdict", "", verdict]
    if advice := recommendation.told(files, evidence):
        lines += ["", "## Recommendation", "", *listed(advice)]
    found = diagnose(summaries)
    lines += ["", *answers(files, summaries, found), ""]
    if said := flags(summaries):
        lines += ["**Flags in this report**", "", *said, ""]
    for made in of_cells(summaries, found):
        lines += [*section(made), ""]
        lines += _shortfalls(found) if made.title == SCALING else []
    lines += _differing(summaries)
    return "\n".join([*lines, *_ending(files)]) + "\n"


def listed(lines: Iterable[str]) -> list[str]:
    """Untrusted lines as a list."""
    return [f"- {escape(line)}" for line in lines]


def answers(
    files: Sequence[RecordFile],
    summaries: Sequence[Summary],
    found: Sequence[Diagnosis],
    cut: Callable[[str], str] = str,
) -> list[str]:
    """What a newcomer asks, as a list; ``cut`` shortens a sentence."""
    return [f"- **{name}**: {' '.join(escape(cut(line)) for line in lines)}"
            for name, lines, _ in answered.told(files, summaries, found)]  # fmt: skip


def flags(summaries: Sequence[Summary], cut: Callable[[str], str] = str) -> list[str]:
    """Every flag that occurs and what it means; ``cut`` shortens its name."""
    return [
        f"- **{escape(cut(flag))}** ({units.count(n, 'cell')}): {escape(formatting.meaning(flag))}"
        for flag, n in headline.flags(summaries)
    ]


def comparison(
    comparisons: Sequence[Comparison],
    *,
    rule: Rule | None = None,
    code: int | None = None,
) -> str:
    """The verdict first, then a row per cell, worst first; unchanged rows folded.

    ``rule`` and ``code``: as for the terminal (`report.terminal.comparison`).
    """
    rule = rule or Rule()
    lines = [f"**{escape(compare.headline(comparisons, rule, code))}**", ""]
    if not comparisons:
        return "\n".join(lines)
    lines += [compare.counted(comparisons), ""]
    changed, unchanged = compare.split(comparisons)
    open_, shut = (compare.table(rows, comparisons) for rows in (changed, unchanged))
    lines += [*table_rows(open_, open_.rows), ""] if changed else []
    if unchanged:
        lines += [*folded(compare.folded(unchanged, rule), table_rows(shut, shut.rows)), ""]
    notes = [*compare.notes(comparisons, rule, code), f"{compare.LEGEND}."]
    return "\n".join([*lines, *listed(notes)]) + "\n"


def section(table: Table) -> list[str]:
    body = table_rows(table, table.rows)
    if len(table.rows) > OPEN_ROWS:
        body = folded(f"{len(table.rows)} rows", body)
    return [f"## {escape(table.title)}", "", *(escape(n) for n in table.notes), "", *body]


def table_rows(
    table: Table, rows: Sequence[Sequence[Any]], cut: Callable[[str], str] = str
) -> list[str]:
    """``rows`` of ``table``, under its columns; ``cut`` shortens what a value says."""
    right = [formatting.is_number(c) for c in table.columns]
    texts = [
        [cut(formatting.full(v, c.unit)) for v, c in zip(row, table.columns, strict=True)]
        for row in rows
    ]
    return grid([c.name for c in table.columns], right, texts)


def grid(names: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of untrusted texts; ``right``: columns of numbers."""
    head, *body = (f"| {' | '.join(map(escape, row))} |" for row in (names, *rows))
    return [head, f"|{'|'.join('---:' if number else '---' for number in right)}|", *body]


def folded(title: str, body: Sequence[str]) -> list[str]:
    """``body`` behind a line that opens it."""
    return ["<details>", f"<summary>{escape(title)}</summary>", "", *body, "", "</details>"]


def _shortfalls(found: Sequence[Diagnosis]) -> list[str]:
    """Every shortfall that is shown: its causes with their evidence."""
    shown = scaling.shown(found)
    body = []
    for head, d in shown:
        body.append(f"- {escape(head)}")
        body += [f"  - **{escape(c.short)}**: {escape(scaling.sentence(c))}" for c in d.causes]
        body += [f"  - {escape(text)}" for text in [scaling.lacks(d)] if text]
    if len(shown) > OPEN_ROWS:
        body = folded(f"{len(shown)} shortfalls", body)
    return [f"### {scaling.TITLE}", "", scaling.note(found), "", *body, ""] if shown else []


def _differing(summaries: Sequence[Summary]) -> list[str]:
    found = wrong_answers.groups(summaries)
    body = []
    for group in found:
        told = wrong_answers.lines(group, len(group.images))
        body += [*folded(group.head, listed(told)), ""]
    return [f"## {wrong_answers.TITLE}", "", wrong_answers.NOTE, "", *body] if found else []


def _ending(files: Sequence[RecordFile]) -> list[str]:
    lines = []
    for name, file in zip(run_names(files), files, strict=True):
        machines = file.header.nodes or file.header.environment
        environment = escaping.encoded(machines, indent=2)
        again = escaping.line(formatting.command(file.header))
        ticks = re.findall("`+", environment + again)
        fence = "`" * (max([2, *map(len, ticks)]) + 1)
        body = [f"{fence}text", again, fence, "", f"{fence}json", environment, fence]
        lines += folded(f"Run a cell again; environment of {name}", body)
    return lines
