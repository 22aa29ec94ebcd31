"""The causes of a scaling shortfall: each looks for its evidence in what was recorded.

A finder yields nothing where the records do not show its cause, which is not the same as its being
absent: `not_recorded` says what they lack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from statistics import fmean
from typing import Any

from msgspec import Struct

from gpubench.analysis import stats
from gpubench.analysis.scaling import readings
from gpubench.analysis.scaling.efficiency import job_of, per_replica, place, speeds
from gpubench.analysis.scaling.readings import Change
from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary, gain
from gpubench.units import count, duration, percent, significant

MATTERS = 0.02
"""Shortfalls and changes up to this much do not matter: the margin of every verdict (`Rule`)."""
STRAGGLER = 0.03
"""Equal devices differ by this much by themselves."""
EVEN = 0.05
"""Replicas within this of each other are slower 'by about the same'."""
HOST_SHARE = 0.9
"""Of the sampled time the host was busy enqueueing: the device gets its work no faster."""
BACKLOG = 0.5
"""Batches still to do when the host began to wait. A host that is held up by a full launch queue
looks busy as well, but then several batches are waiting."""
SWITCHES_PER_S = 10.0
"""Involuntary switches of a process: with time slices of some ms, fewer cost below 2 %."""
OTHERS = 0.05
"""Of the cores' time, more than at one replica; a quiet machine moves by less."""
STEAL = 0.01
"""Likewise; stolen time is time lost, and half of what matters is worth a look."""
CAPS = {"thermal": "heat or power brake", "power-cap": "power cap"}
"""What lowers a GPU's clocks, as `readings.throttled` names it, in words."""


class Pair(Struct, frozen=True, kw_only=True, dict=True):
    """What a shortfall is diagnosed from."""

    many: Summary
    one: Summary
    base: Summary
    """One replica with the batch that each of the many has, where that was measured; else ``one``.
    """
    efficiency: Estimate
    compute: Estimate | None
    """Efficiency of the same cells with boundary ``compute``."""

    @property
    def cpu(self) -> bool:
        """On a CPU ``run`` computes; on a GPU it only enqueues."""
        return self.many.cell.device == "cpu"

    @property
    def same_batch(self) -> bool:
        return self.base.cell.batch_size == self.many.cell.batch_size

    @property
    def ideal_ns(self) -> float:
        """Time of one batch of one replica at 100 % efficiency."""
        c = self.many.cell
        rate = self.base.throughput.value or math.inf
        return c.replicas * c.batch_size * 1e9 / (c.devices * rate)

    @cached_property
    def speeds(self) -> dict[int, list[float]]:
        return speeds(self.many)

    @cached_property
    def stragglers(self) -> dict[int, float]:
        """Replica -> how far below the mean of the others.

        It is below in every repeat, and by Student's t on the logs of the repeats at a level that
        allows for having looked at every replica (Bonferroni). Replicas that do not share devices
        alike are not compared.
        """
        repeats, c = list(self.speeds.values()), self.many.cell
        found: dict[int, float] = {}
        alike = c.replicas % c.replicas_per_device == 0
        for i in range(c.replicas if alike and len(repeats) > 1 else 0):
            own = [each[i] for each in repeats]
            others = [(sum(each) - each[i]) / (len(each) - 1) for each in repeats]
            apart = stats.paired(others, own)
            bounds = apart.interval(1 - (1 - stats.LEVEL) / c.replicas)
            below = -math.expm1(apart.mean)
            steady = all(x < y for x, y in zip(own, others, strict=True))
            if steady and below > STRAGGLER and bounds and bounds[1] < 0:
                found[i] = below
        return found

    def change(self, what: readings.Reading) -> Change | None:
        """Of a reading from the one replica to many; None where either was not recorded."""
        return readings.change(self.base, self.many, what)


class Found(Struct, frozen=True):
    """A cause before it is ranked."""

    key: str
    words: str
    evidence: dict[str, Any]
    left: float | None = None
    """What it alone would leave of the ideal; None where that cannot be said."""


# ------------------------------------------------------------------------------ causes


