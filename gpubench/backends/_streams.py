"""Several sessions in one process, each on a CUDA stream of its own, that take batches in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpubench.backends._torch import TensorSession
from gpubench.backends.base import Session
from gpubench.suite.types import Cell, Option, When

if TYPE_CHECKING:
    from gpubench.backends.base import Images, Logits

_USED: When = {"device": ("cuda",), "scenario": ("throughput",), "boundary": ("compute",)}


def option(**when: tuple[str, ...]) -> Option:
    return Option.whole(
        "streams",
        "CUDA streams (contexts) that take batches in turn, so that kernels of several overlap",
        1,
        minimum=1,
        maximum=16,
        search=(1, 2),
        when=_USED | when,
    )


def unsupported(cell: Cell) -> str | None:
    """Why ``streams`` would do nothing in a cell."""
    used = all(getattr(cell, name) in values for name, values in _USED.items())
    if used or cell.options.get("streams", 1) == 1:
        return None
    return "streams take batches in turn where none is waited for: throughput, boundary compute"


class Streams(Session):
    """`run` goes to the next of them; whatever else there is to all."""

    def __init__(self, sessions: list[TensorSession]) -> None:
        import torch

        self._sessions = sessions
        self.facts = sessions[0].facts | {"streams": len(sessions)}
        self._on: Any = torch.cuda.stream
        self._set: Any = torch.cuda.set_stream
        self._each = [(s, s._input.stream) for s in sessions]
        self._turn = itertools.cycle(self._each)
        self._last = self._each[0]

    def copy_in(self, images: Images) -> None:
        for session, stream in self._each:
            with self._on(stream):
                session.copy_in(images)

    def run(self) -> None:
        session, stream = self._last = next(self._turn)
        self._set(stream)  # which a captured graph is replayed on
        session.run()

    def sync(self) -> None:
        for each in self._sessions:
            each.sync()

    def copy_out(self) -> Logits:
        """Of the last run."""
        session, stream = self._last
        with self._on(stream):
            return session.copy_out()

    def counters(self) -> dict[str, int]:
        return self._sessions[0].counters()

    def close(self) -> None:
        self._each, self._turn = [], itertools.cycle(())
        while self._sessions:
            self._sessions.pop().close()


def several(count: int, make: Callable[[Any], Any]) -> Any:
    """The session of ``make(None)``; of more than one, `Streams`, each made from the first."""
    sessions: list[Any] = []
    try:
        for _ in range(count):
            sessions.append(make(sessions[0] if sessions else None))
        return sessions[0] if count == 1 else Streams(sessions)
    except BaseException:
        while sessions:
            sessions.pop().close()
        raise
