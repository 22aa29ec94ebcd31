"""GitHub Actions: a job summary with the verdict first, and annotations.

The limits kept here are GitHub's: a summary must stay readable (60 KB; GitHub drops a step's above
1 MiB), and of a step's annotations only ten errors and ten warnings are shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpubench import escape, units
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.analysis.scaling.diagnosis import diagnose
from gpubench.analysis.summary import Problem, problems, summarise
from gpubench.analysis.tables import pipeline
from gpubench.analysis.tables.run import of_cells
from gpubench.analysis.tables.table import Table
from gpubench.records.record import RecordFile
from gpubench.report import formatting, markdown
from gpubench.report.sections import compare
from gpubench.suite.types import Rule

LIMIT = 60_000
"""Bytes of one summary."""
ANNOTATIONS = 10
"""Of each level, in one step."""
LONGEST = 500
"""Characters of one reason: a library's whole traceback would push the other rows out."""
TAKEN = 1 << 20
"""Bytes that GitHub takes of a step; of a longer file it shows nothing."""

OPEN = ("Skips and failures", "Latency per batch", "Throughput", *pipeline.ADDS.values())
"""Tables of a run that are not folded."""

Annotation = tuple[str, str, str]
"""('error' or 'warning', title, message)."""


def wanted(asked: bool, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to tell GitHub: by ``--github``, or because this is a job of GitHub Actions."""
    return asked or environ.get("GITHUB_ACTIONS") == "true"


# ------------------------------------------------------------------------------ the summary


def summary(
    comparisons: Sequence[Comparison], *, rule: Rule | None = None, code: int | None = None
) -> str:
    """Markdown of a comparison: verdict, changed rows worst first, unchanged ones folded.

    ``rule`` gave the verdicts, ``code`` is the exit code (`gpubench.report.markdown.comparison`).
    """
    short = [
        msgspec.structs.replace(c, label=_short(c.label), reason=_short(c.reason))
        for c in comparisons
    ]
    return _fit("## gpubench\n\n" + markdown.comparison(short, rule=rule, code=code))


def run_summary(files: Sequence[RecordFile]) -> str:
    """Markdown of runs: what went wrong, the winners, flags, and every table."""
    summaries = summarise(files)
    levels: dict[str, set[str]] = {"error": set(), "warning": set(), "": set()}
    for p in problems(summaries):
        levels[_level(p)].add(p.summary.key)
    bad = [(len(levels["error"]), "failed"), (len(levels["warning"]), "missing")]
    verdict = ", ".join(f"{n} {word}" for n, word in bad if n) or "nothing failed"
    lines = [f"## gpubench {markdown.escape(_short(formatting.title(files)))}: {verdict}", ""]
    lines += [
        *markdown.answers(files, summaries, diagnose(summaries), _short),
        *markdown.flags(summaries, _short),
    ]
    for table in sorted(of_cells(summaries), key=lambda table: table.title != OPEN[0]):
        lines += ["", *_table(table)]
    return _fit("\n".join(lines) + "\n")


def _table(table: Table) -> list[str]:
    """Failed cells come before skipped ones; the other tables keep their order."""
    rows = sorted(table.rows, key=_skipped) if table.title == OPEN[0] else table.rows
    body = markdown.table_rows(table, rows, _short)
    if table.title in OPEN and len(rows) <= markdown.OPEN_ROWS:
        return [f"### {markdown.escape(table.title)}", "", *body]
    return markdown.folded(f"{table.title}: {units.count(len(rows), 'row')}", body)


def _skipped(row: Sequence[Any]) -> bool:
    return any(value in (["unavailable"], ["unsupported"]) for value in row)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _fit(text: str) -> str:
    """``text`` in at most `LIMIT` bytes: table rows are left out from the end, whole, and counted.

    Tables are worst first and folded ones come last, so what goes first matters least.
    """
    lines = text.encode(errors="replace").split(b"\n")
    over = sum(map(len, lines)) + len(lines) - 1 - LIMIT
    if over <= 0:
        return b"\n".join(lines).decode()
    over += 120  # the line that says so
    kept, gone, rows = [], 0, 0
    for at in range(len(lines) - 1, -1, -1):
        # A row has a row above it, which the line below a table's names (|---|) has not
        is_row = lines[at].startswith(b"| ") and lines[at - 1].startswith(b"|")
        rows += is_row
        if is_row and over > 0:
            over -= len(lines[at]) + 1
            gone += 1
        else:
            kept.append(lines[at])
    note = f"{gone} of {rows} rows are left out: the summary holds {LIMIT // 1000} KB."
    kept.reverse()
    at = next(n for n, line in enumerate(kept) if not line and n > 1)
    fitted = b"\n".join([*kept[:at], b"", note.encode(), *kept[at:]])
    return fitted[:LIMIT].decode(errors="ignore")  # only flags by the hundred are still too long


# ------------------------------------------------------------------------------ annotations


def commands(comparisons: Sequence[Comparison]) -> list[str]:
    """Workflow commands: an error for each REGRESSED, a warning where nothing is shown."""
    levels = dict.fromkeys(("MISSING", "INCOMPARABLE", "INCONCLUSIVE"), "warning")
    levels["REGRESSED"] = "error"
    found: list[Annotation] = [
        (levels[c.verdict], f"{c.verdict} {compare.name(c)}", compare.sentence(c))
        for c in compare.ordered(comparisons)
        if c.verdict in levels
    ]
    if not comparisons:
        found = [("warning", "MISSING", compare.headline(comparisons, Rule()))]
    return _limited(found)


def run_commands(files: Sequence[RecordFile]) -> list[str]:
    """Workflow commands: an error for each failed cell, a warning for each missing one."""
    return _limited(
        (level, f"{p.status} {p.summary.cell.label}", f"{p.reason}{p.remedy and f' -> {p.remedy}'}")
        for p in problems(summarise(files))
        if (level := _level(p))
    )


def _level(problem: Problem) -> str:
    """Skips are listed in the summary, and are no reason to be told."""
    if problem.status.startswith("failed"):
        return "error"
    return "warning" if problem.status == "missing" else ""


def _limited(found: Iterable[Annotation]) -> list[str]:
    """At most `ANNOTATIONS` of a level; the last then says how many more there are."""
    levels: dict[str, list[tuple[str, str]]] = {"error": [], "warning": []}
    for level, title, message in found:
        levels[level].append((title, message))
    lines = []
    for level, told in levels.items():
        more = len(told) - (ANNOTATIONS - 1)
        if more > 1:
            told = [*told[:-more], (f"{more} more", "see the job summary")]
        lines += [
            f"::{level} title={_property(f'gpubench: {_short(title)}')}::{_data(_short(message))}"
            for title, message in told
        ]
    return lines


def _data(text: str) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escape.visible(text)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


# ------------------------------------------------------------------------------ telling GitHub


def publish(
    text: str,
    told: Sequence[str],
    *,
    environ: Mapping[str, str] = os.environ,
    write: Callable[[str], object] = print,
) -> None:
    """Append ``text`` to the job summary and ``write`` the commands ``told``, one a line.

    Not where this would make it longer than GitHub takes: all that the step wrote would be lost. A
    summary that cannot be written is a warning on stderr: it must not change an exit code.
    """
    for command in told:
        write(command)
    path = environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        escape.tell("warning: GITHUB_STEP_SUMMARY is not set: no job summary written")
        return
    body, why = f"{text}\n".encode(), ""
    try:
        with Path(path).open("ab") as file:
            if os.fstat(file.fileno()).st_size + len(body) > TAKEN:
                why = "it would be longer than the 1 MiB that GitHub takes"
            else:
                file.write(body)
    except OSError as error:
        why = str(error.strerror)
    if why:
        escape.tell(f"warning: no job summary written: {path}: {why}")