def _straggler(p: Pair) -> Iterator[Found]:
    if not p.stragglers:
        return
    each = per_replica(p.speeds)
    well = fmean([x for i, x in enumerate(each) if i not in p.stragglers] or each)
    lost = math.fsum(max(0.0, well - each[i]) for i in p.stragglers)
    replicas, several = p.many.timed[0].replicas, len(p.many.nodes) > 1
    names = {i: place(replicas[i], several) for i in p.stragglers}
    clauses = [
        f"replica {i} ({names[i]}) runs {percent(below)} below the mean of the others"
        for i, below in sorted(p.stragglers.items(), key=lambda item: -item[1])
    ]
    n = len(p.speeds)
    told: dict[str, Any] = {
        "replicas": list(p.stragglers), "devices": list(names.values()),
        "below_others": list(p.stragglers.values()), "repeats": n,
    }  # fmt: skip
    why = [w for i in p.stragglers for w in readings.device_differences(p.many, i, told)]
    words = f"{', '.join(clauses)}, in all {n} repeats" + "".join(f"; {w}" for w in why)
    yield Found("straggler", words, told, math.fsum(each) / (math.fsum(each) + lost))


def _dispatch(p: Pair) -> Iterator[Found]:
    job, how = job_of(p.many), p.many.cell.dispatch
    if job is None:
        return
    if job.lost > MATTERS:
        longest = max(range(len(job.idle)), key=job.idle.__getitem__)
        words = (
            f"{how} shares: replica {longest} had no more work for {percent(job.idle[longest])} of "
            f"the job's time; waiting cost {percent(job.lost)} of what the replicas do together"
        )
        told = {"idle": job.idle, "lost": job.lost, "share_of_ideal": job.share.value}
        yield Found("dispatch", words, told, max(1e-9, 1 - job.lost))
    if job.claim_ns is not None and job.claim_ns > MATTERS * job.batch_ns:
        words = f"{duration(job.claim_ns)} to get a batch that takes {duration(job.batch_ns)}"
        told = {"claim_ns": job.claim_ns, "batch_ns": job.batch_ns}
        yield Found("scheduler", words, told, max(1e-9, 1 - job.claim_ns / job.batch_ns))


def _host_bound(p: Pair) -> Iterator[Found]:
    """Only on a GPU, and where enqueueing is all that was timed apart from the wait."""
    share, batch_ns, backlog = (None if p.cpu else readings.enqueued(p.many)) or (0.0, 0.0, 0.0)
    if share < HOST_SHARE or backlog > BACKLOG:
        return
    told = {"enqueue_share": share, "enqueue_ns": batch_ns, "backlog": backlog}
    words = (
        f"enqueueing a batch takes the host {duration(batch_ns)}, {percent(share, 0)} of "
        f"the time, and no backlog is left when it waits"
    )
    if one := readings.enqueued(p.base):
        share_one, ns_one, backlog_one = one
        told |= {"enqueue_share_one": share_one, "enqueue_ns_one": ns_one}
        words += f"; at one replica {duration(ns_one)}, {percent(share_one, 0)}"
        if share_one >= HOST_SHARE and backlog_one <= BACKLOG:
            words += " (bound there, too, unless this backend's run() waits)"
    yield Found("host-bound", words, told, min(1.0, p.ideal_ns / batch_ns))


def _copies(p: Pair) -> Iterator[Found]:
    if p.many.cell.boundary != "transfer":
        return
    left: float | None = None
    words: list[str] = []
    told: dict[str, float] = {}
    copy = p.change(readings.copies_ns)
    if copy and copy.rose(MATTERS) and p.same_batch:
        left = p.ideal_ns / (p.ideal_ns + (copy.many - copy.one))
        many, one = duration(copy.many), duration(copy.one)
        words.append(f"copies take {many} a batch, {one} at one replica")
        told |= copy.told("copies_ns")
    below = p.compute and (p.efficiency.high or math.inf) < (p.compute.low or 0)
    if p.compute and p.compute.value and below:
        left = left or (p.efficiency.value or 0) / p.compute.value
        words.append(f"without copies the efficiency is {percent(p.compute.value)}")
        told["efficiency_compute"] = p.compute.value
    if left is not None and left < 1 - MATTERS:
        yield Found("copy-bound", "; ".join(words), told, left)


