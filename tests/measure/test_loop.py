from __future__ import annotations

import gc

from gpubench.measure.loop import quiet_collector, sample, timer_overhead
from tests.measure.virtual import VirtualClock, VirtualSession, constant


def take(ns: float, **settings: int | float) -> tuple[list[int], str]:
    clock = VirtualClock(reading_ns=0)
    session = VirtualSession(clock, constant(ns))
    values = {"iterations": 1, "seconds": 1.0, "at_least": 1, "at_most": 10_000} | settings
    trace = sample(session.run, session.sync, clock=clock, **values)  # type: ignore[arg-type]
    assert trace.end - trace.start == sum(trace.durations)
    return trace.durations, trace.stop


def test_samples_for_the_time_asked_for() -> None:
    durations, stop = take(1e7)
    assert durations == [10_000_000] * 100
    assert stop == "time"


def test_long_iterations_still_give_the_least_number_of_samples() -> None:
    assert take(5e9, at_least=5)[0] == [5_000_000_000] * 5


def test_stops_at_the_most_samples() -> None:
    durations, stop = take(1e3, at_most=7)
    assert len(durations) == 7
    assert stop == "max samples"


def test_a_sample_spans_its_iterations_and_one_wait() -> None:
    durations, _ = take(1e6, iterations=20)
    assert set(durations) == {20_000_000}


def test_time_until_the_wait_ends_is_counted_not_time_until_run_returns() -> None:
    clock = VirtualClock(reading_ns=0)
    session = VirtualSession(clock, constant(1e6), enqueue_ns=10)
    trace = sample(
        session.run,
        session.sync,
        iterations=1,
        seconds=0.01,
        at_least=1,
        at_most=99,
        clock=clock,
    )
    assert set(trace.durations) == {1_000_000}


def test_enqueueing_and_what_lies_between_samples_are_told_apart() -> None:
    clock = VirtualClock(reading_ns=7)
    session = VirtualSession(clock, constant(1e6), enqueue_ns=1000)
    left = iter(range(3))

    def claim() -> bool:
        clock.ns += 100
        return next(left, None) is not None

    trace = sample(session.run, session.sync, iterations=5, claim=claim, clock=clock)
    assert trace.enqueues == [5 * 1000 + 7] * 3
    assert trace.durations == [5_000_000 + 14] * 3
    assert trace.between == 3 * 107
    assert trace.end - trace.start == sum(trace.durations) + trace.between
    assert trace.stop == "job done"


def test_without_work_there_is_no_sample() -> None:
    clock = VirtualClock(reading_ns=7)
    session = VirtualSession(clock, constant(1e6))
    trace = sample(session.run, session.sync, iterations=5, claim=lambda: False, clock=clock)
    assert (trace.durations, trace.start, trace.end, trace.between) == ([], 7, 7, 0)


def test_timer_overhead_is_what_a_sample_holds_of_it_and_never_zero() -> None:
    clock = VirtualClock(reading_ns=70)
    session = VirtualSession(clock, constant(0))
    empty = sample(session.run, session.sync, iterations=1, clock=clock)
    assert timer_overhead(clock) == empty.durations[0] == 140
    assert timer_overhead(VirtualClock(reading_ns=0)) == 1


def test_no_collection_while_sampling() -> None:
    with quiet_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
