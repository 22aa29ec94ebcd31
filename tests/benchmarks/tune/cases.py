"""What is asked of a search, and how one replayed search answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from gpubench.analysis import roofline
from gpubench.analysis.tune import objective, racing
from gpubench.records.record import Ceiling, RecordFile
from gpubench.run import availability
from gpubench.run.tune import proposals
from gpubench.run.tune.search import Propose, search
from gpubench.suite.goal import Goal, Limit, Metric, Search
from gpubench.suite.types import Cell, Option
from tests.benchmarks.tune import record
from tests.benchmarks.tune.recorded import Recorded, Replay

RATE = Metric("throughput")
LATENCY = Metric("latency", 0.9)
"""Of p99 a recorded cell has too few samples: 36 show a p90, and 368 a p99."""

Options = Mapping[str, tuple[Option, ...]]


class Case(Struct, frozen=True):
    """One question."""

    name: str
    goal: Goal
    drop: float | None = None
    """Points of accuracy that may be lost."""


class Outcome(Struct, frozen=True):
    """What one search answered."""

    found: str
    """Label of what it recommends; '': nothing."""
    best: str
    """Label of the best of all, by everything that was recorded; '': nothing keeps the limits."""
    reach: float
    """Found / best, by all recorded rounds: 1 is as good; 0: it found nothing."""
    of_sure: float
    """Found / the best of what measuring everything can promise to keep the limits, by the same
    bounds: what is closer to a limit nobody recommends."""
    cost: float
    """Of what measuring everything took."""
    tasks: int
    broken: list[str]
    """Limits that the recommendation breaks in some recorded round."""


def questions(file: RecordFile) -> list[Case]:
    """With limits that bind: they are shares of what the best without limits has."""
    everything = Recorded(file)
    free = everything.best(Goal(RATE), objective.value)
    if free is None:
        return []
    rate = everything.worth(free, RATE, objective.value)
    slowest = everything.worth(free, LATENCY, objective.value)
    cases = [Case("throughput", Goal(RATE))]
    for share in (0.7, 0.45, 0.3):
        limit = Limit(LATENCY, share * slowest)
        cases.append(Case(f"throughput, {limit.text}", Goal(RATE, (limit,))))
    for share in (0.5, 0.7, 0.85):
        limit = Limit(RATE, share * rate)
        cases.append(Case(f"p50 latency, {limit.text}", Goal(Metric("latency"), (limit,))))
    lost = "accuracy drop <= {:g} points"
    cases += [Case(f"throughput, {lost.format(n)}", Goal(RATE), n) for n in (0.0, 1.0)]
    both = Limit(LATENCY, 0.45 * slowest)
    name = f"throughput, {both.text}, {lost.format(0)}"
    return [*cases, Case(name, Goal(RATE, (both,)), 0.0)]


class Proposing(Struct, frozen=True):
    """A way of proposing, by name."""

    name: str
    make: Callable[[Sequence[Cell], Search, objective.Best, Options], Propose]


PROPOSERS = (Proposing("proposals", lambda *given: proposals.Proposals(*given).next),)
"""What `gpubench tune` asks, and whatever is to be held against it."""


def bounds(file: RecordFile) -> Callable[[Cell, Metric], float | None]:
    """The roofline's, from the ceilings that were recorded."""
    known: dict[str, Ceiling | None] = {r.cell.key: r.ceiling for r in file.records}
    return lambda cell, metric: roofline.best(cell, known.get(cell.key), metric)


def answer(
    file: RecordFile,
    case: Case,
    way: Proposing,
    seed: int,
    budget_s: float,
    truth: RecordFile | None = None,
) -> Outcome:
    """One search, replayed on ``file``, and judged by ``truth`` (of what is real: the same)."""
    recorded = Recorded(file, case.drop)
    today = tuple(cell.key for cell in record.today(recorded.cells))
    wanted = Search(goal=case.goal, baseline=today, budget_s=budget_s, seed=seed)
    bench = Replay(recorded, seed, bounds(file))
    options = availability.catalog().backends
    propose = way.make(recorded.cells, wanted, bench.best, options)
    standings = search(recorded.cells, wanted, bench, propose, (), lambda record: None)
    top = racing.recommended(standings)
    judge = Recorded(truth, case.drop) if truth else recorded
    best = judge.best(case.goal, objective.value)
    sure = judge.best(case.goal, objective.value, recorded.promised(wanted))
    return Outcome(
        found=top.cell.label if top else "",
        best=best.label if best else "",
        reach=_reach(judge, case.goal.objective, top.cell if top else None, best),
        of_sure=_reach(judge, case.goal.objective, top.cell if top else None, sure),
        cost=bench.elapsed() / recorded.exhaustive_s(),
        tasks=bench.tasks,
        broken=judge.broken(top.cell, case.goal.limits, objective.value) if top else [],
    )


def _reach(recorded: Recorded, metric: Metric, found: Cell | None, best: Cell | None) -> float:
    if best is None:
        return 1.0
    if found is None:
        return 0.0
    ratio = recorded.worth(found, metric, objective.value) / recorded.worth(
        best, metric, objective.value
    )
    return ratio if metric.more_is_better else 1 / ratio
