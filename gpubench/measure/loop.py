"""The only timing loop in the project: every backend, scenario and boundary goes through it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from time import perf_counter_ns

from msgspec import Struct

from gpubench.records.samples import JOB_DONE

Clock = Callable[[], int]
"""Nanoseconds on a monotonic clock; `time.perf_counter_ns` outside the tests."""

TIMER_SHARE = 1000
"""A sample lasts at least this many timer overheads (0.1 %), or iterations are grouped."""
MOST = 100_000
"""Samples at once, however short one is, where nobody says otherwise."""


class Trace(Struct, frozen=True):
    """Samples in the order in which they were taken; ns."""

    durations: list[int]
    enqueues: list[int]
    """Of each duration, until the last ``enqueue()`` had returned."""
    start: int
    """Clock at the begin of sampling."""
    end: int
    """Clock at the end of the last sample."""
    between: int
    """Between samples: getting work, and the loop itself."""
    counts: list[int]
    """Iterations of each sample; [] where all have as many."""
    stop: str
    """Why sampling ended: 'time', 'max samples' or `JOB_DONE`."""


def sample(
    enqueue: Callable[[], object],
    finish: Callable[[], object],
    *,
    iterations: int = 1,
    seconds: float = 0,
    at_least: int = 1,
    at_most: int = MOST,
    wanted: int = 0,
    patience_s: float = 0,
    block_s: float = 0,
    claim: Callable[[], bool] | None = None,
    before: Callable[[], object] | None = None,
    clock: Clock = perf_counter_ns,
) -> Trace:
    """Time samples of ``iterations`` x ``enqueue()`` followed by one ``finish()``.

    Goes on for ``seconds`` and for at least ``at_least`` samples, but never beyond ``at_most``;
    until ``wanted`` samples where these take no longer than ``patience_s`` in all.
    ``block_s``: where samples turn out to be twice as long as this, or half as long, by the mean of
    all so far, the next ones get as many iterations as fill it: some pictures are much larger.
    ``before``: done before each sample, off the clock (of the device's work, too: it waits).
    With ``claim``, instead, before each sample it is asked whether there is work for one.
    The caller must have drained earlier work. No sample is dropped here.
    """
    durations: list[int] = []
    enqueues: list[int] = []
    append, append_enqueue = durations.append, enqueues.append
    between = done = spent = 0
    counts: list[int] = []
    block_ns = block_s * 1e9
    first, stop = clock(), JOB_DONE
    end = first
    deadline, patience = (first + round(s * 1e9) for s in (seconds, patience_s))
    while claim is None or claim():
        if before is not None:
            before()
        begin = clock()
        between += begin - end
        for _ in repeat(None, iterations):
            enqueue()
        enqueued = clock()
        finish()
        end = clock()
        append(end - begin)
        append_enqueue(enqueued - begin)
        if claim is not None:
            continue
        if block_ns:
            counts.append(iterations)
            done, spent = done + iterations, spent + end - begin
            mean_ns = max(1, spent) / done
            if not block_ns / 2 <= iterations * mean_ns <= 2 * block_ns:
                iterations = math.ceil(block_ns / mean_ns)
        count = len(durations)
        if count >= at_most:
            stop = "max samples"
            break
        if end >= deadline and count >= at_least and (count >= wanted or end >= patience):
            stop = "time"
            break
    counts = counts if len({*counts}) > 1 else []
    return Trace(durations, enqueues, first, end, between, counts, stop)


def timer_overhead(clock: Clock = perf_counter_ns, readings: int = 201) -> int:
    """Median ns that reading ``clock`` adds to a sample (two readings), at least 1."""
    gaps = sorted(-clock() + (clock(), clock())[1] for _ in range(readings))
    return max(1, gaps[readings // 2])


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection while sampling: a collection inside a sample is not the backend's."""
    was_enabled = gc.isenabled()
    gc.collect()  # what the fork server has imported is frozen, and stays so
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
