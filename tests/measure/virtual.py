"""A clock that moves only when a session works, so that the real protocol runs in no time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np

from gpubench.backends.base import Session
from gpubench.measure.protocol import measure, warm_up
from gpubench.records.samples import Samples
from gpubench.suite.types import Cell, Policy


class VirtualClock:
    """Call it for the time; every reading costs ``reading_ns``."""

    def __init__(self, reading_ns: int = 50) -> None:
        self.ns = 0
        self._reading = reading_ns

    def __call__(self) -> int:
        self.ns += self._reading
        return self.ns


class VirtualSession(Session):
    """Takes durations from ``process`` and spends them when it is waited for, as a GPU does."""

    def __init__(self, clock: VirtualClock, process: Iterator[float], enqueue_ns: int = 0) -> None:
        self.facts: dict[str, Any] = {}
        self.calls: list[str] = []
        self._clock, self._process, self._enqueue = clock, process, enqueue_ns
        self._pending = 0

    def copy_in(self, images: Any) -> None:
        self.calls.append("copy_in")
        self._clock.ns += 1_000

    def run(self) -> None:
        self._clock.ns += self._enqueue
        self._pending += round(next(self._process)) - self._enqueue

    def sync(self) -> None:
        self._clock.ns += max(0, self._pending)
        self._pending = 0

    def copy_out(self) -> Any:
        self.calls.append("copy_out")
        self._clock.ns += 2_000
        return np.zeros((1, 10), np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def constant(ns: float) -> Iterator[float]:
    while True:
        yield ns


def process(function: Callable[[int], float]) -> Iterator[float]:
    index = 0
    while True:
        yield function(index)
        index += 1


def make_cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {
        "backend": "fake",
        "device": "cpu",
        "model": "resnet18",
        "weights": "probe",
        "images": "digits",
        "precision": "fp32",
        "batch_size": 1,
        "replicas": 1,
        "cores": 1,
        "scenario": "latency",
        "boundary": "compute",
    }
    return Cell(**(values | changes))


def replay(durations_ns: Iterable[float]) -> Iterator[float]:
    """Durations drawn beforehand; a clear end, for a generator that ends would pass for others."""
    yield from durations_ns
    raise AssertionError("the trace was shorter than the protocol wanted")


def run_repeat(durations_ns: Iterable[float], policy: Policy) -> tuple[Samples, list[str]]:
    """One repeat of a latency cell as a worker measures it, and its flags."""
    clock = VirtualClock(reading_ns=1)
    session = VirtualSession(clock, replay(durations_ns))
    sampler = warm_up(session, _NO_IMAGES, _CELL, policy, clock)
    return measure(sampler, policy, clock), sampler.flags


_CELL, _NO_IMAGES = make_cell(), np.zeros((1, 3, 4, 4), np.float32)
