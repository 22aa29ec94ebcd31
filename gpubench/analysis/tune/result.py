"""A search, read: the recommendation and its evidence, and what was tried.

Everything is computed from the records (`racing.judge`), so a search that goes on, or one that was
interrupted, reads as one that ended. The recommendation's gain over today's default comes from the
interleaved A/B where its pairs are enough for an interval; else from the rounds that both were
measured in, as the values that are shown beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import geometric_mean

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis import roofline, stats
from gpubench.analysis.compare import compare, sequential_test
from gpubench.analysis.compare.verdicts import Comparison
from gpubench.analysis.roofline import Share
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, summarise
from gpubench.analysis.tune import constraints, objective, pruning, racing
from gpubench.analysis.tune.racing import Kept, Standing
from gpubench.errors import InputError
from gpubench.records.record import FAILURES, WRONG, Record, RecordFile
from gpubench.suite.goal import Goal, Metric, Search

Evidence = tuple[RecordFile, RecordFile]
"""The two arms of the A/B of the recommended cell (candidate) against today's default."""

OUTCOMES = {
    "best": "recommended",
    "leader": "leads, not confirmed",
    "alive": "not told apart",
    "worse": "worse",
    "violates": "breaks a limit",
    "failed": "failed",
    "ruled-out": "ruled out",
    "unmeasured": "not reached",
}
"""`outcome` for people, in the order of interest."""


NO_RESULT = ("failed", "ruled-out", "unmeasured")
"""Statuses without a number that means anything."""


class View(Struct, frozen=True, kw_only=True):
    """What a search found."""

    file: RecordFile
    search: Search
    standings: list[Standing]
    """In the order of the space."""
    summaries: dict[str, Summary]
    """By the cell's key."""
    best: Standing | None
    """The recommended configuration; None where none is known to keep the limits."""
    leader: Standing | None
    """The one that leads, checked or not; None where all break limits or failed."""
    base: Standing | None
    """Today's default: its best cell; None where it gave no result."""
    gain: Estimate
    """How many times better the recommended one is, by the objective: above 1 is better."""
    paired: bool
    """``gain`` is of the pairs of the A/B."""
    verdict: Comparison | None
    """Of the A/B; None without one, or with one of another configuration."""
    won: tuple[int, int] = (0, 0)
    """Of its pairs: in how many the recommended one was better by the objective, and of how many.
    """

    @property
    def goal(self) -> Goal:
        return self.search.goal

    @property
    def asked(self) -> list[str]:
        """All limits: 'p99 latency <= 20 ms', 'min_accuracy 0.9'."""
        least = self.file.header.suite.policy.min_accuracy
        floor = [] if least is None else [f"min_accuracy {least:g}"]
        return [limit.text for limit in self.goal.limits] + floor

    @property
    def unseen(self) -> list[str]:
        """Backends that the search did not come to."""
        return racing.unseen(self.standings)

    @property
    def unconfirmed(self) -> bool:
        """Whether the A/B has not decided about the recommended one, where today's default keeps
        the limits as well and is another."""
        if not self.best or not self.base or self.best.cell == self.base.cell:
            return False
        undecided = self.verdict is None or self.verdict.verdict == "INCONCLUSIVE"
        return undecided and not racing.breaks(self.base)

    @property
    def settled(self) -> bool:
        """Whether "nothing keeps the limits" is shown, not only what was seen: all that might keep
        them was measured, and what comes closest was measured again and is beyond them."""
        near = closest(self)
        return (
            self.best is None and self.leader is None and near is not None
            and not any(s.status == "unmeasured" for s in self.standings)
            and near.n >= constraints.SETTLED
            and any(k.state == "violated" for k in near.limits)
        )  # fmt: skip


def view(file: RecordFile, evidence: Evidence | None = None) -> View:
    """Raises InputError for the records of something else than a search."""
    search = file.header.search
    if search is None:
        raise InputError(f"{file.path}: not a search; `gpubench report` shows any run")
    standings = racing.judge(file.header.planned, file.records, search)
    best = racing.recommended(standings)
    leader = racing.leader(standings)
    base = racing.today(standings, search)
    verdict = _verdict(evidence, best)
    if verdict and evidence:
        key = evidence[0].header.planned[0].key
        base = next((s for s in standings if s.cell.key == key), base)
    gain, paired = _gain(file, evidence if verdict else None, best, base, search.goal.objective)
    logs = _logs(evidence, search.goal.objective) if verdict and evidence else []
    return View(
        file=file, search=search, standings=standings, best=best, leader=leader, base=base,
        gain=gain, paired=paired, verdict=verdict, summaries={s.key: s for s in summarise([file])},
        won=(sum(x > 0 for x in logs), len(logs)),
    )  # fmt: skip


def _verdict(evidence: Evidence | None, best: Standing | None) -> Comparison | None:
    if evidence is None or best is None:
        return None
    if [c.key for c in evidence[1].header.planned] != [best.cell.key]:
        return None
    return next(iter(compare.compare(*evidence)), None)


def _gain(
    file: RecordFile,
    evidence: Evidence | None,
    best: Standing | None,
    base: Standing | None,
    metric: Metric,
) -> tuple[Estimate, bool]:
    """Of the A/B's pairs where these give an interval, else of the search's own rounds; of a few
    pairs where neither gives one."""
    if best is None or base is None:
        return Estimate(why="nothing to compare"), False
    if best.cell.key == base.cell.key:
        return Estimate(value=1.0, why="today's default is the best"), False
    pairs = _pairs(_logs(evidence, metric)) if evidence else Estimate()
    if pairs.low is not None:
        return pairs, True
    before, after = (
        _values([r for r in file.records if r.cell.key == s.cell.key], metric) for s in (base, best)
    )
    low, high = (before, after) if metric.more_is_better else (after, before)
    own = stats.ratio(low, high)
    return (pairs, True) if own.low is None and pairs.value else (own, False)


