"""Boundary ``pipeline``: what one iteration does, and how its parts are timed alone.

`Serial` takes one batch after the other from encoded bytes to answers. `Overlapped` has a loader
that prefetches while the session computes. What it had prefetched before its first sample would
flatter its rate (a queue of 8 batches, a sample of 20, and a loader that is the bottleneck seems
1.6 times as fast as it is), and so would what it prefetches in a pause. So before each pause all
slots are taken and kept, which makes the loader stand still; after it they are given back unread.
Sampling begins with a queue that was empty and has since been used for as many batches as it has
slots: what is counted in a sample was loaded in it, but for what little then lay ready.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import fmean, median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, TypeAlias

from gpubench.measure.in_flight import InFlight
from gpubench.measure.loop import Clock, sample
from gpubench.measure.protocol import Pipeline
from gpubench.measure.stages import LEAST_STAGES, Parts, each_alone
from gpubench.workload.models import outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpubench.backends.base import Logits, Session
    from gpubench.pipeline.loader import Loader
    from gpubench.pipeline.readers import DeviceReader, Reader
    from gpubench.workload.models.outputs import Kind

    Data: TypeAlias = Reader | DeviceReader

SPARE = 2
"""Slots that do not count as in flight: one is being handed over, one is being filled."""
TOP = 5
PRECISE = 0.02
"""Batches may differ: their mean is to be known to this, or all that were sampled come again."""


def postprocess(
    logits: Logits, kind: Kind = "logits"
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """(batch, classes) -> labels and scores of the TOP best, (batch, TOP), best first."""
    import numpy as np

    most = min(TOP, logits.shape[1])
    best = np.argpartition(logits, -most, axis=1)[:, -most:]
    order = np.take_along_axis(logits, best, 1).argsort(axis=1)[:, ::-1]
    labels = np.take_along_axis(best, order, 1)
    scores = np.take_along_axis(outputs.scores(logits, kind), labels, 1)
    return labels, scores.astype(np.float32)


class Serial(Pipeline):
    """Scenario latency: one batch from encoded bytes to labels and scores, waited for."""

    settle = 1

    def __init__(self, data: Data, session: Session, batch: int, kind: Kind = "logits") -> None:
        self._data, self._session, self._batch, self._kind = data, session, batch, kind

    def enqueue(self) -> None:
        self._data.load()
        self.answer()

    def answer(self) -> None:
        """The session's part."""
        self._data.hand_over()
        self._session.run()
        self._session.sync()
        postprocess(self._session.copy_out(), self._kind)

    def finish(self) -> None:
        """Nothing is left to wait for."""

    def stages(
        self, batches: int, seconds: float, clock: Clock = perf_counter_ns
    ) -> dict[str, int]:
        """Every part."""
        self._data.positions.rewind(batches * self._batch)
        both = {**self._data.parts(), **answering(self._data, self._session, self._kind)}
        return means(each_alone(both, self._session.sync, clock, seconds=seconds, at_most=batches,
                                error=PRECISE))  # fmt: skip


class Overlapped(Pipeline):
    """Scenario throughput: a loader on cores of its own prefetches while the session computes."""

    def __init__(
        self,
        feed: Loader,
        give: Callable[[Any], Sequence[int] | None],
        session: Session,
        data: Data,
        kind: Kind = "logits",
    ) -> None:
        """``give``: a batch of the feed -> the session's input; tells where in the data set its
        pictures are. ``data``: for the stages alone."""
        self._feed, self._give, self._session, self._data = feed, give, session, data
        self._kind = kind
        self.settle = len(feed.slots)
        self._held: list[Any] = []
        self._ahead = min(session.in_flight, max(1, self.settle - SPARE))
        self._given: deque[Callable[[], object]] = deque()
        """Of batches that the decoder has and the session has not: how their slots are released."""
        self.running = self._in_flight()

    def _in_flight(self) -> InFlight:
        return InFlight(self._session, self._ahead, lambda given: postprocess(given, self._kind))

    def enqueue(self) -> None:
        """Take a batch, compute, answer, give its slot back.

        Where a session can fetch answers later, those of a batch before.
        """
        slot = self._feed.next()
        self._compute(self.running, slot, lambda: self._feed.release(slot))

    def _compute(self, running: InFlight, slot: Any, answered: Callable[[], object]) -> None:
        self._given.append(answered)
        if (indices := self._give(slot)) is not None:
            running.run(indices, self._given.popleft())

    def finish(self) -> None:
        """Compute and answer the batches that are still on their way, if any."""
        self._finish(self.running)

    def _finish(self, running: InFlight) -> None:
        while self._given:
            running.run(self._data.flush(), self._given.popleft())
        running.collect()

    def hold(self) -> None:
        """Take every slot: the loader has no room, and waits."""
        while len(self._held) < len(self._feed.slots):
            self._held.append(self._feed.next())

    def resume(self) -> None:
        """Give them back, unread."""
        while self._held:
            self._feed.release(self._held.pop(0))

    def stages(
        self, batches: int, seconds: float, clock: Clock = perf_counter_ns
    ) -> dict[str, int]:
        """Every part, and the two groups that overlap: ``loader`` and ``session``, each alone.

        The loader and its parts are timed with the same pictures: such as were sampled.
        """
        self.hold()
        sync = self._session.sync
        self._held = self._feed.rewind(batches + self.settle, self._held)
        self._data.positions.follow(self._feed.pictures(self.settle, max(batches, self.settle)))
        took = each_alone(self._data.parts(), sync, clock, seconds=seconds, at_least=self.settle,
                          at_most=batches, error=PRECISE)  # fmt: skip
        self._data.positions.follow([])
        loaded = len(took["read"])
        mine = answering(self._data, self._session, self._kind)
        found = means(took | each_alone(mine, sync, clock))
        held, running = cycle(self._held), self._in_flight()

        def compute() -> None:
            self._compute(running, next(held), lambda: None)

        each = self.settle if self._ahead else 1  # else they would not overlap
        session = sample(compute, lambda: self._finish(running), iterations=each, seconds=seconds,
                         at_least=LEAST_STAGES, clock=clock)  # fmt: skip
        self.resume()
        for _ in range(self.settle):
            self._skip()
        loader = sample(self._skip, lambda: None, at_least=loaded, clock=clock)
        self.hold()
        # the mean: several come at once, then none
        found["loader"] = round((loader.end - loader.start) / len(loader.durations))
        found["session"] = round(median(session.durations) / each)
        return found

    def _skip(self) -> None:
        self._feed.release(self._feed.next())


def means(took: dict[str, list[int]]) -> dict[str, int]:
    """Batches differ in what they cost, and only means add up to the time of them all."""
    return {name: round(fmean(ns)) for name, ns in took.items()}


def answering(data: Data, session: Session, kind: Kind) -> Parts:
    """The session's part of a batch."""
    logits: list[Any] = []

    def copy_out() -> None:
        logits[:] = [session.copy_out()]

    return {
        "copy_in": data.hand_over,
        "run": session.run,
        "copy_out": copy_out,
        "postprocess": lambda: postprocess(logits[0], kind),
    }
