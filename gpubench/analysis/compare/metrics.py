"""What is judged beside speed: `gpubench.suite.gate`'s metrics, by what each one's chance is.

All metrics of all cells share one alpha. Speed keeps `SPEED_SHARE` of it, just as much as its first
rank test needs, so that its rule finds what it finds without them; the others that have a chance of
their own share the rest equally, and each shares its part among its cells (Holm 1979). What varies
from process to process (p99, memory, cold start) is tested as speed is, by `sequential_test`, on
its own differences; answers by the exact tests of `answers`; bytes are compared as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis import stats
from gpubench.analysis.compare import answers, sequential_test
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.analysis.summary import Summary
from gpubench.analysis.telemetry import number
from gpubench.records.record import ARTEFACT_BYTES, Record
from gpubench.suite.gate import METRICS
from gpubench.suite.types import Rule

SPEED_SHARE = 0.98
"""Of alpha. The look at nine pairs needs 2^-9 of the 40 % of a half of it: 97.7 % of 1 %."""
TITLES = {
    "p99": "p99 [ns]", "accuracy": "accuracy", "agreement": "agreement",
    "memory": "host memory [bytes]", "device_memory": "device memory [bytes]",
    "size": "artefact [bytes]", "cold_start": "cold start [ns]", "preparation": "preparation [ns]",
}  # fmt: skip
"""Metric -> `Comparison.metric`."""
TAIL, ENOUGH = 0.99, 100
"""Samples below which a process has no p99: fewer than one would lie beyond it."""
Pairs = Mapping[str, Sequence[sequential_test.Pair]]


class Cell(Struct, frozen=True):
    """Both sides of a cell that has a result on both."""

    row: Comparison
    """What is known of it: key and label."""
    sides: tuple[Summary, Summary]
    pairs: Sequence[tuple[Record, Record, sequential_test.Pair]] | None = None
    """Of an interleaved A/B, with what they say of speed; None: two stored runs."""


def rules(rule: Rule) -> dict[str, Rule]:
    """Metric -> the rule that judges it alone: its margin, and its share of alpha."""
    tested = [name for name, _ in rule.metrics if METRICS[name].noise != "none"]
    left = rule.alpha * (1 - SPEED_SHARE) / max(1, len(tested))
    speed = rule.alpha * (SPEED_SHARE if tested else 1.0)
    found = {"speed": replace(rule, metrics=(), alpha=speed)}
    for name, margin in rule.metrics:  # `Rule` has no margin of nothing, which only counts may have
        found[name] = replace(rule, metrics=(), alpha=left, delta=max(margin, 1e-12))
    return found


def value(name: str, r: Record) -> float | None:
    """Of one process (all replicas): ns or bytes; None where it has none."""
    if not r.replicas:
        return None
    if name == "p99":
        import numpy as np

        seen = r.latencies_ns()
        enough = r.cell.scenario == "latency" and len(seen) >= ENOUGH
        return stats.percentile(np.array(seen), TAIL) if enough else None
    if name == "memory":
        found: float | None = r.host_bytes()
    elif name == "device_memory":
        found = r.device_bytes()
    elif name == "size":
        found = number(r.facts, ARTEFACT_BYTES)
    elif name == "preparation":
        found = sum(r.prepare_ns.values())
    else:
        found = max(s.open_ns + s.first_inference_ns for s in r.replicas)
    return float(found) if found else None


def pairs(
    name: str, both: Sequence[tuple[Record, Record, sequential_test.Pair]]
) -> list[sequential_test.Pair]:
    """What pairs of processes say of a metric."""
    return [pair for _, pair in _measured(name, both)]


def _measured(
    name: str, both: Sequence[tuple[Record, Record, sequential_test.Pair]]
) -> list[tuple[tuple[float, float], sequential_test.Pair]]:
    """Of the pairs with a value on either side: these, and what they say."""
    found = []
    for base, candidate, speed in both:
        before, after = value(name, base), value(name, candidate)
        if before and after:
            d = math.log(after / before)
            turns = name == "p99"  # the others are had once a process: each arm has one turn
            pair = replace(speed, d=d) if turns else sequential_test.Pair(d=d, coarse=True)
            found.append(((before, after), pair))
    return found


def paired(rule: Rule) -> list[str]:
    """Metrics of ``rule`` that more pairs tell more of."""
    return [name for name, _ in rule.metrics if METRICS[name].noise == "pairs"]


def more(found: Mapping[str, Pairs], rule: Rule) -> dict[str, int]:
    """Cell -> pairs that would probably decide what is open of it beside speed.

    ``found``: metric -> cell -> pairs; cells without any are left out: more would have none either.
    """
    wanted: dict[str, int] = {}
    own = rules(rule)
    for name, cells in found.items():
        some = {key: each for key, each in cells.items() if each}
        for key, n in sequential_test.needs(some, own[name]).items():
            wanted[key] = max(n, wanted.get(key, 0))
    return wanted


def outlook(pair_s: Sequence[float], budget_s: float, rule: Rule) -> str:
    """`sequential_test.outlook`, and from how many pairs on a change of another metric shows."""
    own, names = rules(rule), paired(rule)
    text = sequential_test.outlook(pair_s, budget_s, own["speed"])
    able = [n for n in rule.looks if sequential_test.sharing(n, len(pair_s), own[names[0]])
            ] if names else []  # fmt: skip
    if able:
        has = int(budget_s / math.fsum(pair_s))
        text += f"; a change of {', '.join(names)} shows from {able[0]} pairs on"
        text += f", and the budget has {has} a cell" if has < able[0] else ""
    return text


def rows(cells: Sequence[Cell], rule: Rule) -> list[Comparison]:
    """A row for each metric and cell that has it, in the order of ``rule``."""
    own, found = rules(rule), list[Comparison]()
    for name, _ in rule.metrics:
        blank = [replace(c, row=replace(c.row, judged=name, metric=TITLES[name])) for c in cells]
        if name == "p99":
            blank = [c for c in blank if {s.cell.scenario for s in c.sides} == {"latency"}]
        if name == "device_memory":
            blank = [c for c in blank if "cuda" in {s.cell.device for s in c.sides}]
        judge: Callable[[Sequence[Cell], Rule], list[Comparison]]
        judge = {"pictures": _pictures, "none": _exact, "pairs": _noisy}[METRICS[name].noise]
        found += judge(blank, own[name])
    return found


# ------------------------------------------------------------------------------ answers


def _pictures(cells: Sequence[Cell], rule: Rule) -> list[Comparison]:
    """Accuracy or agreement, from the same pictures."""
    return of_pictures([Pictured.of(cell) for cell in cells], rule)


def of_pictures(tests: Sequence[Pictured], rule: Rule) -> list[Comparison]:
    """One metric of all cells, which are one family in both directions (Holm 1979)."""
    asked = [t for t in tests if t.found]
    level = rule.alpha / (2 * max(1, len(asked)))
    corrected = iter(stats.holm_both([t.chances(rule.delta, level) for t in asked]))
    return [t.judged(rule, *next(corrected)) if t.found else t.row for t in tests]


class Pictured(Struct, frozen=True):
    """What both arms answered, of one cell."""

    row: Comparison
    """With its verdict where there is nothing to test."""
    found: answers.Changes | None

    @classmethod
    def of(cls, cell: Cell) -> Pictured:
        """From the records of both sides."""
        both = [s.parity.answers if s.parity else None for s in cell.sides]
        sides = zip(("baseline", "candidate"), both, strict=True)
        lacking = [name for name, given in sides if given is None]
        before, after = both
        if before is None or after is None:
            reason = f"no record of the answers of the {' and the '.join(lacking)}"
            return cls(cell.row.told("INCONCLUSIVE", "no-answers", reason), None)
        held = [next((r.contents["images"] for r in s.records if "images" in r.contents), "")
                for s in cell.sides]  # fmt: skip
        if all(held) and held[0] != held[1]:
            reason = "differs: what the images hold (SHA-256)"
            return cls(cell.row.told("INCOMPARABLE", "other-pictures", reason), None)
        if (found := answers.changes(before, after)) is None:
            reason = "differs: the pictures, their labels, or the number of classes"
            return cls(cell.row.told("INCOMPARABLE", "other-pictures", reason), None)
        if cell.row.judged == "accuracy" and not found.labelled:
            reason = "no picture has a label that counts"
            return cls(cell.row.told("INCONCLUSIVE", "no-answers", reason), None)
        return cls(cell.row, found)

    def chances(self, margin: float, level: float) -> tuple[float, float]:
        """p of 'not worse', and of 'not better', than the margin; ``level``: of one such test."""
        f = self.found
        if f is None or not f.changed:
            return 1.0, 1.0
        if self.row.judged == "agreement":
            return answers.p_more(f.changed, f.asked, margin), 1.0
        worse, better = (f.lost, f.gained), (f.gained, f.lost)
        first, second = (
            answers.p_lost(*each, f.labelled, margin, level) for each in (worse, better)
        )
        return first, second

    def judged(self, rule: Rule, worse: float, better: float) -> Comparison:
        """``worse``, ``better``: its `chances`, corrected over all cells."""
        f = self.found
        if f is None:
            return self.row
        agreement = self.row.judged == "agreement"
        n = f.asked if agreement else f.labelled
        if agreement:
            shares = (1.0, 1 - f.changed / n)
            ends = [-x for x in reversed(stats.exact_bounds(f.changed, n, 0.025))]
        else:
            shares = (f.correct[0] / n, f.correct[1] / n)
            ends = list(answers.interval(f.lost, f.gained, n))
        if not f.changed:
            ends = [0.0, 0.0]
        row = replace(self.row, baseline=shares[0], candidate=shares[1], n=(n, n),
                      difference=shares[1] - shares[0], low=ends[0], high=ends[1],
                      changed=(f.changed, f.asked))  # fmt: skip
        if not f.changed:
            return row.told("EQUIVALENT", "identical", f"all {f.asked:,} answers are the same")
        seen = f"{f.changed:,} of {f.asked:,} answers changed"
        if not agreement:
            seen += f": {f.lost:,} right before, {f.gained:,} right now"
        margin = f"{100 * rule.delta:.3g} point{'' if rule.delta == 0.01 else 's'}"
        p = min(worse, better)
        if p < rule.alpha:
            verdict = "REGRESSED" if worse <= better else "IMPROVED"
            return replace(row.told(verdict, "confirmed", f"{seen}, beyond {margin}"), p=p)
        if -rule.delta < ends[0] and ends[1] < rule.delta:
            reason = f"{seen}: interval inside \u00b1{margin}"
            return row.told("EQUIVALENT", "inside-margin", reason)
        reason = f"{seen}: too few pictures to tell \u00b1{margin} (policy.accuracy_images)"
        return row.told("INCONCLUSIVE", "few-pictures", reason)


# ------------------------------------------------------------------------------ bytes and times


def _exact(cells: Sequence[Cell], rule: Rule) -> list[Comparison]:
    """By the two numbers themselves: an artefact's bytes, and what making it took, if made once."""
    found = []
    for cell in cells:
        name = cell.row.judged
        first, second = ([v for r in s.timed if (v := value(name, r))] for s in cell.sides)
        if not first and not second and name == "preparation":
            found.append(cell.row.told("EQUIVALENT", "identical", "nothing is prepared"))
            continue
        if not first or not second:
            found.append(_unknown(cell.row))
            continue
        before, after = first[-1], second[-1]
        row = replace(cell.row, baseline=before, candidate=after, ratio=after / before, n=(1, 1))
        if before == after:
            same = "the same artefact" if name == "preparation" else "equal"
            found.append(row.told("EQUIVALENT", "identical", same))
        elif name == "preparation":
            reason = "made once in each arm: one time says nothing of its noise"
            found.append(row.told("INCONCLUSIVE", "once", reason))
        elif abs(math.log(after / before)) > math.log1p(rule.delta):
            verdict = "REGRESSED" if after > before else "IMPROVED"
            reason = f"{after - before:+,.0f} bytes, beyond {units.percentage(rule.delta)}"
            found.append(row.told(verdict, "confirmed", reason))
        else:
            reason = f"{after - before:+,.0f} bytes, inside \u00b1{units.percentage(rule.delta)}"
            found.append(row.told("EQUIVALENT", "inside-margin", reason))
    return found


