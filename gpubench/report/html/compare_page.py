"""What the page of a comparison says: the values that ``compare.html.j2`` lays out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from gpubench.analysis.compare.compare import View
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.charts import compare
from gpubench.report.sections import compare as sections_compare
from gpubench.units import percentage

OPEN = 6
"""Cells whose pairs are drawn at once; the others when they are opened."""

PATHS = {
    "circle": "M7 2a5 5 0 1 0 .01 0z", "square": "M2.5 2.5h9v9h-9z", "diamond": "M7 1l5 6-5 6-5-6z",
    "triangle-left": "M2 7l9.5-5v10z", "triangle-right": "M12 7L2.5 2v10z",
    "cross": "M5 2h4v3h3v4H9v3H5V9H2V5h3z",
}  # fmt: skip
"""Vega's shapes in a box of 14 x 14."""

HELP = {
    "verdict": "what the rule says of the cell", "cell": "the candidate's cell",
    "baseline": "median time of a batch, or images/s", "candidate": "the same of the candidate",
    "effect": "change of the time for a batch or an image: + is slower; 95 % interval; of an A/B "
    "from its pairs, so it may differ a little from what the two medians suggest",
    "pairs": "pairs of processes behind the effect", "repeats": "of baseline and candidate",
    "pair sd": "spread of the change over the pairs",
    "finds": "the slowdown that would have been found 95 times in 100",
    "why": "reason code and reason",
}  # fmt: skip
_NUMBERS = ("baseline", "candidate", "effect", "pairs", "repeats", "pair sd", "finds")


def context(view: View, drawn: dict[str, Any], code: int | None) -> dict[str, Any]:
    """Everything but the runs' own tables."""
    base, candidate, found, rule = view.base, view.candidate, view.rows, view.rule
    changed, unchanged = sections_compare.split(found)
    looks = [look | {"path": PATHS[look["shape"]]} for look in compare.legend(found)]
    by_name = {look["name"]: look for look in looks}
    lines = len(drawn["forest"]["points"])
    return {
        "title": f"{formatting.title([base, candidate])}: baseline against candidate",
        "headline": sections_compare.headline(found, rule, code), "looks": looks,
        "next": _decides(view),
        "notes": sections_compare.notes(found, rule, code), "sides": sides(base, candidate),
        "lines": lines, "unseen": len(found) - lines, "total": len(found),
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
    commit = _commit(view.base.header.environment.get("directory")).partition(" ")[0]
    if view.arms and any(c.verdict == "INCONCLUSIVE" for c in view.rows):
        where = PurePath(view.candidate.path).parent.parent
        return formatting.resume(head, str(where)), "goes on until the rest is decided"
    if not view.arms and commit:
        words = ["gpubench", "ab", head.suite.name, "--baseline-ref", commit]
        return shlex.join(words), "measures both interleaved, which stored runs cannot make up for"
    return "", ""


def sides(base: RecordFile, candidate: RecordFile) -> list[tuple[str, list[str]]]:
    """('baseline', ['ref=main', 'commit abc1234']) of both: what the header of its run says."""
    made = []
    for name, file in (("baseline", base), ("candidate", candidate)):
        head = file.header
        differs = head.pairing.differs if head.pairing else ""
        commit = _commit(head.environment.get("directory"))
        made.append((name, [word for word in (differs, commit and f"commit {commit}") if word]))
    return made


def _commit(directory: Any) -> str:
    """'abc1234', with ' and uncommitted changes' where there are; '' where it is not known."""
    commit = directory.get("commit") if isinstance(directory, dict) else None
    dirty = " and uncommitted changes" if commit and directory.get("dirty") else ""
    return f"{commit[:12]}{dirty}" if isinstance(commit, str) else ""


def _table(
    title: str,
    rows: Sequence[Comparison],
    found: Sequence[Comparison],
    looks: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """As the page's other tables are; a verdict has its look, and sorts by its urgency."""
    pairs = sections_compare.paired(found)
    names = [*_texts(found[0], pairs), "why"] if found else []
    columns = [
        {"name": n, "css": "num" if n in _NUMBERS else "word" if n == "verdict" else "wide",
         "help": HELP[n], "better": "", "unit": "", "group": 0} for n in names
    ]  # fmt: skip
    return {"title": title, "columns": columns, "groups": (), "more": (),
            "rows": [_row(c, pairs, looks) for c in rows]}  # fmt: skip


def _texts(c: Comparison, pairs: bool) -> dict[str, str]:
    """As `sections.compare.row`, but the effect comes first: a phone shows three columns."""
    row = sections_compare.row(c, pairs=pairs)
    return {name: row[name] for name in ("verdict", "cell", "effect")} | row


def _row(c: Comparison, pairs: bool, looks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    sort = {
        "verdict": str(list(looks).index(c.verdict)), "baseline": c.baseline,
        "candidate": c.candidate, "effect": (sections_compare.cost(c) or (None,))[0],
        "pairs": c.pairs,
        "repeats": sum(c.n), "pair sd": c.pair_sd, "finds": c.smallest_detectable,
    }  # fmt: skip
    made = []
    for name, text in _texts(c, pairs).items():
        main, bracket, aside = text.partition(" [")
        key = sort.get(name, text)
        made.append({"main": main, "aside": bracket.lstrip() + aside, "hint": "",
                     "sort": "" if key is None else str(key),
                     "look": looks[c.verdict] if name == "verdict" else None})  # fmt: skip
    meaning = sections_compare.meanings([c]).get(c.code, "")
    made.append({"main": c.reason or formatting.NOTHING, "aside": c.code, "hint": meaning,
                 "sort": sections_compare.why(c), "look": None})  # fmt: skip
    return made
