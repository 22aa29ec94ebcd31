"""Results in the formats of other tools: each a pure function from runs to the bytes of files.

A path is a run's directory, a record file, or the directory of an A/B: its two arms. What each
format makes of them is in the documentation (A/B and CI, "Exports").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpubench.analysis.compare import compare
from gpubench.analysis.compare.compare import View
from gpubench.errors import InputError
from gpubench.records.record import RecordFile
from gpubench.report.exports import (
    bencher,
    github_action_benchmark,
    junit,
    naming,
    openmetrics,
    pytest_benchmark,
    repeats,
)
from gpubench.report.sections import compare as sections_compare

Documents = dict[str, bytes]
"""File name -> content; a format of a single document has it under ''."""

Exporter = Callable[[Sequence[RecordFile], View | None], Documents]

FORMATS: dict[str, Exporter] = {
    "pytest-benchmark": lambda files, _: {"": pytest_benchmark.render(files)},
    "github-action-benchmark": lambda files, _: github_action_benchmark.render(files),
    "bencher": lambda files, _: {"": bencher.render(files)},
    "openmetrics": lambda files, _: {"": openmetrics.render(files)},
    "junit": lambda files, view: {"": junit.render(files, view)},
    "csv": lambda files, _: {"": repeats.csv(files)},
    "parquet": lambda files, _: {"": repeats.parquet(files)},
}

HISTORIES = ("pytest-benchmark", "github-action-benchmark", "bencher", "openmetrics")
SOUND = ("bencher", "openmetrics")
"""Those that have no place for flags."""
BINARY = ("parquet",)


def verdicts_on(files: Sequence[RecordFile], **rules: Any) -> View | None:
    """Of the two arms of an A/B, in any order, or of two runs, the baseline first; else None.

    ``rules``: further arguments of `gpubench.analysis.compare.compare.view`, such as ``history``.
    """
    sides = sections_compare.arms(files) or files
    return compare.view(sides[0], sides[1], **rules) if len(sides) == 2 else None


def export(
    files: Sequence[RecordFile],
    format: str,  # noqa: A002 (the command's word)
    view: View | None = None,
) -> Documents:
    """The documents of one format. Raises InputError for another format, or with nothing to say.

    ``view``: `verdicts_on` ``files``, which only junit shows; None: there are none.
    """
    if format not in FORMATS:
        raise InputError(f"unknown export format {format!r}; choose one of {', '.join(FORMATS)}")
    if not files:
        raise InputError("nothing to export: no record file was given")
    return FORMATS[format](files, view)


def left_out(files: Sequence[RecordFile], format: str) -> list[str]:  # noqa: A002
    """'cell: status' of what failed, was skipped, is missing, or invalid, where the format cannot
    say so."""
    if format not in HISTORIES:
        return []
    return naming.left_out(files, sound=format in SOUND)


def text(documents: Documents, format: str) -> str:  # noqa: A002
    """The only document, for a terminal or a pipe. InputError where that is not possible."""
    if set(documents) != {""}:
        raise InputError(f"{format} is {len(documents)} files: name a directory for them with -o")
    if format in BINARY:
        raise InputError(f"{format} is not text: name a file for it with -o")
    return documents[""].decode()
