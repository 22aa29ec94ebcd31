"""How one cell is measured: warm-up, sampling, steady state, and how many repeats are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median, stdev
from time import perf_counter_ns
from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench.measure.loop import TIMER_SHARE, Clock, quiet_collector, sample, timer_overhead
from gpubench.suite import Cell, Policy

if TYPE_CHECKING:
    from gpubench.backends.base import Images, Session

MIN_SAMPLES = 5
"""Samples of a repeat, however long one takes."""
FEW = 10
"""Below this many samples a repeat is flagged."""
MIN_BATCHES = 10
"""Fewer groups of samples than this cannot show where the warm-up ends."""


class Measured(Struct, frozen=True):
    """What one replica measured; ns, clock readings not yet relative to the common start."""

    warmup: list[int]
    durations: list[int]
    iterations: int
    truncated: int
    start: int
    end: int
    stop: str
    flags: list[str]


def steps(
    session: Session, images: Images, cell: Cell
) -> tuple[Callable[[], object], Callable[[], object]]:
    """(enqueue, finish) of a cell: what one iteration does, and what ends a sample.

    ``latency`` waits for every batch, ``throughput`` for a block of batches. ``transfer`` moves
    a host array in and the logits out in every iteration, which waits by itself.
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
    session: Session, images: Images, cell: Cell, policy: Policy, clock: Clock = perf_counter_ns
) -> list[int]:
    """At least ``policy.warmup_iterations`` and ``policy.warmup_s``; ns of each iteration."""
    enqueue, finish = steps(session, images, cell)
    trace = sample(
        enqueue,
        finish,
        iterations=1,
        seconds=policy.warmup_s,
        at_least=policy.warmup_iterations,
        at_most=policy.max_samples,
        clock=clock,
    )
    return trace.durations


def measure(
    session: Session,
    images: Images,
    cell: Cell,
    policy: Policy,
    warmup: list[int],
    clock: Clock = perf_counter_ns,
) -> Measured:
    """Sample one repeat of ``cell`` on a warm session. ``warmup`` are its warm-up durations."""
    enqueue, finish = steps(session, images, cell)
    typical = max(1.0, median(warmup[-max(5, len(warmup) // 2) :]))
    flags = []
    with quiet_collector():
        if cell.scenario == "throughput":
            iterations, trial = _block(enqueue, finish, policy.block_s, typical, clock)
            warmup = [*warmup, trial]
        else:
            iterations = math.ceil(timer_overhead(clock) * TIMER_SHARE / typical)
            if iterations > 1:
                flags.append("GROUPED")
                enqueue, finish = _waiting(enqueue, finish), _nothing
        trace = sample(
            enqueue,
            finish,
            iterations=iterations,
            seconds=policy.sample_s,
            at_least=MIN_SAMPLES,
            at_most=policy.max_samples,
            clock=clock,
        )
    cut, unsteady = steady(trace.durations, policy.target_half_width)
    if cell.scenario == "latency" and len(trace.durations) - cut < FEW:
        flags.append("FEW-SAMPLES")
    return Measured(
        warmup=warmup + trace.durations[:cut],
        durations=trace.durations[cut:],
        iterations=iterations,
        truncated=cut,
        start=trace.start + sum(trace.durations[:cut]),
        end=trace.end,
        stop=trace.stop,
        flags=flags + unsteady,
    )


def _block(
    enqueue: Callable[[], object],
    finish: Callable[[], object],
    seconds: float,
    typical: float,
    clock: Clock,
) -> tuple[int, int]:
    """(iterations that fill a block of ``seconds``, ns of one of them), tried out once.

    Without a wait after each batch they overlap, so the guess from the warm-up can be too short.
    """
    iterations = math.ceil(seconds * 1e9 / typical)
    trace = sample(
        enqueue, finish, iterations=iterations, seconds=0, at_least=1, at_most=1, clock=clock
    )
    took = max(1, trace.durations[0])
    if took < seconds * 1e9:
        iterations = math.ceil(iterations * 1.1 * seconds * 1e9 / took)
    return iterations, took // iterations


def _waiting(run: Callable[[], object], sync: Callable[[], object]) -> Callable[[], object]:
    def run_and_wait() -> None:
        run()
        sync()

    return run_and_wait


def _nothing() -> None:
    pass


def steady(durations: Sequence[int], tolerance: float) -> tuple[int, list[str]]:
    """(samples to cut from the start, flags) by MSER-5, on medians of five samples.

    Marginal standard error rule: White, "An effective truncation heuristic for bias reduction in
    simulation output", Simulation 69(6), 1997; medians in place of its means, so that one spike is
    not taken for the end of a warm-up. Two parts differ when their means do by more than
    ``tolerance`` (relative) and by four standard errors. A cut beyond the middle is never made: if
    what lies before and after it differs, NO-STEADY-STATE is flagged, else it was noise (MSER alone
    would cut there in 7 % of steady traces of 200 samples). DRIFT: the halves that remain differ.
    """
    width = min(5, len(durations) // MIN_BATCHES)
    if width == 0:
        return 0, []
    groups = [median(durations[i : i + width]) for i in range(0, len(durations) - width + 1, width)]
    best = mser(groups)
    if best > len(groups) // 2:
        return 0, ["NO-STEADY-STATE"] if _differ(groups[:best], groups[best:], tolerance) else []
    rest = groups[best:]
    middle = len(rest) // 2
    drifts = _differ(rest[:middle], rest[-middle:], tolerance)
    return best * width, ["DRIFT"] if drifts else []


def _differ(first: Sequence[float], second: Sequence[float], tolerance: float) -> bool:
    gap = abs(fmean(second) - fmean(first))
    spread = max(stdev(first), stdev(second))
    error = spread * math.sqrt(1 / len(first) + 1 / len(second))
    return gap > tolerance * fmean(second) and gap > 4 * error


def mser(values: Sequence[float]) -> int:
    """How many leading values to cut so that sum((x - mean)^2) / n^2 of the rest is least."""
    best, best_score = 0, math.inf
    count, total, squares = 0, 0.0, 0.0
    shift = values[-1]  # against cancellation
    for index in range(len(values) - 1, -1, -1):
        value = values[index] - shift
        count, total, squares = count + 1, total + value, squares + value * value
        score = max(0.0, squares - total * total / count) / count**2
        if count >= 5 and score <= best_score:
            best, best_score = index, score
    return best


def repeats_needed(values: Sequence[float], target: float) -> int:
    """Repeats for a 95 % interval of relative half-width ``target``, from a pilot's ``values``.

    Stein's two-stage rule on logarithms (Stein, "A two-sample test for a linear hypothesis whose
    power is independent of the variance", Annals of Mathematical Statistics 16, 1945): the sd is
    the pilot's, with the pilot's degrees of freedom, so the interval keeps its level.
    """
    pilot = len(values)
    if pilot < 2 or min(values) <= 0:
        return pilot
    from scipy.special import stdtrit

    sd = stdev(math.log(value) for value in values)
    quantile = float(stdtrit(pilot - 1, 0.975))
    return max(pilot, math.ceil((quantile * sd / math.log1p(target)) ** 2))
