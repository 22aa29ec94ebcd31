"""The only timing loop in the project: every backend, scenario and boundary goes through it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from time import perf_counter_ns

from msgspec import Struct

Clock = Callable[[], int]
"""Nanoseconds on a monotonic clock; `time.perf_counter_ns` outside the tests."""

TIMER_SHARE = 1000
"""A sample lasts at least this many timer overheads (0.1 %), or iterations are grouped."""


class Trace(Struct, frozen=True):
    """Samples in the order in which they were taken; ns."""

    durations: list[int]
    start: int
    """Clock at the begin of the first sample."""
    end: int
    """Clock at the end of the last sample."""
    stop: str
    """Why sampling ended: 'time' or 'max samples'."""


def sample(
    enqueue: Callable[[], object],
    finish: Callable[[], object],
    *,
    iterations: int,
    seconds: float,
    at_least: int,
    at_most: int,
    clock: Clock = perf_counter_ns,
) -> Trace:
    """Time samples of ``iterations`` x ``enqueue()`` followed by one ``finish()``.

    Goes on for ``seconds`` and for at least ``at_least`` samples, but never beyond ``at_most``.
    The caller must have drained earlier work. No sample is dropped here.
    """
    durations: list[int] = []
    append = durations.append
    first = clock()
    deadline = first + round(seconds * 1e9)
    while True:
        begin = clock()
        for _ in repeat(None, iterations):
            enqueue()
        finish()
        end = clock()
        append(end - begin)
        count = len(durations)
        if count >= at_most:
            return Trace(durations, first, end, "max samples")
        if end >= deadline and count >= at_least:
            return Trace(durations, first, end, "time")


def timer_overhead(clock: Clock = perf_counter_ns, readings: int = 201) -> int:
    """Median ns between two readings of ``clock`` in a row, at least 1."""
    gaps = sorted(-clock() + clock() for _ in range(readings))
    return max(1, gaps[readings // 2])


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection while sampling: a collection inside a sample is not the backend's."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
