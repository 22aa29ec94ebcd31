"""Replicas against one replica: which cells are compared, what share of the ideal they reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, but, gain, log_gain, rated
from gpubench.records.samples import Samples

MANY = ("batch_size", "replicas", "replicas_per_device", "sharing", "dispatch")
"""Axes in which a cell may differ from its one-replica cell."""


def scaling_pairs(rows: Sequence[Summary]) -> list[tuple[Summary, Summary, str]]:
    """(cell with several replicas, its one-replica cell, 'weak' or 'strong') of ranked cells.

    Weak: the same batch per replica; strong: the same batch in total. How work is handed out means
    nothing to a lone replica, and it never shares its device, so its cell serves all: of several
    the one with the same dispatch, then the independent one.
    """
    ones: dict[object, list[Summary]] = {}
    found = [s for s in rated(rows) if s.ranked]
    for s in found:
        if s.cell.replicas == 1:
            ones.setdefault((but(s, *MANY), s.cell.batch_size), []).append(s)
    pairs = []
    for s in (s for s in found if s.cell.replicas > 1):
        for kind, batch in (("weak", s.cell.batch_size), ("strong", s.cell.total_batch)):
            order = {"independent": 1, s.cell.dispatch: 0}
            known = ones.get((but(s, *MANY), batch), [])
            if known:
                pairs.append((s, min(known, key=lambda o: order.get(o.cell.dispatch, 2)), kind))
    return pairs


def efficiency(s: Summary, one: Summary) -> Estimate:
    """X_g / (d X_1) with its interval, paired by round where both have the same rounds.

    d is the number of devices: a lone replica has one to itself, so d of them are the ideal. Where
    each replica has its own device, d is the number of replicas. Replicas that share a device can
    exceed 100 %: one may fill the gaps that the other leaves.
    """
    return gain(one, s).scaled(1 / s.cell.devices)


def chance(s: Summary, one: Summary) -> float:
    """One-sided p-value of 'the replicas reach the ideal'; 1 where nothing can be said."""
    found = log_gain(s, one)
    return found.p_above(-math.log(s.cell.devices)) if found else 1.0


def speeds(s: Summary) -> dict[int, list[float]]:
    """Repeat -> images/s of each replica while it works; repeats where one has none are left out.

    Of a job that replicas share, while each had work: over the whole job, equal shares would make
    all of them look equally fast.
    """
    if s.cell.dispatch == "independent":
        found = s.replica_rates
    else:
        found = {r.repeat: [_pace(x) * s.cell.batch_size for x in r.replicas] for r in s.timed}
    return {n: each for n, each in found.items() if each and all(each)}


def _pace(x: Samples) -> float:
    """Batches/s while it worked: the mean, for what slows it down within is no loss by dispatch."""
    busy = sum(x.durations_ns)
    return sum(x.batches) * 1e9 / busy if busy else 0.0


def per_replica(each: dict[int, list[float]]) -> list[float]:
    """Mean of logs over repeats; [] where there are none."""
    return [stats.geometric_mean(v).value or 0.0 for v in zip(*each.values(), strict=False)]


def place(x: Samples, nodes: bool) -> str:
    """'cuda:1', and in a run of several machines 'node 1 cuda:1'."""
    return f"node {x.node} {x.device}" if nodes else x.device


class SharedJob(Struct, frozen=True, kw_only=True):
    """A batch job that replicas shared, over all repeats."""

    summary: Summary
    share: Estimate
    """Of the ideal: the images/s of the whole job / what the replicas do together while they work.
    """
    idle: list[float]
    """Share of the job's time that each replica had no more work, while others still did."""
    lost: float
    """Share of the replicas' joint speed that this idling cost."""
    claim_ns: float | None
    """Scheduler: time to get the next batch, of one batch; None where it was not recorded."""
    batch_ns: float
    batches: list[float]
    """Batches that each replica did; mean of repeats."""


def jobs(rows: Sequence[Summary]) -> list[SharedJob]:
    """Every ranked cell whose replicas shared a job."""
    return [job for s in rows if s.ranked and s.cell.replicas > 1 and (job := job_of(s))]


def job_of(s: Summary) -> SharedJob | None:
    """None where the cell's replicas shared none, or no repeat tells."""
    turns = [] if s.cell.dispatch == "independent" else [v for r in s.timed for v in r.visits]
    told = [one for visit in turns if (one := _told(visit))]
    if not told:
        return None
    _, idle, lost, done = zip(*told, strict=True)
    every = [x for visit in turns for x in visit]
    busy = sum(sum(x.durations_ns) for x in every)
    batches = sum(sum(x.batches) for x in every)
    claimed = sum(x.claim_ns for x in every)
    return SharedJob(
        summary=s,
        share=s.level("share of ideal", _shares),
        idle=[fmean(each) for each in zip(*idle, strict=False)],
        lost=fmean(lost),
        claim_ns=claimed / batches if claimed else None,
        batch_ns=busy / batches,
        batches=[fmean(each) for each in zip(*done, strict=False)],
    )


def _shares(s: Summary) -> dict[int, float]:
    """Repeat -> share of ideal; of a repeat with several turns their mean."""
    if s.cell.dispatch == "independent":
        return {}
    each = {r.repeat: [one[0] for v in r.visits if (one := _told(v))] for r in s.timed}
    return {n: fmean(found) for n, found in each.items() if found}


def _told(visit: Sequence[Samples]) -> tuple[float, list[float], float, list[int]] | None:
    """``share``, ``idle``, ``lost`` and ``batches`` (as in `SharedJob`) of one turn.

    It lasts from the common start to the end of the last batch.
    """
    pace = [_pace(x) for x in visit]
    length = max(x.end_ns for x in visit)
    if length <= 0 or not any(pace):
        return None
    idle = [1 - x.end_ns / length for x in visit]
    batches = [sum(x.batches) for x in visit]
    lost = sum(p * i for p, i in zip(pace, idle, strict=True)) / sum(pace)
    return sum(batches) * 1e9 / length / sum(pace), idle, lost, batches
