"""From the two records of a pair of processes to the pair's difference."""

from __future__ import annotations

import math
from statistics import fmean, median

from gpubench.analysis.gate import Pair
from gpubench.record import Record
from gpubench.samples import Samples

UNSTEADY = ("DRIFT", "NO-STEADY-STATE")


def pair_of(baseline: Record, candidate: Record) -> Pair | None:
    """The difference of a pair, per image and as a cost; None where an arm has no value."""
    costs = [cost(baseline), cost(candidate)]
    if costs[0] is None or costs[1] is None:
        return None
    return Pair(
        d=math.log(costs[1] / costs[0]),
        trends=(trend(baseline), trend(candidate)),
        unsteady=any(flag in UNSTEADY for r in (baseline, candidate) for flag in r.flags),
    )


def cost(record: Record) -> float | None:
    """Seconds per batch (latency) or per image (throughput); None without a value."""
    value = record.value()
    if not value:
        return None
    return 1 / value if record.cell.scenario == "throughput" else value / 1e9


def trend(record: Record) -> float:
    """log(late / early cost) within the process: of its turns, or of one turn's halves."""
    if record.again:
        early, late = (fmean(_centre(s) for s in visit) for visit in record.visits)
        return math.log(late / early)
    halves = [
        (s.durations_ns[: len(s.durations_ns) // 2], s.durations_ns[len(s.durations_ns) // 2 :])
        for s in record.replicas
    ]
    return fmean(math.log(median(late) / median(early)) for early, late in halves if early)


def _centre(samples: Samples) -> float:
    return median(samples.durations_ns) / samples.iterations
