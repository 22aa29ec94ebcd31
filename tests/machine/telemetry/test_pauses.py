from __future__ import annotations

import pytest

from gpubench.machine.telemetry import pauses
from gpubench.machine.telemetry.pauses import LOOK_S, Moment, Pauses


@pytest.mark.parametrize(
    ("took", "boot", "delayed", "found"),
    [
        (LOOK_S + 0.001, LOOK_S + 0.001, 0.0005, (0.0, 0.0)),
        (0.01, 0.01, 0.0, (0.0, 0.0)),  # something was ready
        (LOOK_S + 3, LOOK_S + 3, 2.99, (0.0, 0.0)),  # the machine was busy
        (LOOK_S + 10, LOOK_S + 10, 0.0, (10.0, 10.0)),  # stopped, frozen
        (LOOK_S + 10, LOOK_S + 10, 4.0, (6.0, 6.0)),
        (LOOK_S, LOOK_S + 3600, 0.0, (0.0, 3600.0)),  # suspended: our clock stood still
        (LOOK_S + 2, LOOK_S + 5, 0.0, (2.0, 5.0)),
    ],
)
def test_a_pause_is_time_that_neither_a_wait_nor_a_busy_machine_explains(
    took: float, boot: float, delayed: float, found: tuple[float, float]
) -> None:
    moments = iter([Moment(100, 500, 7), Moment(100 + took, 500 + boot, 7 + delayed)])
    seen = Pauses(now=lambda: next(moments))
    asked: list[float] = []
    nothing, late_s = seen.wait(asked.append, 60)
    assert nothing is None
    assert asked == [LOOK_S]
    assert (late_s, seen.seconds) == pytest.approx(found)


def test_it_waits_no_longer_than_there_is_time_left_and_adds_up() -> None:
    moments = iter([Moment(0, 0, 0), Moment(1, 1, 0), Moment(1, 1, 0), Moment(2, 2, 0)])
    seen, asked = Pauses(now=lambda: next(moments)), list[float]()
    seen.wait(asked.append, 0.1)
    seen.wait(asked.append, -5)
    assert asked == [0.1, 0]
    assert seen.seconds == pytest.approx(0.9 + 1)


def test_the_kernels_own_figures() -> None:
    one, two = pauses.now(), pauses.now()
    assert all(b >= a >= 0 for a, b in zip(one, two, strict=True))
