"""Two stored runs -> one verdict per cell.

Two stored runs confound the session with the code, so this asks for equal machines, tests against
a margin (not against zero), corrects for the number of cells (Holm 1979) and says INCONCLUSIVE
rather than guess. The unit is the repeat; the test is Welch's on logs of the repeat values, with
the variances of the pilots where these fixed the numbers of repeats (with those of all repeats, a
one-sided test at 1 % alarms in up to 2.6 % of identical cells, with the pilots' in 1.0 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from gpubench import environment
from gpubench.analysis import stats
from gpubench.analysis.cells import Summary, summarise
from gpubench.record import RecordFile

VERDICTS = {
    "REGRESSED": "slower by more than the margin",
    "MISSING": "measured on one side only",
    "INCOMPARABLE": "the two runs were not made on the same kind of machine",
    "INCONCLUSIVE": "neither a change nor its absence is shown",
    "IMPROVED": "faster by more than the margin",
    "EQUIVALENT": "the whole interval lies inside the margin",
}
"""Every verdict, the most urgent first."""

CAVEAT = (
    "Two stored runs confound the session with the code: take a difference as a reason to measure "
    "both again, interleaved, not as a proof."
)
"""Goes with every comparison that is shown."""

UNSTEADY = ("DRIFT", "NO-STEADY-STATE", "FEW-SAMPLES", "THROTTLED", "CO-TENANT", "NO-COMMON-WINDOW")
"""Flags that forbid a verdict: the samples do not, or cannot, show a settled machine."""

POWER = 0.95


class Comparison(Struct, frozen=True, kw_only=True):
    """One cell in two runs."""

    key: str
    label: str
    metric: str
    """'p50 [ns]' (lower is better) or 'images/s' (higher is better)."""
    baseline: float | None = None
    candidate: float | None = None
    ratio: float | None = None
    """candidate / baseline of the metric."""
    low: float | None = None
    high: float | None = None
    """95 % interval of the ratio."""
    n: tuple[int, int] = (0, 0)
    """Repeats of the baseline and of the candidate."""
    verdict: str
    code: str = ""
    """Why, for programs: 'confirmed', 'inside-margin', 'no-history', 'not-planned', ..."""
    reason: str = ""
    smallest_detectable: float | None = None
    """The slowdown (0.05: 5 %) that this run would have found 95 times in 100."""
    pairs: int = 0
    """Pairs of processes behind the interval; 0 for two stored runs."""
    pair_sd: float | None = None
    """Standard deviation of log(candidate / baseline) over the pairs."""
    p: float | None = None
    """Of the test that gave REGRESSED or IMPROVED, after Holm."""
    baseline_key: str = ""
    """The baseline's cell where it is another one: A/B of two backends."""


def compare(
    base: RecordFile,
    candidate: RecordFile,
    *,
    delta: float = 0.02,
    alpha: float = 0.01,
    allow_different: Sequence[str] = (),
) -> list[Comparison]:
    """Compare every cell that either run planned; cells that neither could measure are left out.

    ``delta`` is the margin (0.02: changes within 2 % do not matter), ``alpha`` the chance of any
    false REGRESSED or IMPROVED over the whole suite. ``allow_different`` names parts of the
    environment ('libraries.torch', 'libraries') that may differ between the runs.
    """
    before = {s.key: s for s in summarise([base])}
    after = {s.key: s for s in summarise([candidate])}
    apart = machine_differences(base, candidate, allow_different)
    found: list[Comparison] = []
    tested: list[tuple[int, stats.LogRatio]] = []
    for key in dict.fromkeys([*before, *after]):
        b, c = before.get(key), after.get(key)
        if not any(s and (s.ranked or s.status.startswith(("failed", "missing"))) for s in (b, c)):
            continue  # skipped on both sides, or on one and never planned on the other
        row = _measure(b, c)
        if row.verdict == "" and apart:
            row = replace(row, verdict="INCOMPARABLE", reason=f"differs: {', '.join(apart)}")
        if row.verdict == "":
            tested.append((len(found), _cost(before[key], after[key])))
        found.append(row)
    slower = stats.holm([d.p_above(math.log1p(delta)) for _, d in tested])
    faster = stats.holm([_mirror(d).p_above(math.log1p(delta)) for _, d in tested])
    for (at, cost), up, down in zip(tested, slower, faster, strict=True):
        key = found[at].key
        flags = sorted({f for s in (before[key], after[key]) for f in s.flags if f in UNSTEADY})
        verdict, reason = _verdict(cost, up, down, delta, alpha, flags)
        effect = _detectable(cost, delta, alpha / len(tested))
        found[at] = replace(found[at], verdict=verdict, reason=reason, smallest_detectable=effect)
    return found


