"""Two record files -> one verdict per cell.

The two arms of an interleaved A/B are judged from their pairs (`paired`). Two stored runs
confound the session with the code: they need equal machines, and the alarm limit comes from how
much sessions of unchanged code have differed there (`aa_history`). Without such a history a change
is a warning at most. Either way the test is against a margin, not against zero, and corrected for
the number of cells (Holm 1979).

Of stored runs the unit is the repeat; the difference is Welch's on logs of the repeat values, with
the variances of the pilots where these fixed the numbers of repeats (with those of all repeats, a
one-sided test at 1 % alarms in up to 2.6 % of identical cells, with the pilots' in 1.0 %).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gpubench.analysis import stats
from gpubench.analysis.compare import aa_history, metrics, paired
from gpubench.analysis.compare.verdicts import MACHINE, UNSTEADY, Comparison, failures, lost
from gpubench.analysis.summary import UNTRIED, Summary, run_names, summarise
from gpubench.errors import InputError
from gpubench.machine import environment
from gpubench.records.record import RecordFile
from gpubench.suite import gate
from gpubench.suite.types import Rule
from gpubench.units import percent, percentage

POWER = 0.95


def compare(base: RecordFile, candidate: RecordFile, **given: Any) -> list[Comparison]:
    """The rows of `view`, for who needs nothing else of the two runs."""
    return view(base, candidate, **given).rows


class View(Struct, frozen=True, kw_only=True):
    """Two runs, compared: what every report of them shows is in here, computed once."""

    base: RecordFile
    candidate: RecordFile
    summaries: list[Summary]
    """Of both; each is called as `run_names` has it."""
    rule: Rule
    """The one that gave the verdicts."""
    rows: list[Comparison]
    arms: paired.Arms | None = None
    """Of the arms of one A/B: its pairs."""

    def sides(self) -> tuple[dict[str, Summary], dict[str, Summary]]:
        """Cell key -> summary, of either run."""
        return _sides(self.base, self.candidate, self.summaries)


def view(
    base: RecordFile,
    candidate: RecordFile,
    summaries: list[Summary] | None = None,
    *,
    delta: float | None = None,
    alpha: float | None = None,
    allow_different: Sequence[str] = (),
    history: Sequence[RecordFile] = (),
    judged: Sequence[str] = (),
) -> View:
    """Compare every cell that either file planned; cells that neither could measure are left out.

    Of a search only the cells that both measured count: it chose what to measure.

    ``delta`` is the margin (0.02: changes within 2 % do not matter), ``alpha`` the chance of any
    false REGRESSED or IMPROVED over the whole suite; an A/B has its own, others get `Rule`'s.
    ``allow_different`` names parts of the environment ('libraries.torch', 'libraries') that may
    differ between two stored runs; InputError for one that no environment has. ``history``: A/A
    sessions; those of another machine than the baseline's, and the two runs themselves, do not
    count. ``summaries``: of both runs, in any order, where they are at hand. ``judged``: words of
    ``--metric``; else what the candidate's suite says.
    """
    summaries = summarise([base, candidate]) if summaries is None else summaries
    before, after = _sides(base, candidate, summaries)
    if paired.of_one_session(base, candidate):
        arms = paired.join(base, candidate, before, after, delta, alpha, judged)
        return View(base=base, candidate=candidate, summaries=summaries, rule=arms.rule,
                    rows=arms.rows(), arms=arms)  # fmt: skip
    rule = gate.rule(candidate.header.suite.gate, judged, delta, alpha)
    delta, alpha = rule.delta, metrics.rules(rule)["speed"].alpha
    apart = machine_differences(base, candidate, allow_different)
    sessions = aa_history.by_cell(_normal(history, base, candidate))
    limits = aa_history.limits(sessions)
    searched = any(f.header.search for f in (base, candidate))
    found: list[Comparison] = []
    tested: dict[int, _Test] = {}
    for key in dict.fromkeys([*before, *after]):
        b, c = before.get(key), after.get(key)
        if not any(s and (s.ranked or s.status.startswith(("failed", "missing"))) for s in (b, c)):
            continue  # skipped on both sides, or on one and never planned on the other
        if searched and any(s is None or s.status in UNTRIED for s in (b, c)):
            continue
        test = _test(b, c, limits.get(key))
        row = _measured(c or before[key], b, c, test)
        if row.code == "not-planned":
            row = replace(row, reason=row.reason + _namesake(b or c, after if b else before))
        if not row.verdict:
            row = _apart(row, apart)
        if test and not row.verdict:
            tested[len(found)] = test
        found.append(row)
    margin, n = math.log1p(delta), len(tested)
    chances = stats.holm_both([t.cost.p_either_way(margin) for t in tested.values()])
    for (at, test), either in zip(tested.items(), chances, strict=True):
        known = len(sessions.get(test.baseline.key, ()))
        row = _judged(found[at], test, *either, delta, alpha, known)
        effect = _detectable(test, delta, alpha / (2 * n))
        found[at] = _doubted(replace(row, smallest_detectable=effect), test)
    whole = [metrics.Cell(Comparison(key=key, label=c.cell.label, metric="", verdict=""), (b, c))
             for key, c in after.items() if (b := before.get(key)) and not lost(b, c)]  # fmt: skip
    others = [_apart(row, apart) for row in metrics.rows(whole, rule)]
    return View(base=base, candidate=candidate, summaries=summaries, rows=found + others, rule=rule)


def _apart(row: Comparison, apart: Sequence[str]) -> Comparison:
    """Of two kinds of machine: answers and bytes are those of any."""
    if not apart or gate.METRICS[row.judged].noise != "pairs":
        return row
    reason = f"differs: {'; '.join(apart)}"
    return row.told("INCOMPARABLE", "different-machine", reason)


def _sides(
    base: RecordFile, candidate: RecordFile, summaries: Sequence[Summary]
) -> tuple[dict[str, Summary], dict[str, Summary]]:
    names = run_names([base, candidate])
    first, second = ({s.key: s for s in summaries if s.run == name} for name in names)
    return first, second


def machine_differences(
    base: RecordFile, candidate: RecordFile, allow_different: Sequence[str] = ()
) -> list[str]:
    """What makes two runs incomparable, with both values: 'libraries.torch 2.9.0 -> 2.10.0'.

    Entries of the environment that differ and are not allowed to; of several machines by rank.
    """
    for name in allow_different:
        if name.partition(".")[0] not in environment.SECTIONS:
            raise InputError(
                f"--allow-different {name!r}: no such part of the environment; expected one of "
                f"{', '.join(environment.SECTIONS)}, or an entry of one, such as libraries.torch"
            )
    a, b = base.header, candidate.header
    if a.fingerprint == b.fingerprint:
        return []
    machines = a.nodes or [a.environment], b.nodes or [b.environment]
    if len(machines[0]) != len(machines[1]):
        return [f"machines {len(machines[0])} -> {len(machines[1])}"]
    found: list[str] = []
    alike = True
    for rank, (one, two) in enumerate(zip(*machines, strict=True)):
        node = f"node {rank}: " if rank else ""
        for key, words in environment.changes(one, two).items():
            alike = False
            if not any(key == name or key.startswith(f"{name}.") for name in allow_different):
                found.append(f"{node}{key} {words}")
    prints = f"{a.fingerprint[:8]} -> {b.fingerprint[:8]}"
    return [f"fingerprint {prints}, though no entry of the environment does"] if alike else found


def _normal(
    history: Sequence[RecordFile], base: RecordFile, candidate: RecordFile
) -> list[RecordFile]:
    """Other sessions on the machine of ``base``, each once."""
    known = {base.header.run_id, candidate.header.run_id}
    own = [f for f in history if f.header.fingerprint == base.header.fingerprint]
    found = {f.header.run_id: f for f in own if f.header.pairing is None}
    return [f for run_id, f in found.items() if run_id not in known]


class _Test(Struct, frozen=True, kw_only=True):
    """One cell that was measured on both sides."""

    baseline: Summary
    candidate: Summary
    cost: stats.LogRatio
    """log(candidate / baseline) of the cost: above 0 is slower. With the error that is known:
    that of two sessions where there is a history, else that of the repeats alone."""
    limit: aa_history.Limit | None


def _test(b: Summary | None, c: Summary | None, limit: aa_history.Limit | None) -> _Test | None:
    if b is None or c is None or not b.values or not c.values:
        return None
    pilots = (stats.of_pilot(b.values, b.pilot), stats.of_pilot(c.values, c.pilot))
    cost = stats.welch(list(b.values.values()), list(c.values.values()), pilots)
    cost = cost if c.cell.scenario == "latency" else cost.mirrored()
    cost = limit.widened(cost) if limit else cost
    return _Test(baseline=b, candidate=c, cost=cost, limit=limit)


def _measured(s: Summary, b: Summary | None, c: Summary | None, test: _Test | None) -> Comparison:
    """Everything but the verdict, which is '' when the cell can be tested. ``s``: either side."""
    latency = s.cell.scenario == "latency"
    metric = "p50 [ns]" if latency else "images/s"
    row = Comparison(key=s.key, label=s.cell.label, metric=metric, verdict="")
    if test:
        sides = [list(x.values.values()) for x in (test.baseline, test.candidate)]
        row = metrics.of_repeats(row, sides, test.cost if latency else test.cost.mirrored())
    hole = lost(b, c)
    return row.told("MISSING", *hole) if hole else row


def _namesake(own: Summary | None, others: Mapping[str, Summary]) -> str:
    """In what a cell of ``others`` differs that looks like ``own``; ''."""
    for other in others.values() if own else ():
        if own and own.cell.label == other.cell.label:
            told = [n for n in own.cell.__struct_fields__
                    if getattr(own.cell, n) != getattr(other.cell, n)]  # fmt: skip
            return f"; the one that reads the same there differs in {', '.join(told)}"
    return ""


def _judged(
    row: Comparison, test: _Test, slower: float, faster: float, delta: float, alpha: float,
    sessions: int,
) -> Comparison:  # fmt: skip
    """With what the numbers say. ``sessions``: of the A/A history, how many have this cell."""
    bounds, limit, margin = test.cost.interval(), test.limit, math.log1p(delta)
    if bounds is None:
        sides = zip(("baseline", "candidate"), row.n, strict=True)
        short = " and ".join(side for side, n in sides if n < 2)
        return row.told("INCONCLUSIVE", "few-repeats", f"1 repeat in the {short}: no interval")
    p = min(slower, faster)
    if p < alpha:
        side, verdict = ("slower", "REGRESSED") if slower < faster else ("faster", "IMPROVED")
        by = f"{side} by {percent(abs(math.expm1(test.cost.mean)))}"
        if limit is None:
            reason = (
                f"warning: looks {by}; what is normal here is unknown: {sessions} of the "
                f"{aa_history.ENOUGH} A/A sessions needed"
            )
            return row.told("INCONCLUSIVE", "no-history", reason)
        seen = f"{limit.sessions} A/A sessions differ by up to {percent(math.expm1(limit.largest))}"
        if abs(test.cost.mean) <= limit.largest + margin:
            return row.told("INCONCLUSIVE", "within-history", f"{by}, but {seen}")
        reason = f"{side} than {percentage(delta)}: p = {p:.2g} after Holm; {seen}"
        return replace(row.told(verdict, "beyond-history", reason), p=p)
    if -margin < bounds[0] and bounds[1] < margin:
        reason = f"interval inside \u00b1{percentage(delta)}"
        reason += "" if limit else " within these two sessions; what other sessions do is unknown"
        return row.told("EQUIVALENT", "inside-margin", reason)
    outside = bounds[0] >= margin or bounds[1] <= -margin
    reach = "lies beyond" if outside else "reaches across"
    reason = f"the interval {reach} \u00b1{percentage(delta)}"
    reason += f", but p = {p:.2g} after Holm" if outside else ""
    reason += f": sessions differ, sd {percent(limit.sd)}" if limit else ": measure more repeats"
    return row.told("INCONCLUSIVE", "wide-interval", reason)


def _doubted(row: Comparison, test: _Test) -> Comparison:
    """With what stands against it: repeats that broke, and flags that forbid a verdict."""
    broke = failures(test.baseline, test.candidate)
    seen = {f for s in (test.baseline, test.candidate) for f in s.flags}
    flags = [f for f in UNSTEADY if f in seen]
    if broke and row.verdict != "REGRESSED":
        return row.told("MISSING", "failed", broke)
    if flags and row.code != "few-repeats":
        code = "unsteady" if seen.isdisjoint(MACHINE) else "invalid-machine"
        return row.told("INCONCLUSIVE", code, f"flagged {', '.join(flags)}")
    return replace(row, reason=f"{row.reason}; {broke}") if broke else row


def _detectable(test: _Test, delta: float, alpha: float) -> float | None:
    """Slowdown found with 95 % power at the strictest step of Holm's procedure.

    None without a history (no slowdown is ever confirmed) and without an interval.
    """
    cost, limit = test.cost, test.limit
    if limit is None or cost.dof <= 0:
        return None
    alarm = max(limit.largest, stats.t_quantile(1 - alpha, cost.dof) * cost.error)
    reach = stats.t_quantile(POWER, cost.dof) * cost.error
    return math.expm1(min(stats.MOST_LOG, math.log1p(delta) + alarm + reach))
