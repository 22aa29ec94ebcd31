"""Who still lives: every node's beat through the store, and the silence of the others.

Two threads, because a call of the store may hang for ever on a cut link: one exchanges beats, the
other only looks at the clock. Both sides use it alike: rank 0 listens to everybody, the others to
rank 0. Clocks are not compared: a beat counts when it has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

from gpubench.run import wire
from gpubench.run.store import Store, StoreLost

BROADCAST = -1
"""The receiver of a beat: whoever listens."""


class Pulse:
    """``on_end(rank, why, finished)`` is called once for a node that left or fell silent."""

    def __init__(
        self,
        store: Store,
        key: bytes,
        run: str,
        rank: int,
        timeout_s: float,
        on_end: Callable[[int, str, bool], None],
        tell: Callable[[str], None],
    ) -> None:
        self._store, self._key, self._run, self._rank = store, key, run, rank
        self._timeout_s, self._on_end, self._tell = timeout_s, on_end, tell
        self._period = min(1.0, timeout_s / 5)
        self._listening: set[int] = set()
        self._heard: dict[int, float] = {}
        self._seen: dict[int, tuple[int, bytes]] = {}
        self._left: dict[int, wire.Beat] = {}
        self._own = wire.Beat()
        self._count = 0
        self._refused = 0
        self._broken = ""
        self._wake, self._said, self._stopped = Event(), Event(), Event()
        self._threads = [
            Thread(target=target, name=target.__name__.strip("_"), daemon=True)
            for target in (self._exchange, self._watch)
        ]

    def start(self) -> None:
        """Begin to beat."""
        for thread in self._threads:
            thread.start()

    def listen(self, other: int) -> None:
        """From now on that node must be heard."""
        self._heard[other], self._seen[other] = monotonic(), (-1, b"")
        self._listening.add(other)

    def leave(self, why: str, finished: bool, wait_s: float) -> None:
        """Say so in a last beat, and give the others ``wait_s`` to say the same."""
        end = monotonic() + wait_s
        self._own = wire.Beat(why, finished)
        self._wake.set()
        self._said.wait(wait_s)
        while self._listening and not self._broken and monotonic() < end:
            self._stopped.wait(0.02)
        self._stopped.set()
        self._wake.set()
        self._threads[0].join(max(0.1, end - monotonic()))

    def _exchange(self) -> None:
        while not self._stopped.is_set():
            own = self._own
            try:
                self._beat(own)
                for other in sorted(self._listening):
                    self._hear(other)
            except StoreLost as error:
                self._broken = f"the connection to the store broke: {error}"
                return
            if own.left:
                self._said.set()
            self._wake.wait(self._period)
            self._wake.clear()

    def _beat(self, beat: wire.Beat) -> None:
        self._count += 1
        head = wire.Head(self._run, self._rank, BROADCAST, self._count)
        self._store.put(f"beat/{self._rank}", wire.seal(self._key, head, wire.encode(beat)))

    def _hear(self, other: int) -> None:
        data = self._store.get(f"beat/{other}")
        last, same = self._seen[other]
        if data is None or data == same:
            return
        try:
            count, beat = self._believed(other, data, last)
        except wire.Refused as why:
            self._seen[other] = last, data
            self._refused += 1
            if self._refused <= wire.MAX_TOLD:
                self._tell(f"refused a beat in node {other}'s name: {why}")
            return
        self._seen[other] = count, data
        self._heard[other] = monotonic()
        if beat.left:
            self._left[other] = beat

    def _believed(self, other: int, data: bytes, last: int) -> tuple[int, wire.Beat]:
        head, body = wire.unseal(self._key, data)
        beat = wire.decode(body)
        if (head.run, head.sender, head.to) != (self._run, other, BROADCAST):
            raise wire.Refused(f"it is of run {head.run!r}, from {head.sender}")
        if head.seq <= last:
            raise wire.Refused(f"a replay: number {head.seq} after {last}")
        if not isinstance(beat, wire.Beat):
            raise wire.Refused(f"a {type(beat).__name__} is no beat")
        return head.seq, beat

    def _watch(self) -> None:
        while not self._stopped.is_set():
            for other in sorted(self._listening):
                if (why := self._ended(other)) is not None:
                    self._listening.discard(other)
                    left = self._left.get(other)
                    self._on_end(other, why, left is not None and left.finished)
            self._stopped.wait(self._period / 2)

    def _ended(self, other: int) -> str | None:
        """Why a node is gone, or None."""
        if other in self._left:
            return self._left[other].left
        if self._broken:
            return self._broken
        if monotonic() - self._heard[other] > self._timeout_s:
            return f"silent for {self._timeout_s:g} s"
        return None
