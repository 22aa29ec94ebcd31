"""Copies, runs and answers that overlap: in order, bounded, and checked as they were timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubench.backends.base import Session
from gpubench.errors import CellFailed
from gpubench.measure.in_flight import KEPT, Transfers
from gpubench.measure.stages import alone
from tests.measure.virtual import VirtualClock


class Later(Session):
    """Answers with what was copied in; one that ``races`` reads the batch that came after."""

    in_flight = 2

    def __init__(self, races: bool = False) -> None:
        self.facts, self._races = {}, races
        self.log: list[str] = []
        self._inputs: list[Any] = []

    def copy_in(self, images: Any) -> None:
        self.log.append("copy_in")
        self._now = images

    def run(self) -> None:
        self.log.append("run")
        self._inputs.append(self._now)

    def sync(self) -> None:
        self.log.append("sync")

    def copy_out(self) -> Any:
        return self._now.copy()

    def convert(self, images: Any) -> bool:
        return True

    def attach(self, arrays: Any) -> bool:
        self.attached = [id(array) for array in arrays]
        return True

    def enqueue_out(self) -> int:
        return len(self._inputs) - 1

    def collect(self, ticket: int) -> Any:
        self.log.append(f"answer {ticket}")
        last = len(self._inputs) - 1
        return self._inputs[min(ticket + 1, last) if self._races else ticket].copy()


BATCHES = [np.full((2, 3), value, np.float32) for value in (1, 2, 3)]


def test_two_are_outstanding_and_all_are_answered_in_the_end() -> None:
    session = Later()
    path = Transfers(session, BATCHES, attach=True)
    assert not {id(array) for array in BATCHES} & {*session.attached}, "they are copies"
    for _ in range(4):
        path.enqueue()
    expected = "copy_in run copy_in run copy_in run answer 0 copy_in run answer 1"
    assert " ".join(session.log) == expected
    path.finish()
    path.finish()
    assert session.log[-2:] == ["answer 2", "answer 3"]
    assert path.facts == {"in_flight": 2, "page_locked": True, "crosses_as": "float32"}
    assert path.settle == 3


def test_answers_of_the_timed_path_are_compared_with_answers_one_at_a_time() -> None:
    for races in (False, True):
        path = Transfers(Later(races), BATCHES, attach=False)
        for _ in range(2 * KEPT):
            path.enqueue()
        path.finish()
        if not races:
            path.check()
            continue
        with pytest.raises(CellFailed, match="while batches overlapped") as caught:
            path.check()
        assert caught.value.kind == "parity"


def test_the_hosts_part_of_a_copy_in_is_told_apart() -> None:
    clock = VirtualClock(reading_ns=0)

    class Slow(Later):
        def convert(self, images: Any) -> bool:
            clock.ns += 700
            return True

        def upload(self) -> None:
            clock.ns += 300
            self._now = BATCHES[0]

    found = alone(Slow(), BATCHES[0], clock)
    assert found == {"convert": 700, "copy_in": 300, "run": 0, "copy_out": 0}