def _small_batch(p: Pair) -> Iterator[Found]:
    if p.base is p.one:
        return
    e, b, big = gain(p.one, p.base), p.base.cell.batch_size, p.one.cell.batch_size
    alone = e.value
    if alone is not None and alone < 1 - MATTERS and (e.high or math.inf) < 1:
        words = f"one replica alone does {percent(alone)} of batch {big}'s images/s with batch {b}"
        yield Found("small-batch", words, {"relative_rate": alone, "batch": b, "of": big}, alone)


def _cpu(p: Pair) -> Iterator[Found]:
    """Stolen time, other processes, quota, cores; then what CPU time they leave unexplained."""
    left = 1.0
    for found in (*_taken(p), *_too_few(p)):
        left *= found.left or 1.0
        yield found
    busy = p.change(readings.cpu_share)
    if busy is None or not busy.fell(MATTERS):
        return
    switched = p.change(readings.switches_per_s)
    rest = busy.many / busy.one / left
    pressed = switched is not None and switched.many > max(SWITCHES_PER_S, 2 * switched.one)
    if rest < 1 - MATTERS and pressed and switched is not None:
        words = (
            f"each replica had {percent(busy.many)} of {'its cores' if p.cpu else 'a core'}, "
            f"{percent(busy.one)} at one replica, and was interrupted "
            f"{significant(switched.many)} times a second ({significant(switched.one)} at one)"
        )
        told = busy.told("cpu_share") | switched.told("switches_per_s")
        yield Found("cpu-starved", words, told, rest if p.cpu else None)


def _taken(p: Pair) -> Iterator[Found]:
    """Where every repeat lost more than any of the one replica's."""
    for key, reading, least, what in (
        ("cpu-steal", readings.steal, STEAL, "the hypervisor took"),
        ("other-processes", readings.others, OTHERS, "other processes used"),
    ):
        now = readings.by_repeat(p.many, reading).values()
        then = readings.by_repeat(p.base, reading).values()
        if not now or not then or min(now) <= max(then):
            continue
        taken, before = fmean(now), fmean(then)
        if taken - before > least:
            words = f"{what} {percent(taken)} of the cores' time, {percent(before)} at one replica"
            told = {"share": taken, "share_one": before}
            left = (1 - min(taken, 0.99)) / (1 - min(before, 0.98)) if p.cpu else None
            yield Found(key, words, told, left)


def _too_few(p: Pair) -> Iterator[Found]:
    """Of the machine that has least to spare. Replicas that had all their CPU time lacked none."""
    busy = p.change(readings.cpu_share)
    short = busy is None or busy.fell(MATTERS)
    lone = readings.level(p.base, readings.cpu_share)
    needed, usable, quota = readings.room(p.many, lone)
    alone, *_ = readings.room(p.base, lone)
    if short and quota is not None and needed > quota:
        before = min(1.0, quota / alone) if alone else 1.0
        left = min(1.0, quota / needed / before)
        words = (
            f"the replicas keep {significant(needed)} cores busy; the control group's quota "
            f"is {significant(quota)}"
        )
        told = {"cores": needed, "quota": quota}
        yield Found("cpu-quota", words, told, left if p.cpu else None)
    if short and usable is not None and needed > usable:
        words = f"the replicas keep {significant(needed)} cores busy of {usable:g}"
        told = {"cores": needed, "usable": usable}
        left = min(1.0, usable / needed)
        yield Found("oversubscribed", words, told, left if p.cpu else None)
    elif p.cpu and p.many.cell.replicas_per_device > 1:
        switched = p.change(readings.switches_per_s)
        n, c = p.many.cell.replicas_per_device, p.many.cell.cores
        words = f"{n} replicas share each set of {count(c, 'core')}"
        told = {"replicas_per_device": n, "cores": c}
        if switched:
            words += f"; each was interrupted {significant(switched.many)} times a second, "
            words += f"{significant(switched.one)} at one replica"
            told |= switched.told("switches_per_s")
        yield Found("oversubscribed", words, told)


