"""Why scaling falls short, in words: one line for each shortfall, and its causes with evidence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gpubench.analysis.scaling.diagnosis import Cause, Diagnosis
from gpubench.report import formatting
from gpubench.units import count, percent

TITLE = "Why scaling falls short"
NOTE = (
    "Only shortfalls that the interval shows. The share says how much of the shortfall a cause "
    "explains, on the logarithmic scale; causes that overlap are scaled to the whole."
)
BUSY = "The machine was busy: what falls short may be the time that others took, and no scaling."
FOLD = 12
"""More of them start folded."""


def shown(found: Sequence[Diagnosis]) -> list[tuple[str, Diagnosis]]:
    """Those with a shortfall and their heads, the worst first.

    A head: 'openvino fp32 b8 x2 throughput (weak scaling): 78.1 % [76.0, 80.2] of the ideal'.
    """
    worst = sorted((d for d in found if not d.why_not), key=lambda d: d.efficiency.value or 0.0)
    several = len({d.summary.run for d in found}) > 1
    return [(f"{d.summary.run}: {_head(d)}" if several else _head(d), d) for d in worst]


def _head(d: Diagnosis) -> str:
    reached = formatting.full(d.efficiency, "fraction")
    flagged = formatting.flagged(d.summary, d.one, before=", ")
    return f"{d.summary.cell.label} ({d.kind} scaling): {reached} of the ideal{flagged}"


def lines(found: Sequence[Diagnosis]) -> list[str]:
    """One for each first cause: its cells, how far they get, and the evidence.

    Of a run whose machine was busy one for all, which says so.
    """
    several = len({d.summary.run for d in found}) > 1
    groups: dict[tuple[str, str], list[tuple[str, Diagnosis]]] = {}
    for head, d in shown(found):
        key = "busy" if d.summary.busy else d.causes[0].key if d.causes else ""
        groups.setdefault((d.summary.run if several else "", key), []).append((head, d))
    return [_line(*key, group) for key, group in groups.items()]


def _line(run: str, key: str, group: Sequence[tuple[str, Diagnosis]]) -> str:
    (head, first), *more = group
    if not more and key != "busy":
        causes = first.short if key != "unexplained" else ""
        return f"{head}: {'; '.join(filter(None, (causes, _first([first]))))}"
    many = ", ".join(map(str, sorted({d.summary.cell.replicas for _, d in group})))
    reach = _ranged([percent(d.efficiency.value or 0.0, 0) for _, d in group])
    text = f"{many} replicas reach {reach} of the ideal in {count(len(group), 'cell')}"
    text = f"{run}: {text}" if run else text
    if key != "busy":
        return f"{text}: {_first([d for _, d in group])}"
    told = [d for _, d in group if d.causes and d.causes[0].key != "unexplained"]
    why = f" ({_first(told)})" if told and len({d.causes[0].key for d in told}) == 1 else ""
    return f"{text}, on a busy machine{why}: no finding about scaling; measure it on an idle one."


def _first(found: Sequence[Diagnosis]) -> str:
    """The first evidence of the first cause, which they share."""
    return _ranged([d.causes[0].words.partition(";")[0] for d in found if d.causes])


_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def _ranged(texts: Sequence[str]) -> str:
    """'used 44.8 to 52.5 %' of texts that differ in numbers; the first of others, as the worst."""
    if len({_NUMBER.sub("0", text) for text in texts}) != 1:
        return f"{texts[0]}, in the worst" if texts else ""
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    ordered = [sorted(set(column), key=lambda n: float(n.replace(",", ""))) for column in columns]
    ends = iter([" to ".join(dict.fromkeys((c[0], c[-1]))) for c in ordered])
    return _NUMBER.sub(lambda _: next(ends), texts[0])


def note(found: Sequence[Diagnosis]) -> str:
    """`NOTE`, and whether the machine was busy."""
    return f"{NOTE} {BUSY}" if any(d.summary.busy for d in found) else NOTE


def sentence(cause: Cause) -> str:
    """Evidence and what to do: 'replica 1 .. below the others -> look at that device'."""
    return f"{cause.words} -> {cause.remedy}"


def lacks(d: Diagnosis) -> str:
    """'Not recorded: CPU clock.' or ''."""
    return f"Not recorded: {', '.join(d.not_recorded)}." if d.not_recorded else ""


def plain(found: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    """Every pair as JSON-able values, also those without a shortfall, with why."""
    return [
        {
            "run": d.summary.run, "cell": d.summary.key, "one": d.one.key, "scaling": d.kind,
            "efficiency": d.efficiency, "shown": not d.why_not, "why_not": d.why_not,
            "causes": d.causes, "not_recorded": d.not_recorded,
        }
        for d in found
    ]  # fmt: skip


def page(found: Sequence[Diagnosis]) -> dict[str, Any]:
    """What the page's section needs; {} where there is no shortfall."""
    items = [
        {
            "head": head, "lacks": lacks(d),
            "causes": [
                (c.name, "" if c.share is None else percent(c.share, 0), c) for c in d.causes
            ],
        }
        for head, d in shown(found)
    ]  # fmt: skip
    return {"title": TITLE, "note": note(found), "fold": FOLD, "list": items} if items else {}
