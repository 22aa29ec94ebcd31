"""JSON for programs: every table and, where asked for, comparisons. Times in ns, shares in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubench import escape
from gpubench.analysis.compare.verdicts import Comparison, caveat, exit_code
from gpubench.analysis.scaling.diagnosis import diagnose
from gpubench.analysis.summary import run_names
from gpubench.analysis.tables.run import of_cells
from gpubench.analysis.tune.result import Evidence
from gpubench.records.record import RecordFile
from gpubench.report.sections import compare, pipeline, recommendation, scaling, wrong_answers
from gpubench.report.sections.recommendation import FORMAT
from gpubench.suite.types import Rule


def render(files: Sequence[RecordFile], evidence: Evidence | None = None) -> str:
    """``{format, runs: [{run, path, header, notes}], tables: [{title, columns, rows, notes}],
    scaling: [{run, cell, one, scaling, efficiency, shown, why_not, causes, not_recorded}],
    pipelines: [{run, cell, breakdown, facts}],
    disagreements: [{run, than, cells, disagreeing, images}]}``.

    The two arms of an interleaved A/B also have ``comparison``: what `comparisons` gives. A search
    that is reported alone has ``recommendation``: what `recommendation.to_json` gives.
    """
    runs = [
        {"run": name, "path": f.path, "header": f.header, "notes": f.notes}
        for name, f in zip(run_names(files), files, strict=True)
    ]
    summaries, view = compare.view(files)
    found = diagnose(summaries)
    made: dict[str, Any] = {"format": FORMAT, "runs": runs, "tables": of_cells(summaries, found)}
    made["scaling"] = scaling.plain(found)
    made["pipelines"] = pipeline.plain(summaries)
    made["disagreements"] = wrong_answers.plain(summaries)
    if view:
        made["comparison"] = _comparisons(view.rows, view.rule)
    if len(files) == 1 and files[0].header.search:
        made["recommendation"] = recommendation.to_json(files[0], evidence)
    return escape.document(made)


def comparisons(
    found: Sequence[Comparison], *, rule: Rule | None = None, code: int | None = None
) -> str:
    """``{format, exit_code, headline, counts, rule, note, codes, comparisons}``.

    Worst first, with every field of `Comparison`; ``ratio`` is of the metric, candidate /
    baseline. ``codes``: what the reason codes that occur mean. ``code``: the exit code, where
    --fail-on made it another one.
    """
    return escape.document(_comparisons(found, rule or Rule(), code))


def _comparisons(
    found: Sequence[Comparison], rule: Rule, code: int | None = None
) -> dict[str, Any]:
    return {
        "format": FORMAT, "exit_code": exit_code(found) if code is None else code,
        "headline": compare.headline(found, rule, code), "counts": compare.counts(found),
        "rule": rule, "note": caveat(found),
        "codes": compare.meanings(found), "comparisons": compare.ordered(found),
    }  # fmt: skip
