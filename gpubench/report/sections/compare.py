"""Comparisons in words and in order: what the terminal, Markdown and HTML say alike.

An effect is the change of the cost: of the time for a batch (latency) or for an image (images/s).
So above 0 is slower in every row, and the margin, the smallest detectable slowdown and the effect
can be read against each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpubench import units
from gpubench.analysis.compare import compare, metrics
from gpubench.analysis.compare.aa_history import ENOUGH
from gpubench.analysis.compare.compare import View
from gpubench.analysis.compare.paired import of_one_session
from gpubench.analysis.compare.sequential_test import EARLY, FAR
from gpubench.analysis.compare.verdicts import CODES, VERDICTS, Comparison, caveat, exit_code
from gpubench.analysis.stats import repeats
from gpubench.analysis.summary import Summary, summarise
from gpubench.analysis.tables.table import Amount, Column, Table
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.report.formatting import percent as percent  # of every number here
from gpubench.suite import gate
from gpubench.suite.types import Rule

UNCHANGED = "EQUIVALENT"
"""Rows of this verdict are folded into one line with their count."""

EXIT = {
    0: "pass",
    1: "a confirmed regression",
    3: "inconclusive or incomparable: neither a change nor its absence is shown",
    4: "cells are missing, or failed",
}
"""What the exit codes of a comparison mean; 2 is bad input."""

LEGEND = (
    "effect: change of the time for a batch or an image, with its 95 % interval, + is slower; "
    "of an A/B it comes from the pairs, so its sign may differ from that of the two medians; "
    "finds: the slowdown that would have been found 95 times in 100; baseline, candidate: median "
    "time of a batch, or images/s where it ends in /s"
)
"""Of the columns of `table`."""

NEEDS_HISTORY = (
    f"two stored runs do so only beyond what {ENOUGH} A/A sessions or more of this machine and "
    "suite have shown, and gpubench selftest SUITE keeps such sessions"
)
ALLOW = (
    "Measure both runs on the same kind of machine; or, where what differs is what you compare, "
    "name it: --allow-different KEY, such as libraries.torch or libraries."
)

_ORDER = {name: at for at, name in enumerate(VERDICTS)}


def arms(files: Sequence[RecordFile]) -> tuple[RecordFile, RecordFile] | None:
    """(baseline, candidate) when ``files`` are the two arms of one interleaved A/B."""
    by_arm = {f.header.pairing.arm: f for f in files if f.header.pairing}
    if len(files) != 2 or len(by_arm) != 2 or not of_one_session(*files):
        return None
    return by_arm["baseline"], by_arm["candidate"]


def view(files: Sequence[RecordFile]) -> tuple[list[Summary], View | None]:
    """The cells of ``files``, summarised once, and of the two arms of an A/B the comparison."""
    summaries, sides = summarise(files), arms(files)
    return summaries, compare.view(*sides, summaries) if sides else None


def paired(found: Sequence[Comparison]) -> bool:
    """Whether an interleaved A/B is behind them, and not two stored runs."""
    return any(c.interleaved for c in found)


def ordered(found: Sequence[Comparison]) -> list[Comparison]:
    """Worst first: by verdict, then the largest slowdown; without an effect last."""

    def rank(c: Comparison) -> tuple[int, float]:
        effect = cost(c)
        return _ORDER[c.verdict], -effect[0] if effect else math.inf

    return sorted(found, key=rank)


def split(found: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """(what needs a look, what is unchanged), each worst first."""
    rows = ordered(found)
    changed = [c for c in rows if c.verdict != UNCHANGED]
    return changed, [c for c in rows if c.verdict == UNCHANGED]


def cost(c: Comparison) -> tuple[float, float | None, float | None] | None:
    """log(candidate / baseline) of the cost with its bounds: above 0 is slower, or more."""
    return log_cost(c.ratio, c.low, c.high, c.metric.endswith("]")) if c.ratio else None


def log_cost(
    ratio: float, low: float | None, high: float | None, less_is_better: bool
) -> tuple[float, float | None, float | None]:
    """The same of a ratio of latencies or bytes, or of images/s, which are better when higher."""
    bounds = [math.log(v) if v else None for v in (low, high)]
    if less_is_better:
        return math.log(ratio), bounds[0], bounds[1]
    worst, best = (None if v is None else -v for v in reversed(bounds))
    return -math.log(ratio), worst, best


def effect(c: Comparison) -> str:
    """'+5.3 % [+4.1, +6.6]', '-1.5 points [-2.3, -0.8]', or '–' where there is none."""
    return formatting.full(change_of(c), "amount")


def change_of(c: Comparison) -> Amount | None:
    """Of its cost, or in points; None where there is no effect."""
    if c.difference is not None:
        return Amount(c.difference, "points", c.low, c.high)
    logs = cost(c)
    return None if logs is None else share(*logs)


def share(value: float, low: float | None, high: float | None) -> Amount:
    """Of logs of a cost: 0.05 is 5 % slower."""
    ends = (None if v is None else math.expm1(v) for v in (low, high))
    return Amount(math.expm1(value), "change", *ends)


def change(c: Comparison) -> str:
    """The end of a sentence: 'by 5.3 % [4.1, 6.6]', or of a gain 'takes 5.3 % less time [..]'."""
    size = change_of(c)
    if size is None:
        return ""
    return f"by {_size(size)}" if size.value >= 0 else f"takes {_size(size, ' less time')}"


def _size(of: Amount, words: str = "") -> str:
    """Without its sign: '5.3 % [4.1, 6.6]'."""
    if of.value < 0:
        ends = (None if v is None else -v for v in (of.high, of.low))
        of = Amount(-of.value, of.unit, *ends)
    return formatting.show(of, "amount").words(words).replace("+", "")


def amount(c: Comparison, value: float | None) -> Amount | None:
    """The baseline's or the candidate's, in the unit of its metric."""
    bracket = c.metric.partition("[")[2].removesuffix("]")
    unit = bracket or ("share" if gate.METRICS[c.judged].points else "images/s")
    return None if value is None else Amount(value, unit)


_COLUMNS = (
    Column("verdict", help="what the rule says of the row"),
    Column("cell", help="the candidate's cell"),
    Column("metric", help="what is judged"),
    Column("effect", "amount", help="change of the time for a batch or an image: + is slower; of "
           "others, of bytes or time; 95 % interval; of an A/B from its pairs, so it may differ a "
           "little from what the two medians suggest"),
    Column("baseline", "amount", help="median time of a batch, or images/s; or what else is "
           "judged"),
    Column("candidate", "amount", help="the same of the candidate"),
    Column("pairs", "count", help="pairs of processes behind the effect"),
    Column("repeats", "count", help="of baseline and candidate"),
    Column("pair sd", "spread", help="spread of the change over the pairs"),
    Column("finds", "spread", help="the slowdown that would have been found 95 times in 100"),
    Column("why", help="reason code and reason"),
)  # fmt: skip


def table(rows: Sequence[Comparison], found: Sequence[Comparison], title: str = "Cells") -> Table:
    """Some ``rows`` of all that were ``found``: the one layout of verdicts, for every report."""
    left = {"repeats"} if paired(found) else {"pairs", "pair sd"}
    left |= set() if several(found) else {"metric"}
    columns = tuple(c for c in _COLUMNS if c.name not in left)
    body = [_row(c) for c in rows]
    return Table(title, columns, [[each[c.name] for c in columns] for each in body], [])


def _row(c: Comparison) -> dict[str, Any]:
    return {
        "verdict": c.verdict, "cell": c.label, "metric": metric(c), "effect": change_of(c),
        "baseline": amount(c, c.baseline), "candidate": amount(c, c.candidate),
        "pairs": c.pairs or None, "repeats": f"{c.n[0]}, {c.n[1]}", "pair sd": c.pair_sd,
        "finds": c.smallest_detectable, "why": why(c),
    }  # fmt: skip


def texts(rows: Sequence[Comparison], found: Sequence[Comparison]) -> list[dict[str, str]]:
    """The rows of `table` in words, by column."""
    made = table(rows, found)
    return [
        {c.name: formatting.full(v, c.unit) for c, v in zip(made.columns, row, strict=True)}
        for row in made.rows
    ]


def several(found: Sequence[Comparison]) -> bool:
    """Whether more than speed is judged."""
    return any(c.judged != "speed" for c in found)


def name(c: Comparison) -> str:
    """Of a row: the cell's label, with what is judged unless that is speed."""
    return c.label if c.judged == "speed" else f"{c.label}, {metric(c)}"