def _unknown(row: Comparison) -> Comparison:
    lacking = "not recorded on both sides"
    if row.judged == "p99":
        lacking = f"fewer than {ENOUGH} batches in a process: lengthen policy.duration_s"
    return row.told("INCONCLUSIVE", "no-figure", lacking)


def _noisy(cells: Sequence[Cell], rule: Rule) -> list[Comparison]:
    """What varies from process to process."""
    had = {str(n): _measured(c.row.judged, c.pairs) for n, c in enumerate(cells) if c.pairs}
    cases = {key: [pair for _, pair in each] for key, each in had.items() if each}
    said = sequential_test.judge(cases, rule)
    stored = _stored([c for c in cells if c.pairs is None], rule)
    made = []
    for n, cell in enumerate(cells):
        if cell.pairs is None:
            made.append(stored[id(cell)])
        elif verdict := said.get(str(n)):
            row = of_pairs(cell.row, verdict, [values for values, _ in had[str(n)]])
            if row.judged.endswith("memory"):
                words = row.reason.replace("x slower ", "x more ").replace("x faster ", "x less ")
                row = replace(row, reason=words)
            made.append(row)
        else:
            made.append(_unknown(cell.row))
    return made


def of_pairs(
    row: Comparison,
    said: sequential_test.Verdict,
    values: Sequence[tuple[float | None, float | None]],
    sign: int = 1,
) -> Comparison:
    """``row`` with what is said of the pairs, and the median of both arms' ``values`` over those
    that it rests on. ``sign``: -1 of images/s, since the effect is one of cost."""
    row = replace(
        row.told(said.verdict, said.code, said.reason), p=said.p, n=(said.pairs, said.pairs),
        pairs=said.pairs, pair_sd=said.pair_sd, smallest_detectable=said.smallest_detectable,
    )  # fmt: skip
    if not said.pairs:
        return row
    before, after = (
        math.exp(median(math.log(v) for v in side if v))
        for side in zip(*values[: said.pairs], strict=True)
    )
    if said.effect is None:
        return replace(row, baseline=before, candidate=after, ratio=after / before)
    bounds = sorted(math.exp(sign * bound) for bound in said.effect.interval() or ())
    low, high = bounds or (None, None)
    return replace(row, baseline=before, candidate=after, low=low, high=high,
                   ratio=math.exp(sign * said.effect.value))  # fmt: skip