def _clocks(p: Pair) -> Iterator[Found]:
    """Of stragglers' GPUs the clock is part of that cause."""
    slow = {p.many.timed[0].replicas[i].device for i in p.stragglers}
    clock = p.change(lambda r: readings.sm_mhz(r, slow))
    if clock and clock.fell(MATTERS):
        capped = readings.throttled(p.many)
        key, brake = next(
            (c for c in CAPS.items() if capped.get(c[0], 0) > MATTERS), ("clocks", "")
        )
        words = f"SM clock {_mhz(clock)} at one replica"
        if brake:
            words += f"; {brake} in {percent(capped[key], 0)} of the readings"
        yield Found(key, words, clock.told("sm_mhz") | capped, clock.many / clock.one)
    clock = p.change(readings.cpu_mhz)
    if clock and clock.fell(MATTERS) and p.cpu:
        words = f"CPU clock {_mhz(clock)} at one replica"
        yield Found("clocks", words, clock.told("cpu_mhz"), clock.many / clock.one)


def _mhz(clock: Change) -> str:
    return f"{clock.many:,.0f} MHz, {clock.one:,.0f} MHz"


FINDERS = (_straggler, _dispatch, _host_bound, _copies, _small_batch, _cpu, _clocks)


# ------------------------------------------------------------------------------ what is left


def rest(p: Pair, found: list[Found]) -> Found:
    """By exclusion, where everything else that could be left over is ruled out; else honest."""
    if not p.cpu and p.many.cell.replicas_per_device > 1:
        n = p.many.cell.replicas_per_device
        words = f"by exclusion: {n} replicas share each GPU, its compute and memory bandwidth"
        return Found("shared-device", words, {"replicas_per_device": n})
    nothing = Found("unexplained", "nothing that was recorded explains it", {})
    return _shared_memory(p, found) or nothing


def _shared_memory(p: Pair, found: list[Found]) -> Found | None:
    """The evidence that each replica had its cores to itself, and that all are slower alike."""
    busy = p.change(readings.cpu_share)
    steal, others = (readings.level(p.many, r) for r in (readings.steal, readings.others))
    each = [x for i, x in enumerate(per_replica(p.speeds)) if i not in p.stragglers]
    if not p.cpu or busy is None or steal is None or others is None or not each:
        return None
    spread = (max(each) - min(each)) / fmean(each)
    taken = ("cpu-quota", "oversubscribed", "cpu-starved", "cpu-steal", "other-processes")
    undisturbed = steal <= STEAL and others <= OTHERS and not any(f.key in taken for f in found)
    alone = p.same_batch and p.many.cell.replicas_per_device == 1
    if busy.fell(MATTERS) or spread > EVEN or not undisturbed or not alone:
        return None
    clock = p.change(readings.cpu_mhz)
    words = (
        f"by exclusion: all are slower by about the same (spread {percent(spread)}), each with its "
        f"cores to itself: {percent(busy.many)} of their time, {percent(busy.one)} at one replica; "
        f"{percent(steal)} stolen, {percent(others)} used by others; CPU clock "
        f"{f'{_mhz(clock)} at one' if clock else 'unknown'}"
    )
    told = {"spread": spread} | busy.told("cpu_share")
    told |= {"steal_share": steal, "other_busy_share": others}
    return Found("shared-memory", words, told | (clock.told("cpu_mhz") if clock else {}))


def not_recorded(p: Pair) -> list[str]:
    """What the records lack that would have told more of this shortfall."""
    c = p.many.cell
    wanted: dict[str, readings.Reading] = {"CPU time of the replicas": readings.cpu_share}
    if p.cpu:
        wanted |= {"stolen CPU time": readings.steal, "other processes": readings.others,
                   "CPU clock": readings.cpu_mhz}  # fmt: skip
    else:
        wanted["SM clock"] = readings.sm_mhz
    if c.boundary == "transfer":
        wanted["copies apart from computing"] = readings.copies_ns
    lacks = [name for name, what in wanted.items() if readings.level(p.many, what) is None]
    if not p.cpu and c.boundary == "compute" and readings.enqueued(p.many) is None:
        lacks.append("time of enqueueing")
    if p.base is p.one and not p.same_batch:
        lacks.append(f"one replica with batch {c.batch_size}")
    if not p.speeds:
        lacks.append("each replica's own speed")
    return lacks