def metric(c: Comparison) -> str:
    """'p50', 'host memory'."""
    return c.metric.partition(" [")[0]


def why(c: Comparison) -> str:
    """'confirmed: slower than 2 % ...'."""
    return ": ".join(part for part in (c.code, c.reason) if part)


def sentence(c: Comparison) -> str:
    """'1.000 ms -> 1.052 ms, time +5.2 % [+4.1, +6.3] (95 %); 24 pairs, pair sd ...; reason'.

    Of the time, so + is slower in any metric; for formats that have one message for it.
    """
    if not c.ratio and c.difference is None:
        return why(c)
    before, after = (formatting.full(amount(c, v), "amount") for v in (c.baseline, c.candidate))
    first, second = c.n
    apart = ("" if first == second else f"{first} and ") + repeats(second)
    parts = [units.count(c.pairs, "pair") if c.pairs else apart if c.ratio else ""]
    if c.pair_sd is not None:
        parts.append(f"pair sd {percent(c.pair_sd, c.pair_sd)}")
    if c.smallest_detectable is not None:
        parts.append(f"would have found {percent(c.smallest_detectable)}")
    if c.p is not None:
        parts.append(f"p = {c.p:.2g}")
    level = " (95 %)" if c.low is not None and c.high is not None else ""
    what = "time" if c.judged == "speed" else metric(c)
    told = f"{before} -> {after}, {what} {effect(c)}{level}"
    return "; ".join(filter(None, (told, ", ".join(filter(None, parts)), why(c))))


