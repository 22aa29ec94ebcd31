"""Who still lives: the nodes' beats through the store, and the silence of others.

Two threads, because a call of the store may hang for ever on a cut link: one exchanges beats, the
other only looks at the clock. Both sides use it alike: rank 0 listens to everybody, the others to
rank 0. Clocks are not compared: what counts is when a beat was read.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

from gpubench.run.cluster.channel import Beat, Channel
from gpubench.run.cluster.transport import StoreLost


class Pulse:
    """``on_end(rank, why, finished)`` is called once for a node that left or fell silent.

    It returns what to tell that node: should it wake, it must not go on.
    """

    def __init__(self, timeout_s: float, on_end: Callable[[int, str, bool], str]) -> None:
        self._timeout_s, self._on_end = timeout_s, on_end
        self._period = min(1.0, timeout_s / 5)
        self._channels: dict[int, Channel] = {}
        """Of the nodes that must be heard."""
        self._heard: dict[int, float] = {}
        self._left: dict[int, Beat] = {}
        self._over: set[int] = set()
        """Told to ``on_end``."""
        self._farewells: dict[int, Beat] = {}
        self._own = Beat()
        self._broken = ""
        self._wake, self._said, self._stopped = Event(), Event(), Event()
        self._threads = [
            Thread(target=self._exchange, name="beats", daemon=True),
            Thread(target=self._watch, name="watch", daemon=True),
        ]

    def start(self) -> None:
        """Begin to beat."""
        for thread in self._threads:
            thread.start()

    def listen(self, other: int, channel: Channel) -> None:
        """From now on that node must be heard."""
        self._heard[other] = monotonic()
        self._channels[other] = channel

    def leave(self, why: str, finished: bool, wait_s: float) -> None:
        """Say so in a last beat, and give the others ``wait_s`` to say the same."""
        end = monotonic() + wait_s
        self._own = Beat(why, finished)
        self._wake.set()
        self._said.wait(wait_s)
        while self._channels.keys() - self._over and not self._broken and monotonic() < end:
            self._stopped.wait(0.02)
        self._stopped.set()
        self._wake.set()
        self._threads[0].join(max(0.1, end - monotonic()))

    def _exchange(self) -> None:
        while not self._stopped.is_set():
            own = self._own
            try:
                for other, channel in list(self._channels.items()):
                    if farewell := self._farewells.pop(other, None):
                        channel.send(farewell)
                    elif own.left or other not in self._over:
                        channel.send(own)
                        self._hear(other, channel)
            except StoreLost as error:
                self._broken = f"the connection to the store broke: {error}"
                return
            if own.left:
                self._said.set()
            self._wake.wait(self._period)
            self._wake.clear()

    def _hear(self, other: int, channel: Channel) -> None:
        while (beat := channel.receive(0)) is not None:
            self._heard[other] = monotonic()
            if isinstance(beat, Beat) and beat.left:
                self._left[other] = beat

    def _watch(self) -> None:
        while not self._stopped.is_set():
            for other in self._channels.keys() - self._over:
                if (why := self._ended(other)) is not None:
                    self._over.add(other)
                    left = self._left.get(other, Beat())
                    self._farewells[other] = Beat(self._on_end(other, why, left.finished))
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
