"""What the page of a comparison says: the values that ``compare.html.j2`` lays out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from msgspec.structs import replace

from gpubench.analysis.compare.compare import View
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.charts import compare
from gpubench.report.html import templating
from gpubench.report.sections import compare as sections_compare
from gpubench.units import percentage

OPEN = 6
"""Cells whose pairs are drawn at once; the others when they are opened."""


def context(view: View, drawn: dict[str, Any], code: int | None) -> dict[str, Any]:
    """Everything but the runs' own tables."""
    base, candidate, found, rule = view.base, view.candidate, view.rows, view.rule
    changed, unchanged = sections_compare.split(found)
    looks = compare.legend(found)
    by_name = {look["name"]: look for look in looks}
    lines, cells = len(drawn["forest"]["points"]), sum(c.judged == "speed" for c in found)
    return {
        "title": f"{formatting.title([base, candidate])}: baseline against candidate",
        "headline": sections_compare.headline(found, rule, code), "looks": looks,
        "next": _decides(view),
        "notes": [*sections_compare.notes(found, rule, code),
                  *filter(None, [sections_compare.unjudged(view)])],
        "sides": sides(base, candidate),
        "lines": lines, "unseen": cells - lines, "total": len(found),
        "delta": percentage(rule.delta), "pairs": sections_compare.paired(found),
        "changed": _table("Changed cells", changed, found, by_name),
        "unchanged": _table("Unchanged cells", unchanged, found, by_name),
        "folded": sections_compare.folded(unchanged, rule) if unchanged else "",
        "folded_verdict": sections_compare.UNCHANGED, "legend": sections_compare.LEGEND,
        "behind": [{**cell, "look": by_name[cell["verdict"]]} for cell in drawn["behind"]["cells"]],
        "open": OPEN, "words":
            {look["name"]: look["meaning"] for look in looks} | sections_compare.meanings(found),
    }  # fmt: skip


def _decides(view: View) -> tuple[str, str]:
    """(command that would settle what is left, what it does); ('', '') where nothing is."""
    head = view.candidate.header
    commit = _commit(view.base.header.environment).partition(" ")[0]
    open_ = any(c.verdict == "INCONCLUSIVE" for c in view.rows)
    if view.arms and open_ and head.command[1:2] == ["ab"]:  # of a bisection or search it is a part
        where = PurePath(view.candidate.path).parent.parent
        return formatting.resume(head, str(where)), "goes on until the rest is decided"
    alone = not (view.arms or head.pairing or head.search)  # whose cells are in no suite's file
    if alone and commit:
        return (
            formatting.against(head, commit),
            "measures both interleaved, which stored runs cannot make up for",
        )
    return "", ""


def sides(base: RecordFile, candidate: RecordFile) -> list[tuple[str, list[str]]]:
    """('baseline', ['ref=main', 'commit abc1234']) of both: what the header of its run says."""
    made = []
    for name, file in (("baseline", base), ("candidate", candidate)):
        head = file.header
        differs = head.pairing.differs if head.pairing else ""
        commit = _commit(head.environment)
        made.append((name, [word for word in (differs, commit and f"commit {commit}") if word]))
    return made


def _commit(environment: dict[str, Any]) -> str:
    """'abc1234', with ' and uncommitted changes' where there are; '' where it is not known."""
    directory = environment.get("directory", {})
    commit = directory.get("commit") or ""
    return f"{commit[:12]}{' and uncommitted changes' * bool(commit and directory.get('dirty'))}"


def _table(
    title: str,
    rows: Sequence[Comparison],
    found: Sequence[Comparison],
    looks: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """As the page's other tables are; a verdict has its look, and sorts by its urgency."""
    made = templating.table(sections_compare.table(rows, found, title), {}, fold=False)
    for c, row in zip(rows, made["rows"], strict=True):
        urgency = str(list(looks).index(c.verdict))
        row[0] = replace(row[0], look=looks[c.verdict], sort=urgency)
        row[-1] = replace(row[-1], hint=sections_compare.meanings([c]).get(c.code, ""))
    return made
