"""How one cell is measured: warm-up, sampling, steady state."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Sequence
from statistics import fmean, median
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from gpubench.machine import cgroups, processes
from gpubench.measure.loop import TIMER_SHARE, Clock, sample, timer_overhead
from gpubench.measure.steady_state import settled, steady
from gpubench.records.samples import Samples
from gpubench.suite.types import MIN_BLOCKS, MIN_SAMPLES, Cell, Policy

if TYPE_CHECKING:
    from gpubench.backends.base import Images, Session

LONGER, OF_TIMEOUT = 10, 0.25
"""A warm-up that has not settled goes on for so many times `Policy.warmup_s`, and until it has had
this share of `Policy.timeout_s`, at most."""
PATIENCE = 4
"""Sampling goes on until it has `MIN_BLOCKS` samples, up to so many times `Policy.duration_s`."""
BLANK = Samples(replica=0, device="", durations_ns=[])
"""A replica of which nothing is known."""


class Pipeline(Protocol):
    """What a cell with boundary ``pipeline``, or one that overlaps, is to the protocol."""

    settle: int
    """Iterations after `resume` before anything is sampled."""

    def enqueue(self) -> None:
        """One batch."""

    def finish(self) -> object:
        """Return when all that was enqueued is done."""

    def hold(self) -> None:
        """Nothing of it runs from now on. By default nothing ever does by itself."""
        return

    def resume(self) -> None:
        """Start again, from an empty queue. By default nothing was held."""
        return

    def stages(
        self, batches: int, seconds: float, clock: Clock = perf_counter_ns
    ) -> dict[str, int]:
        """Mean ns per batch of each part alone (`records.samples.Samples.stages_ns`); holds it.

        Of the last ``batches``, which were sampled, from the first of them on for ``seconds``.
        """


class Sampler(Struct, frozen=True):
    """A warm session, and how its samples will be taken."""

    enqueue: Callable[[], object]
    finish: Callable[[], object]
    iterations: int
    at_least: int
    warmup: list[int]
    """ns of each iteration so far."""
    flags: list[str]
    """What its warm-up and its turns have shown so far."""
    batch_ns: float
    """Of one iteration as it will be sampled: in ``throughput`` not each is waited for."""
    block_s: float = 0
    """Of each sample, in ``throughput``: see `measure.loop.sample`."""
    pipeline: Pipeline | None = None
    """Boundary ``pipeline``: what is held while this replica waits."""
    blank: Samples = BLANK
    """Who samples, and what is known of it beforehand."""
    before: Callable[[], object] | None = None
    """Of each sample, which then is one iteration: see `measure.caches`."""


def steps(
    session: Session, images: Images, cell: Cell
) -> tuple[Callable[[], object], Callable[[], object]]:
    """(enqueue, finish) of a cell: what one iteration does, and what ends a sample.

    ``latency`` waits for every batch, ``throughput`` for a block of batches. ``transfer`` moves
    a host array in and the logits out in every iteration, which waits by itself; at full load a
    `measure.in_flight.Transfers` takes its place where a session can overlap these.
    """
    run, sync = session.run, session.sync
    if cell.boundary == "transfer":
        copy_in, copy_out = session.copy_in, session.copy_out

        def round_trip() -> None:
            copy_in(images)
            run()
            sync()
            copy_out()

        return round_trip, sync
    return run, sync


def warm_up(
    session: Session,
    images: Images,
    cell: Cell,
    policy: Policy,
    clock: Clock = perf_counter_ns,
    *,
    pipeline: Pipeline | None = None,
    blank: Samples = BLANK,
    before: Callable[[], object] | None = None,
) -> Sampler:
    """Run at least ``policy.warmup_iterations`` and ``policy.warmup_s``, then size the samples.

    Until it has settled it goes on, each time half as long again (at most: LONGER, OF_TIMEOUT).
    ``pipeline``: of a cell with boundary ``pipeline``. ``blank``, ``before``: see `Sampler`.
    Before all that it runs for ``policy.soak_s``.
    """
    enqueue, finish = (
        (pipeline.enqueue, pipeline.finish) if pipeline else steps(session, images, cell)
    )
    least, seconds, begin = policy.warmup_iterations, policy.warmup_s, clock()
    while (left := policy.soak_s - (clock() - begin) / 1e9) > 0:
        sample(enqueue, finish, seconds=min(1.0, left), clock=clock)
    warmup = sample(
        enqueue, finish, seconds=seconds, at_least=least, before=before, clock=clock
    ).durations
    most = min(LONGER * policy.warmup_s, OF_TIMEOUT * policy.timeout_s)
    while (left := most - sum(warmup) / 1e9) > 0 and not settled(warmup, policy.target_half_width):
        more = sample(enqueue, finish, seconds=left, at_most=len(warmup) // 2, before=before,
                      clock=clock)  # fmt: skip
        warmup += more.durations
    last = warmup[-max(5, len(warmup) // 2) :]
    typical = max(1.0, median(last))
    sampler = Sampler(enqueue, finish, 1, MIN_SAMPLES, warmup, [], typical, pipeline=pipeline,
                      blank=blank, before=before)  # fmt: skip
    if cell.scenario == "throughput":
        iterations, trial = _block(enqueue, finish, policy.block_s, max(1.0, fmean(last)), clock)
        warmup.append(trial)
        at_least = MIN_BLOCKS if iterations > 1 else MIN_SAMPLES
        return replace(sampler, iterations=iterations, at_least=at_least, batch_ns=trial,
                       block_s=policy.block_s)  # fmt: skip
    if before is not None:
        return sampler
    overhead = timer_overhead(clock)
    iterations = math.ceil(overhead * TIMER_SHARE / max(typical - overhead, typical / 2))
    if iterations == 1:
        return sampler

    def waiting() -> None:
        enqueue()
        finish()

    sampler.flags.append("GROUPED")
    return replace(sampler, enqueue=waiting, finish=lambda: None, iterations=iterations)


def once_more(sampler: Sampler, seconds: float = 0, clock: Clock = perf_counter_ns) -> None:
    """Warm up again, at least once: waiting for others may have cooled caches and clocks.

    A pipeline goes on from where it was held, for as many batches as it takes to settle.
    """
    least = 1
    if sampler.pipeline:
        sampler.pipeline.resume()
        least = sampler.pipeline.settle
    more = sample(sampler.enqueue, sampler.finish, seconds=seconds, at_least=least,
                  before=sampler.before, clock=clock)  # fmt: skip
    sampler.warmup.extend(more.durations)


def pause(sampler: Sampler) -> None:
    """Nothing of it runs until `once_more`."""
    if sampler.pipeline:
        sampler.pipeline.hold()


def measure(
    sampler: Sampler,
    policy: Policy,
    clock: Clock = perf_counter_ns,
    *,
    at_ns: int = 0,
    late_ns: int = 0,
    claim: Callable[[], bool] | None = None,
    cores: int = 0,
    whole: bool = True,
) -> Samples:
    """Sample one turn: a repeat, or with ``claim`` a job until no unit of it is left.

    Of several (not ``whole``) none waits for many samples, and none is cut: see `joined`.

    ``at_ns``: the clock at the common start; ``late_ns``: after it that this replica went on;
    ``cores``: that are its own, 0 where it shares them with other replicas. A
    job's unit is one sample, and all count: it is timed from its start to its end. Flags go to
    ``sampler``.
    """
    others = processes.descendants([os.getpid()]) if sampler.pipeline else set()
    before = _used(others)
    trace = sample(
        sampler.enqueue,
        sampler.finish,
        iterations=sampler.iterations,
        seconds=policy.duration_s,
        at_least=sampler.at_least,
        at_most=policy.max_samples,
        wanted=MIN_BLOCKS if whole else 0,
        patience_s=PATIENCE * policy.duration_s,
        block_s=sampler.block_s,
        claim=claim,
        before=sampler.before,
        clock=clock,
    )
    used = Used(*(b - a for a, b in zip(before, _used(others), strict=True)))
    cut, counts = 0, trace.counts
    if claim is None and whole:
        each = [d / n for d, n in zip(trace.durations, counts, strict=True)] if counts else []
        cut, flags = steady(each or trace.durations, policy.target_half_width)
        few = len(trace.durations) - cut < MIN_BLOCKS
        sampler.flags.extend([*flags, "FEW-SAMPLES"] if few else flags)
    start = trace.start + sum(trace.durations[:cut])
    # what was used was read before and after all samples: those cut take their share of it
    kept = (trace.end - start) / max(1, trace.end - trace.start)
    return replace(
        sampler.blank,
        durations_ns=trace.durations[cut:],
        iterations=round(median(counts[cut:])) if counts else sampler.iterations,
        counts=counts[cut:],
        warmup_durations_ns=sampler.warmup + trace.durations[:cut],
        truncated=cut,
        start_ns=start - at_ns,
        end_ns=trace.end - at_ns,
        late_ns=late_ns,
        claim_ns=trace.between if claim else 0,
        stop_reason=trace.stop,
        enqueue_ns=sum(trace.enqueues[cut:]),
        cpu_ns=round(used.cpu_ns * kept),
        switches=round(used.switches * kept),
        page_faults=round(used.page_faults * kept),
        withheld_ns=round(used.withheld_ns(cores) * kept),
    )


def of_turn(policy: Policy, turns: int) -> Policy:
    """``policy`` for each of so many turns, which share the samples and the time."""
    return replace(policy, duration_s=policy.duration_s / turns,
                   max_samples=math.ceil(policy.max_samples / turns))  # fmt: skip


def least_of_turn(cell: Cell, turns: int) -> int:
    """Samples of each of so many turns, at least: of replicas some must be in the common window."""
    side_by_side = cell.replicas > 1 and cell.scenario == "latency"
    return max(MIN_SAMPLES if side_by_side else 1, math.ceil(MIN_BLOCKS / turns))


def joined(turns: Sequence[Samples], tolerance: float) -> list[str]:
    """Flags of what one replica measured in all its turns, as one series.

    Nothing is cut from it: turns of two arms are balanced, so that what both go through cancels.
    """
    each = [ns for turn in turns for ns in turn.batch_ns]
    flags = steady(each, tolerance)[1]
    return [*flags, "FEW-SAMPLES"] if len(each) < MIN_BLOCKS else flags


class Used(NamedTuple):
    """Up to a moment, or between two."""

    wall_ns: int
    cpu_ns: int
    """Of this process, all threads, and of those of its loader."""
    delay_ns: int
    """That these were ready to run without having a core."""
    throttled_ns: int
    """That a quota has kept what is in its control groups off the cores."""
    switches: int
    """Involuntary."""
    page_faults: int
    """Minor."""

    def withheld_ns(self, cores: int) -> int:
        """Time on so many ``cores`` of its own that was wanted and not had.

        Its threads also wait for one another: what they then have makes up for it.
        """
        waited = min(self.delay_ns, cores * self.wall_ns - self.cpu_ns)
        return max(0, self.throttled_ns, waited)


def _used(others: set[int]) -> Used:
    own = resource.getrusage(resource.RUSAGE_SELF)
    own_ns = round((own.ru_utime + own.ru_stime) * 1e9)
    delay_ns = processes.delay_ns({os.getpid(), *others})
    return Used(perf_counter_ns(), own_ns + processes.cpu_ns(others), delay_ns,
                cgroups.throttled_ns(), own.ru_nivcsw, own.ru_minflt)  # fmt: skip


def _block(
    enqueue: Callable[[], object],
    finish: Callable[[], object],
    seconds: float,
    mean_ns: float,
    clock: Clock,
) -> tuple[int, int]:
    """(iterations that fill a block of ``seconds``, ns of one of them), tried out once.

    Without a wait after each batch they overlap, so the guess from the warm-up (its mean: a block
    holds what is rare and large too) can be too short, and by chance too long.
    """
    block_ns = seconds * 1e9
    tried = math.ceil(block_ns / mean_ns)
    took = max(1, sample(enqueue, finish, iterations=tried, clock=clock).durations[0])
    fits = block_ns <= took <= 2 * block_ns
    return tried if fits else math.ceil(tried * 1.1 * block_ns / took), max(1, took // tried)