def phrase(c: Comparison) -> str:
    """'5.1 % [4.2, 6.0] slower', '3 of 1,000 answers changed (undecided)'; '' of no change."""
    size = change_of(c)
    if size is None or c.verdict == UNCHANGED:
        return ""
    open_ = " (undecided)" if c.verdict == "INCONCLUSIVE" else ""
    if c.changed and (c.judged == "agreement" or open_):
        return f"{c.changed[0]:,} of {c.changed[1]:,} answers changed{open_}"
    more = size.value < 0 if size.unit == "points" else size.value > 0
    return f"{_size(size)} {gate.METRICS[c.judged].words[not more]}{open_}"


def headline(found: Sequence[Comparison], rule: Rule, code: int | None = None) -> str:
    """The verdict on the whole, in one sentence; it leads with what decides the exit code.

    ``code``: the exit code, where --fail-on made it another one.
    """
    if not found:
        return "MISSING: the two runs have nothing to compare"
    rows = ordered(found)
    worst = rows[0].verdict
    if code == 1 and worst != "REGRESSED":  # only --fail-on improved makes it so
        worst = "IMPROVED"
    hit = [c for c in rows if c.verdict == worst]
    one, mixed = len(hit) == 1, several(rows)
    what = "verdict" if mixed else "cell"
    share = f"{len(hit)} of {units.count(len(rows), what)} {'is' if one else 'are'}"
    first, more = hit[0], ":" if one else ", most of all"
    margin = within(rule, mixed)
    if mixed and worst in ("REGRESSED", "IMPROVED"):
        own = [c for c in rows if (c.key, c.baseline_key) == (first.key, first.baseline_key)]
        *said, last = [words for c in own if (words := phrase(c))]
        told = f"{', '.join(said)} and {last}" if said else last
        how = "worse" if worst == "REGRESSED" else "better"
        start = worst if worst == "REGRESSED" or code else "PASS"
        return f"{start}: {share} {how}{more} {first.label}: {told}"
    if worst == "REGRESSED":
        return f"{worst}: {share} slower{more} {first.label} {change(first)}"
    if worst == "IMPROVED":
        best = hit[-1]
        alike = {c.verdict for c in rows} == {worst, UNCHANGED}
        rest = f"; the others are unchanged {margin}" if alike else ""
        return (
            f"{worst if code else 'PASS'}: {share} faster{more} {best.label} {change(best)}{rest}"
        )
    if worst == UNCHANGED:
        return f"PASS: {share} unchanged {margin}"
    words = {"MISSING": "missing or failed", "INCOMPARABLE": "not comparable",
             "INCONCLUSIVE": "undecided"}[worst]  # fmt: skip
    reasons = {c.reason for c in hit}
    if clear := [c for c in hit if c.code == "unconfirmed"]:
        first = max(clear, key=lambda c: abs((cost(c) or (0.0,))[0]))
    about = f"{name(first)}: {first.reason}" if len(reasons) > 1 or one else first.reason
    return f"{worst}: {share} {words}{', such as' if len(reasons) > 1 else ':'} {about}"


def within(rule: Rule, mixed: bool) -> str:
    """'within ±2 %'."""
    return "each within its margin" if mixed else f"within \u00b1{units.percentage(rule.delta)}"


def counts(found: Sequence[Comparison]) -> dict[str, int]:
    """Verdict -> cells, the most urgent first; only verdicts that occur."""
    return dict(Counter(c.verdict for c in ordered(found)))


def counted(found: Sequence[Comparison]) -> str:
    """'1 REGRESSED, 3 EQUIVALENT'."""
    return ", ".join(f"{n} {name}" for name, n in counts(found).items())