def of_repeats(
    row: Comparison, sides: Sequence[Sequence[float]], ratio: stats.LogRatio
) -> Comparison:
    """``row`` with the means of both sides' repeats, and their ``ratio``."""
    (before, after), e = map(stats.geometric_mean, sides), ratio.estimate()
    return replace(row, baseline=before.value, candidate=after.value, ratio=e.value, low=e.low,
                   high=e.high, n=ratio.n)  # fmt: skip


def _stored(cells: Sequence[Cell], rule: Rule) -> dict[int, Comparison]:
    """Of two stored runs: memory, which has little to do with the session; of times nothing."""
    costs: dict[int, stats.LogRatio] = {}
    rows = {id(cell): _unknown(cell.row) for cell in cells}
    for cell in cells:
        had = [{r.repeat: v for r in s.timed if (v := value(cell.row.judged, r))}
               for s in cell.sides]  # fmt: skip
        if all(had):
            before, after = (list(values.values()) for values in had)
            first, second = (stats.of_pilot(values, s.pilot)
                             for values, s in zip(had, cell.sides, strict=True))  # fmt: skip
            cost = stats.welch(before, after, (first, second))
            costs[id(cell)], rows[id(cell)] = cost, of_repeats(cell.row, (before, after), cost)
    margin, told = math.log1p(rule.delta), units.percentage(rule.delta)
    chances = stats.holm_both([cost.p_either_way(margin) for cost in costs.values()])
    for (at, cost), (worse, better) in zip(costs.items(), chances, strict=True):
        row, bounds, p = rows[at], cost.interval(), min(worse, better)
        if not row.judged.endswith("memory"):
            rows[at] = row.told("INCONCLUSIVE", "no-history", "of two stored runs; use an A/B")
        elif bounds is None:
            rows[at] = row.told("INCONCLUSIVE", "few-repeats", "1 repeat: no interval")
        elif p < rule.alpha:
            verdict = "REGRESSED" if worse < better else "IMPROVED"
            rows[at] = replace(row.told(verdict, "confirmed", f"beyond {told}"), p=p)
        elif -margin < bounds[0] and bounds[1] < margin:
            rows[at] = row.told("EQUIVALENT", "inside-margin", f"interval inside \u00b1{told}")
        else:
            reason = f"the interval reaches across \u00b1{told}"
            rows[at] = row.told("INCONCLUSIVE", "wide-interval", reason)
    return rows
