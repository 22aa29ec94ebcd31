"""Comparisons in words and in order: what the terminal, Markdown and HTML say alike.

An effect is the change of the cost: of the time for a batch (latency) or for an image (images/s).
So above 0 is slower in every row, and the margin, the smallest detectable slowdown and the effect
can be read against each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gpubench import units
from gpubench.analysis.compare import compare
from gpubench.analysis.compare.aa_history import ENOUGH
from gpubench.analysis.compare.compare import View
from gpubench.analysis.compare.paired import of_one_session
from gpubench.analysis.compare.sequential_test import EARLY, FAR
from gpubench.analysis.compare.verdicts import CODES, VERDICTS, Comparison, caveat, exit_code
from gpubench.analysis.stats import repeats
from gpubench.analysis.summary import Summary, summarise
from gpubench.records.record import RecordFile
from gpubench.report import formatting
from gpubench.suite.types import Rule
from gpubench.units import significant

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
"""Of the columns of `row`."""

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
    """log(candidate / baseline) of the cost with its bounds: above 0 is slower."""
    return log_cost(c.ratio, c.low, c.high, c.metric.endswith("[ns]")) if c.ratio else None


def log_cost(
    ratio: float, low: float | None, high: float | None, latency: bool
) -> tuple[float, float | None, float | None]:
    """The same of a ratio of latencies, or of images/s, which are better when higher."""
    bounds = [math.log(v) if v else None for v in (low, high)]
    if latency:
        return math.log(ratio), bounds[0], bounds[1]
    worst, best = (None if v is None else -v for v in reversed(bounds))
    return -math.log(ratio), worst, best


def percent(share: float, half: float | None = None, *, signed: bool = False) -> str:
    """0.0534 -> '5.3 %', with as many decimals as a half-width of ``half`` supports.

    None where it is 10 % or more, else 1; 2 below 0.3 %, 3 below 0.03 %.
    """
    fitting = math.ceil(-math.log10(100 * half / 3)) if half else 1
    decimals = min(3, max(int(not half or half < 0.1), fitting))
    text = f"{100 * share:{'+' if signed else ''},.{decimals}f}"
    return f"{text.replace('-', '', 1) if float(text.replace(',', '')) == 0 else text} %"


def effect(c: Comparison) -> str:
    """'+5.3 % [+4.1, +6.6]', or '–' where there is none."""
    logs = cost(c)
    return formatting.NOTHING if logs is None else shares(*logs)


def shares(*logs: float | None) -> str:
    """(value, low, high) of logs of a cost: '+5.3 % [+4.1, +6.6]'."""
    value, low, high, half = _shares(*logs)
    if low is None or high is None:
        return percent(value, signed=True)
    ends = (percent(v, half, signed=True).removesuffix(" %") for v in (low, high))
    return f"{percent(value, half, signed=True)} [{', '.join(ends)}]"


def _shares(*logs: float | None) -> tuple[float, float | None, float | None, float | None]:
    """(effect, low, high, half-width) as shares: 0.05 is 5 % slower."""
    value, low, high = (None if v is None else math.expm1(v) for v in logs)
    half = None if low is None or high is None else (high - low) / 2
    return value or 0.0, low, high, half


def change(c: Comparison) -> str:
    """The end of a sentence: 'by 5.3 % (4.1 to 6.6 %)', or of a gain 'takes 5.3 % less time'."""
    logs = cost(c)
    if logs is None:
        return ""
    value, low, high, half = _shares(*logs)
    sign = 1 if value >= 0 else -1
    size = percent(sign * value, half)
    text = f"by {size}" if sign > 0 else f"takes {size} less time"
    if low is None or high is None:
        return text
    ends = sorted((sign * low, sign * high))
    return f"{text} ({percent(ends[0], half).removesuffix(' %')} to {percent(ends[1], half)})"


def values(c: Comparison) -> tuple[str, str]:
    """Baseline and candidate: ('1.234 ms', '1.300 ms'), or images/s: ('5,310/s', '5,301/s')."""
    latency = c.metric.endswith("[ns]")

    def shown(value: float | None) -> str:
        if value is None:
            return formatting.NOTHING
        return units.duration(value, 4) if latency else f"{significant(value, 4)}/s"

    return shown(c.baseline), shown(c.candidate)


def row(c: Comparison, *, pairs: bool) -> dict[str, str]:
    """One comparison as every table shows it; ``pairs``: those of an interleaved A/B."""
    base, candidate = values(c)
    found = {
        "verdict": c.verdict, "cell": c.label, "baseline": base, "candidate": candidate,
        "effect": effect(c),
    }  # fmt: skip
    if pairs:
        found["pairs"] = str(c.pairs) if c.pairs else formatting.NOTHING
        found["pair sd"] = (
            formatting.NOTHING if c.pair_sd is None else percent(c.pair_sd, c.pair_sd)
        )
    else:
        found["repeats"] = f"{c.n[0]}, {c.n[1]}"
    least = c.smallest_detectable
    found["finds"] = formatting.NOTHING if least is None else percent(least)
    return found


def why(c: Comparison) -> str:
    """'confirmed: slower than 2 % ...'."""
    return ": ".join(part for part in (c.code, c.reason) if part)


def sentence(c: Comparison) -> str:
    """'1.000 ms -> 1.052 ms, time +5.2 % [+4.1, +6.3] (95 %); 24 pairs, pair sd ...; reason'.

    Of the time, so + is slower in any metric; for formats that have one message for it.
    """
    if not c.ratio:
        return why(c)
    before, after = values(c)
    first, second = c.n
    several = ("" if first == second else f"{first} and ") + repeats(second)
    parts = [units.count(c.pairs, "pair") if c.pairs else several]
    if c.pair_sd is not None:
        parts.append(f"pair sd {percent(c.pair_sd, c.pair_sd)}")
    if c.smallest_detectable is not None:
        parts.append(f"would have found {percent(c.smallest_detectable)}")
    if c.p is not None:
        parts.append(f"p = {significant(c.p, 2)}")
    level = " (95 %)" if c.low is not None and c.high is not None else ""
    told = f"{before} -> {after}, time {effect(c)}{level}"
    return "; ".join(filter(None, (told, ", ".join(parts), why(c))))


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
    one = len(hit) == 1
    share = f"{len(hit)} of {units.count(len(rows), 'cell')} {'is' if one else 'are'}"
    first, more = hit[0], ":" if one else ", most of all"
    margin = f"within \u00b1{units.percentage(rule.delta)}"
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
    about = f"{first.label}: {first.reason}" if len(reasons) > 1 or one else first.reason
    return f"{worst}: {share} {words}{', such as' if len(reasons) > 1 else ':'} {about}"


def counts(found: Sequence[Comparison]) -> dict[str, int]:
    """Verdict -> cells, the most urgent first; only verdicts that occur."""
    return dict(Counter(c.verdict for c in ordered(found)))


def counted(found: Sequence[Comparison]) -> str:
    """'1 REGRESSED, 3 EQUIVALENT'."""
    return ", ".join(f"{n} {name}" for name, n in counts(found).items())


def folded(rows: Sequence[Comparison], rule: Rule) -> str:
    """One line in place of the unchanged rows."""
    worst = max(max(abs(v or 0.0) for v in (cost(c) or (0.0,))) for c in rows)
    cells, margin = units.count(len(rows), "cell"), units.percentage(rule.delta)
    return (
        f"{UNCHANGED}: {cells} unchanged within \u00b1{margin}; "
        f"no interval reaches beyond {percent(math.expm1(worst))}"
    )


def reach(found: Sequence[Comparison]) -> str:
    """What the comparison could have found."""
    least = [c.smallest_detectable for c in found if c.smallest_detectable is not None]
    if not least:
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
    if not pairs:
        return f"{text}. Two stored runs: the unit is the repeat, a fresh process."
    looks = ", ".join(map(str, rule.looks))
    return (
        f"{text}. Interleaved A/B: every pair counts, and a cell is looked at when it has {EARLY} "
        f"(for what is {math.exp(FAR):.2g}x beyond the margin in every pair), {looks} pairs; each "
        "look has its own share of alpha, so when measuring ends does not matter."
    )


def notes(found: Sequence[Comparison], rule: Rule, code: int | None = None) -> list[str]:
    """What must be said with every comparison; ``code``: the exit code, where it is another."""
    apart = any(c.code == "different-machine" for c in found)
    said = [reach(found), ALLOW if apart else "", rule_words(rule, pairs=paired(found)),
            caveat(found)]  # fmt: skip
    return [note for note in (*said, exit_words(found, code)) if note]


def meanings(found: Sequence[Comparison]) -> dict[str, str]:
    """Reason code -> what it means, of those that occur, the most urgent cell's first."""
    return {c.code: CODES[c.code] for c in ordered(found) if c.code in CODES}


def exit_words(found: Sequence[Comparison], code: int | None = None) -> str:
    """'Exit code 1: a confirmed regression.'."""
    own = exit_code(found)
    if code is not None and code != own:
        return f"Exit code {code}, as --fail-on has it; without it {own}: {EXIT[own]}."
    return f"Exit code {own}: {EXIT[own]}."
