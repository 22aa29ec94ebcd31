"""One job for all replicas of a task: how large it is, and how its units are handed out.

A unit is a block of batches that is waited for once. ``static``: every replica gets an equal share
beforehand. ``dynamic``: whoever is free takes the next one from a queue.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from statistics import fmean, median
from typing import Any

from msgspec import Struct

from gpubench.measure.protocol import of_turn
from gpubench.run.agent.messages import AtBarrier, Go, Measure
from gpubench.suite.types import MIN_BLOCKS, Policy

UNIT_NS = 5_000_000
"""A unit lasts at least so long, so that handing it out costs next to nothing."""
AWAKE_S = 0.002
"""Iterations for so long, and one at least, end the wait for a turn: caches have cooled."""


class JobSize(Struct, frozen=True):
    """What the replicas of a task share."""

    iterations: int
    """Batches of a unit."""
    share: int
    """Units for each replica, if all got as many."""


def size(batch_ns: Sequence[float], policy: Policy) -> JobSize:
    """A job that takes ``policy.duration_s`` when no replica ever waits.

    ``batch_ns``: of each replica, as measured in its warm-up. Units are cut for the typical one.
    """
    batch_ns = [max(1.0, ns) for ns in batch_ns]
    iterations = max(1, round(UNIT_NS / median(batch_ns)))
    share = round(policy.duration_s * 1e9 * fmean(1 / (ns * iterations) for ns in batch_ns))
    return JobSize(iterations, min(max(MIN_BLOCKS, share), policy.max_samples))


class Queue:
    """Units that nobody has taken yet: a semaphore of the kernel, known by a file descriptor.

    Taking one is a single system call, and atomic. A process that dies holds nothing that others
    wait for, and the queue is gone with the last process that knows it.
    """

    def __init__(self, fd: int | None = None) -> None:
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE
        self._fd = os.eventfd(0, flags) if fd is None else fd

    def fill(self, units: int) -> None:
        """Add ``units``."""
        os.eventfd_write(self._fd, units)

    def claim(self) -> bool:
        """Take one; whether there was one."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)

    def __reduce__(self) -> tuple[Callable[..., Queue], tuple[Any]]:
        """For a worker that is being forked: the descriptor travels to it."""
        return _received, (reduction.DupFd(self._fd),)


def _received(handle: Any) -> Queue:
    return Queue(handle.detach())


class Dispatcher:
    """The agent's side: gives the workers of a task their job, in every turn the same."""

    def __init__(self, request: Measure) -> None:
        self._request = request
        self._job = JobSize(1, 1)
        self._awake_ns = 0
        self.queue = Queue() if request.cell.dispatch == "dynamic" else None

    def warm(self, messages: Sequence[AtBarrier]) -> None:
        """Every replica is warm and tells how fast it is."""
        policy = of_turn(self._request.policy, self._request.turns)
        self._job = size([message.batch_ns for message in messages], policy)
        slowest = max(message.p50_ns for message in messages)
        self._awake_ns = round(2 * slowest + 1e9 * awake_s(self._request))

    def hand_out(self, at_ns: int) -> Go:
        """What every replica is told; before the job starts they have time to wake up again."""
        if self.queue:
            self.queue.fill(self._job.share * self._request.cell.replicas)
        return Go(at_ns + self._awake_ns, self._job.iterations, self._job.share)

    def close(self) -> None:
        if self.queue:
            self.queue.close()


def awake_s(request: Measure) -> float:
    """How long a replica iterates before a turn, once at least."""
    return AWAKE_S if request.turns > 1 else 0.0


def claims(go: Go, queue: Queue | None) -> Callable[[], bool]:
    """How a replica gets its next unit: from the queue, or off its own share."""
    if queue is not None:
        return queue.claim
    share = iter(range(go.units))
    return lambda: next(share, None) is not None
