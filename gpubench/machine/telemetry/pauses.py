"""Time that went by while nothing of us ran: a paused container, SIGSTOP, a suspended machine.

The clock of whoever waits shows it: it slept for much longer than it had asked, and was not ready
to run meanwhile (else the machine was busy, which is told apart). CLOCK_MONOTONIC, by which we
measure, stands still while Linux is suspended; CLOCK_BOOTTIME does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime, monotonic
from typing import NamedTuple, TypeVar

from gpubench.machine.cores import read

T = TypeVar("T")
LOOK_S = 0.25
"""Who waits looks at the clock so often: a process that wakes up costs what it observes."""
LIMIT_S = 0.15
"""No pause, but a late timer, up to this."""


class Moment(NamedTuple):
    """All in seconds."""

    clock: float
    """CLOCK_MONOTONIC."""
    boot: float
    """CLOCK_BOOTTIME."""
    delayed: float
    """For how long this thread has been ready to run without having a core."""


def now() -> Moment:
    """Where the kernel does not count delays, they are 0."""
    words = (read(Path("/proc/thread-self/schedstat")) or "0 0").split()
    return Moment(monotonic(), clock_gettime(CLOCK_BOOTTIME), int(words[1]) / 1e9)


class Pauses:
    """Waits, and adds up how long it was kept from noticing."""

    def __init__(self, look_s: float = LOOK_S, now: Callable[[], Moment] = now) -> None:
        self._look_s, self._now = look_s, now
        self.seconds = 0.0
        """Of all pauses so far."""

    def wait(self, select: Callable[[float], T], left_s: float) -> tuple[T, float]:
        """(what ``select`` gave, seconds by which the monotonic clock went on in a pause).

        ``select`` gets the time to wait for, ``left_s`` at most; that it gives nothing need not
        mean that this is over.
        """
        asked = max(0.0, min(self._look_s, left_s))
        begin = self._now()
        found = select(asked)
        took, boot, delayed = (b - a for a, b in zip(begin, self._now(), strict=True))
        late, suspended = took - asked - delayed, boot - took
        late, suspended = (x if x > LIMIT_S else 0.0 for x in (late, suspended))
        self.seconds += late + suspended
        return found, late