def exit_code(comparisons: Sequence[Comparison]) -> int:
    """0 pass, 1 regression, 4 missing, 3 inconclusive or incomparable; the first that holds.

    A regression is reported before anything else, then a hole in the evidence, then weak evidence.
    Nothing compared is a hole: 4.
    """
    verdicts = {c.verdict for c in comparisons}
    if "REGRESSED" in verdicts:
        return 1
    if "MISSING" in verdicts or not verdicts:
        return 4
    return 3 if verdicts & {"INCONCLUSIVE", "INCOMPARABLE"} else 0


def machine_differences(
    base: RecordFile, candidate: RecordFile, allow_different: Sequence[str] = ()
) -> list[str]:
    """What makes two runs incomparable: differing environment entries that are not allowed to."""
    if base.header.fingerprint == candidate.header.fingerprint:
        return []
    apart = environment.differences(base.header.environment, candidate.header.environment)
    if not apart:
        return ["fingerprint"]
    return [k for k in apart if not any(k == a or k.startswith(f"{a}.") for a in allow_different)]


def _measure(b: Summary | None, c: Summary | None) -> Comparison:
    """Everything but the verdict, which is '' when the cell can be tested."""
    s = c or b
    if s is None:
        raise ValueError("a comparison needs at least one side")
    latency = s.cell.scenario == "latency"
    row = Comparison(
        key=s.key, label=s.cell.label, metric="p50 [ns]" if latency else "images/s", verdict=""
    )
    values = [stats.geometric_mean(list(x.values.values())) if x else None for x in (b, c)]
    if b and c and values[0] and values[1] and b.values and c.values:
        e = _welch(b, c).estimate()
        row = replace(row, baseline=values[0].value, candidate=values[1].value, ratio=e.value,
                      low=e.low, high=e.high, n=(len(b.values), len(c.values)))  # fmt: skip
    lost = [
        f"{side}: {_state(x)}"
        for side, x in (("baseline", b), ("candidate", c))
        if x is None or not x.ranked or not x.values
    ]
    return replace(row, verdict="MISSING", reason="; ".join(lost)) if lost else row


def _state(s: Summary | None) -> str:
    if s is None:
        return "not planned"
    if s.ranked:
        return f"no value: {', '.join(s.flags) or 'no samples'}"
    reason = next((r.reason for r in s.broken if r.reason), "")
    return f"{s.status} ({reason})" if reason else s.status


def _welch(b: Summary, c: Summary) -> stats.LogRatio:
    first, second = list(b.values.values()), list(c.values.values())
    return stats.welch(first, second, (b.policy.repeats, c.policy.repeats))


def _cost(b: Summary, c: Summary) -> stats.LogRatio:
    """log(candidate / baseline) of the cost: above 0 is slower in either scenario."""
    cost = _welch(b, c)
    return cost if b.cell.scenario == "latency" else _mirror(cost)


def _mirror(d: stats.LogRatio) -> stats.LogRatio:
    return replace(d, mean=-d.mean)


def _verdict(
    cost: stats.LogRatio, slower: float, faster: float, delta: float, alpha: float, flags: list[str]
) -> tuple[str, str]:
    bounds = cost.interval()
    if bounds is None:
        short = " and ".join(
            side for side, n in zip(("baseline", "candidate"), cost.n, strict=True) if n < 2
        )
        return "INCONCLUSIVE", f"1 repeat in the {short}: no interval"
    if flags:
        return "INCONCLUSIVE", f"flagged {', '.join(flags)}"
    margin = math.log1p(delta)
    if slower < alpha:
        return "REGRESSED", f"slower than {delta:.1%}: p = {slower:.2g} after Holm"
    if faster < alpha:
        return "IMPROVED", f"faster than {delta:.1%}: p = {faster:.2g} after Holm"
    if -margin < bounds[0] and bounds[1] < margin:
        return "EQUIVALENT", f"interval inside \u00b1{delta:.1%}"
    return "INCONCLUSIVE", f"the interval reaches across \u00b1{delta:.1%}: measure more repeats"


def _detectable(cost: stats.LogRatio, delta: float, alpha: float) -> float | None:
    """Slowdown found with 95 % power at the strictest step of Holm's procedure."""
    if cost.dof <= 0:
        return None
    reach = stats.t_quantile(1 - alpha, cost.dof) + stats.t_quantile(POWER, cost.dof)
    return math.expm1(min(700.0, math.log1p(delta) + reach * cost.error))