def _values(records: Sequence[Record], metric: Metric) -> dict[int, float]:
    """Repeat -> the metric, of the records that ended well."""
    found = {r.repeat: objective.value(r, metric) for r in records if r.status == "ok"}
    return {n: v for n, v in found.items() if v}


def _logs(evidence: Evidence, metric: Metric) -> list[float]:
    """Of each pair of the A/B: by how much the recommended one was better."""
    before, after = (_values(f.records, metric) for f in evidence)
    both = [n for n in before if n in after]
    return [objective.cost(metric, before[n]) - objective.cost(metric, after[n]) for n in both]


def _pairs(logs: Sequence[float]) -> Estimate:
    """The A/B's own estimate of a ratio: Hodges & Lehmann's, over its pairs; none below six."""
    if not logs:
        return Estimate(why="no pairs")
    found, n = sequential_test.shift(tuple(logs)), len(logs)
    if not (bounds := found.interval()):
        return Estimate(value=math.exp(found.value), n=n, why=units.count(n, "pair"))
    low, high = map(math.exp, bounds)
    return Estimate(value=math.exp(found.value), low=low, high=high, n=n)


# ------------------------------------------------------------------------------ what was tried


def tally(found: View) -> dict[str, int]:
    """Outcome -> configurations, in the order of `OUTCOMES`; only those that occur."""
    of = Counter(outcome(found, s) for s in found.standings)
    return {name: of[name] for name in OUTCOMES if of[name]}


def outcome(found: View, s: Standing) -> str:
    """A key of `OUTCOMES`: 'best' of what is recommended, else its status."""
    return "best" if s is found.best else s.status


def nearest(found: View, standings: Iterable[Standing]) -> list[Standing]:
    """By outcome, then by cost: what is recommended first."""
    order = list(OUTCOMES)
    return sorted(standings, key=lambda s: (order.index(outcome(found, s)), s.ratio))


def measured(found: View) -> set[str]:
    """Keys of configurations that gave numbers, right answers or not."""
    return {r.cell.key for r in found.file.records if r.replicas}


def causes(found: View) -> list[tuple[str, str, int]]:
    """(cause, remedy, configurations) of all that could not be measured or failed, each once, the
    most frequent first."""
    remedies: dict[str, str] = {}
    counts = Counter[str]()
    for r in {r.cell.key: r for r in found.file.records if r.status != "ok"}.values():
        _, alike, cause = r.reason.partition(pruning.ALIKE)
        if r.status != "ruled-out" or alike:
            cause = FAILURES[r.kind].partition(":")[0] if r.kind in WRONG else cause or r.reason
            counts[cause] += 1
            remedies[cause] = remedies.get(cause) or r.remedy
    return [(cause, remedies[cause], n) for cause, n in counts.most_common()]


def spent_s(found: View) -> float:
    """Seconds of measuring: of every process from its start to its end."""
    return sum(r.wall_s for r in found.file.records)


def closest(found: View) -> Standing | None:
    """Where nothing keeps the limits: what comes nearest to all of them.

    None where nothing was measured whose answers are right.
    """
    known = [s for s in found.standings if s.status not in NO_RESULT and s.value.value]
    return min(known, key=lambda s: (max(map(excess, s.limits), default=0.0), s.ratio),
               default=None)  # fmt: skip


def excess(kept: Kept) -> float:
    """How far beyond the limit, as a share of it: 0.2 is 20 %; infinite where it was not measured.

    Of a limit that is not yet shown to be met: what one repeat in a hundred would show.
    """
    value = kept.value if kept.state == "violated" or kept.worst is None else kept.worst
    if value is None:
        return math.inf
    bound = kept.limit.bound
    return (bound / value if kept.limit.metric.more_is_better else value / bound) - 1


def share_of(found: View) -> Share | None:
    """Of the roofline, of what is recommended: the repeats' mean of logs, as in every table."""
    own = roofline.shares(found.summaries[found.best.cell.key]) if found.best else {}
    known = list(own.values())
    mean = stats.geometric_mean([x.share for x in known]).value
    return replace(known[0], share=mean) if mean else None


# ------------------------------------------------------------------------------ the front


def latency_of(goal: Goal) -> Metric:
    """The latency that the search is about: the objective's or a limit's, else p50."""
    return next((m for m in goal.metrics if m.kind == "latency"), Metric("latency"))


def times(found: View) -> dict[str, float]:
    """Key -> ns per batch by `latency_of`, mean of logs over repeats, of all that was timed."""
    metric, made = latency_of(found.goal), {}
    for key, s in found.summaries.items():
        values = [v for r in s.timed if (v := objective.value(r, metric))]
        if values:
            made[key] = geometric_mean(values)
    return made


def front(found: View) -> set[str]:
    """Keys of measured configurations with right answers that no other one beats in both images/s
    and the time of a batch. Limits do not count: the front shows what they cost."""
    points = [
        (ns, -(s.throughput.value or 0.0), key)
        for key, ns in times(found).items()
        if (s := found.summaries[key]).ranked
    ]
    best, kept = 0.0, set()
    for _, rate, key in sorted(points):
        if -rate > best:
            best = -rate
            kept.add(key)
    return kept
