"""Batches that overlap: answers of one are fetched while later ones are copied in and computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import cycle
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from gpubench.errors import CellFailed
from gpubench.measure.loop import Clock
from gpubench.measure.protocol import Pipeline
from gpubench.measure.stages import alone

if TYPE_CHECKING:
    from gpubench.backends.base import Images, Logits, Session

KEPT, CHECKED = 8, 64
"""Batches whose answers are kept, and images, a batch at least, that are checked of them."""
APART = 0.01
"""Answers to one batch may differ by so much of the largest: sums may come in another order."""


class InFlight:
    """Batches that were enqueued and not answered yet, and the last ones that were."""

    def __init__(
        self, session: Session, ahead: int, answer: Callable[[Logits], object] = lambda _: None
    ) -> None:
        """``ahead``: how many may be outstanding. ``answer``: what is done with logits."""
        self._session, self._ahead, self._answer = session, ahead, answer
        self._running: deque[tuple[Any, Callable[[], object], Any]] = deque()
        self.last: deque[tuple[Any, Logits]] = deque(maxlen=KEPT)
        """What a batch was, and its logits."""

    def run(self, batch: Any, answered: Callable[[], object] = lambda: None) -> None:
        """Run what was copied in; ``answered`` is called when its logits have come."""
        self._session.run()
        self._running.append((batch, answered, self._session.enqueue_out()))
        self.collect(self._ahead)

    def collect(self, left: int = 0) -> None:
        """Answer the oldest ones until so many are left."""
        while len(self._running) > left:
            batch, answered, ticket = self._running.popleft()
            logits = self._session.collect(ticket)
            self.last.append((batch, logits))
            self._answer(logits)
            answered()

    def check(self, again: Callable[[Any], Logits]) -> None:
        """Compare the last answers, which came while batches overlapped, with those of ``again``.

        Raises CellFailed("parity") where they differ: then one batch has overwritten another.
        """
        import numpy as np

        images = 0
        for batch, timed in reversed(self.last):
            right = again(batch)
            if not np.allclose(timed, right, rtol=0, atol=APART * float(np.abs(right).max())):
                raise CellFailed(
                    "parity",
                    "answers that were timed, while batches overlapped, differ from the answers to "
                    "the same batch alone: the session, or the decoder, read what another wrote",
                )
            images += len(timed)
            if images >= CHECKED:
                break


class Transfers(Pipeline):
    """Boundary ``transfer`` at full load: copies and runs."""

    def __init__(self, session: Session, batches: Sequence[Images], *, attach: bool) -> None:
        """``batches``: what is copied in, in turn. ``attach``: by the device itself, if it can."""
        self._session = session
        self._batches = [session.host_copy(images) for images in batches]
        self.facts: dict[str, Any] = {"in_flight": session.in_flight}
        if attach:
            locked = session.attach(self._batches)
            crosses_as = str(batches[0].dtype) if locked else "the network's type"
            self.facts |= {"page_locked": locked, "crosses_as": crosses_as}
        """What the device reads by itself it also converts; else the host has."""
        self._turn = cycle(range(len(batches)))
        self._running = InFlight(session, session.in_flight)
        self.settle = session.in_flight + 1

    def enqueue(self) -> None:
        number = next(self._turn)
        self._session.copy_in(self._batches[number])
        self._running.run(number)

    def finish(self) -> None:
        self._running.collect()

    def stages(
        self,
        batches: int,  # noqa: ARG002
        seconds: float,  # noqa: ARG002
        clock: Clock = perf_counter_ns,
    ) -> dict[str, int]:
        return alone(self._session, self._batches[0], clock)

    def check(self) -> None:
        """See `InFlight.check`."""

        def again(number: int) -> Logits:
            self._session.copy_in(self._batches[number].copy())
            self._session.run()
            self._session.sync()
            return self._session.copy_out()

        self._running.check(again)