def folded(rows: Sequence[Comparison], rule: Rule) -> str:
    """One line in place of the unchanged rows."""
    if several(rows):
        names = ", ".join(dict.fromkeys(map(metric, rows)))
        many = units.count(len(rows), "verdict")
        return f"{UNCHANGED}: {many} of {names}, {within(rule, True)}"
    worst = max(max(abs(v or 0.0) for v in (cost(c) or (0.0,))) for c in rows)
    return (
        f"{UNCHANGED}: {units.count(len(rows), 'cell')} unchanged {within(rule, False)}; "
        f"no interval reaches beyond {percent(math.expm1(worst))}"
    )


def reach(found: Sequence[Comparison]) -> str:
    """What the comparison could have found, of speed."""
    found = [c for c in found if c.judged == "speed"]
    least = [c.smallest_detectable for c in found if c.smallest_detectable is not None]
    if not least:
        if paired(found) and any(c.verdict in ("REGRESSED", "IMPROVED") for c in found):
            return "From so few pairs it cannot be said how small a slowdown would have been found."
        text = "It could not have confirmed a slowdown of any size, in any cell"
        judged = any(c.verdict not in ("MISSING", "INCOMPARABLE") for c in found)
        return f"{text}: {NEEDS_HISTORY}." if judged and not paired(found) else f"{text}."
    low, high = percent(min(least)), percent(max(least))
    blind = len(found) - len(least)
    size = low if low == high else f"{low} (best cell) to {high} (worst cell)"
    text = f"It would have found a slowdown of {size} 95 times in 100"
    return f"{text}; {blind} of {len(found)} cells could not show any." if blind else f"{text}."


def rule_words(rule: Rule, *, pairs: bool) -> str:
    """The rule in a sentence."""
    text = (
        f"Rule: changes within \u00b1{units.percentage(rule.delta)} do not matter (delta); the "
        "chance of any false alarm in the whole comparison is at most "
        f"{units.percentage(rule.alpha)} (alpha)"
    )
    if rule.metrics:
        own = metrics.rules(rule)
        text += (
            f". Beside speed: {', '.join(_margin(*each) for each in rule.metrics)}; of alpha speed "
            f"has {units.percentage(own['speed'].alpha)}, the others share the rest; their effect: "
            "+ is more, of answers in percentage points"
        )
    if not pairs:
        return f"{text}. Two stored runs: the unit is the repeat, a fresh process."
    looks = ", ".join(map(str, rule.looks))
    return (
        f"{text}. Interleaved A/B: every pair counts, and a cell is looked at when it has {EARLY} "
        f"(for what is {math.exp(FAR):.2g}x beyond the margin in every pair), {looks} pairs; each "
        "look has its own share of alpha, so when measuring ends does not matter."
    )


def _margin(name: str, margin: float) -> str:
    points = gate.METRICS[name].points
    return f"{name} \u00b1{f'{100 * margin:.6g} points' if points else units.percentage(margin)}"


def notes(found: Sequence[Comparison], rule: Rule, code: int | None = None) -> list[str]:
    """What must be said with every comparison; ``code``: the exit code, where it is another."""
    apart = any(c.code == "different-machine" for c in found)
    said = [reach(found), ALLOW if apart else "", rule_words(rule, pairs=paired(found)),
            caveat(found)]  # fmt: skip
    return [note for note in (*said, exit_words(found, code)) if note]


def unjudged(view: View) -> str:
    """What the first pair's answers differ in, where nobody asked for a verdict on it; ''."""
    if not dict(view.rule.metrics).keys().isdisjoint(("accuracy", "agreement")):
        return ""
    seen = [r.changed.pictures for s in view.sides()[1].values() for r in s.records if r.changed]
    if not seen:
        return ""
    cells, most = units.count(len(seen), "cell"), units.count(max(seen), "picture")
    return f"Not judged: {cells} gave other answers, to up to {most} (--metric accuracy,agreement)."


def meanings(found: Sequence[Comparison]) -> dict[str, str]:
    """Reason code -> what it means, of those that occur, the most urgent cell's first."""
    return {c.code: CODES[c.code] for c in ordered(found) if c.code in CODES}


def exit_words(found: Sequence[Comparison], code: int | None = None) -> str:
    """'Exit code 1: a confirmed regression.'."""
    own = exit_code(found)
    if code is not None and code != own:
        return f"Exit code {code}, as --fail-on has it; without it {own}: {EXIT[own]}."
    return f"Exit code {own}: {EXIT[own]}."
