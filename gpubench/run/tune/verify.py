"""The proof of a recommendation: an interleaved A/B of it against today's default."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpubench.analysis.compare import compare
from gpubench.analysis.tune import constraints, racing
from gpubench.errors import RecordError
from gpubench.records.reader import EVIDENCE, read_arms
from gpubench.records.record import Arm, Pairing, RecordFile
from gpubench.run.ab import driver
from gpubench.run.plan import Plan
from gpubench.run.tune import space
from gpubench.suite.goal import Metric, Search
from gpubench.suite.types import Cell, Rule

if TYPE_CHECKING:
    from gpubench.run.tune.driver import TuneJob

SAMPLE_S = 1.0
"""Of one process, over all its turns."""


def job(of: TuneJob, base: Cell, best: Cell, budget_s: float) -> driver.ABJob:
    """The A/B of ``best`` against ``base``, in OUT/evidence; one that is there is gone on with.

    What is there of another pair is moved aside.
    """
    header, search, plan = of.header, of.search, of.plan
    rule, trial = Rule(delta=search.delta, alpha=search.alpha), plan.suite.policy
    # two turns share it, and each must be as long as a trial that was long for a reason
    policy = replace(
        trial, duration_s=2 * trial.duration_s if trial.duration_s > SAMPLE_S else SAMPLE_S
    )

    def side(arm: Arm, cell: Cell, words: str) -> driver.Side:
        suite = space.suite(plan.suite.name, [cell], policy, cell.backend, words)
        pairing = Pairing(session=header.run_id, arm=arm, differs=cell.label, rule=rule,
                          rates=search.goal.objective.kind == "throughput")  # fmt: skip
        own = replace(header, suite=suite, planned=[cell], search=None, pairing=pairing)
        return driver.Side(arm, Plan(suite, [cell], [], plan.cores), own)

    place = of.out / EVIDENCE
    return driver.ABJob(
        sides=(
            side("baseline", base, "today's default"),
            side("candidate", best, "what the search recommends"),
        ),
        backends=of.backends,
        rule=rule,
        budget_s=budget_s,
        out=place,
        cache_dir=of.cache_dir,
        seed=search.seed,
        resume=_begun(place, base, best),
    )


def _begun(place: Path, *cells: Cell) -> bool:
    """Whether an A/B of these is there; anything else is moved aside."""
    if not place.exists():
        return False
    found = _read(place)
    if found and [file.header.planned for file in found] == [[cell] for cell in cells]:
        return True
    names = (place.with_name(f"{EVIDENCE}-{n}") for n in itertools.count(1))
    place.rename(next(name for name in names if not name.exists()))
    return False


def _read(place: Path) -> tuple[RecordFile, RecordFile] | None:
    """Both arms; None: not both have begun, or what is there is damaged."""
    with suppress(RecordError):
        return read_arms(place)
    return None


def spent_s(out: Path) -> float:
    """Seconds that all proofs of a search have taken; both arms' records hold a pair's."""
    found = (_read(place) for place in out.glob(f"{EVIDENCE}*"))
    return sum(record.wall_s for files in found if files for record in files[1].records)


def fault(baseline: RecordFile, candidate: RecordFile, search: Search, *, rival: bool) -> str:
    """Why the recommendation does not stand, by what the A/B measured of it; '' where it does.

    ``rival``: today's default keeps the limits, so it must not be slower than that either.
    """
    (standing,) = racing.judge(candidate.header.planned, candidate.records, search)
    if standing.status == "failed":
        return standing.reason
    over = [
        k for k in standing.limits
        if k.state == "violated" or (k.value and constraints.over(k.limit, k.value, 0.0))
    ]  # fmt: skip
    if over or not rival or search.goal.objective not in (Metric("throughput"), Metric("latency")):
        return "; ".join(k.text for k in over)
    slower = (c for c in compare.compare(baseline, candidate) if c.verdict == "REGRESSED")
    return "; ".join(c.reason for c in slower)
