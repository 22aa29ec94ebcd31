from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubench.measure import protocol
from gpubench.pipeline.iteration import Overlapped, Serial, postprocess
from gpubench.suite.types import Policy
from tests.measure.virtual import VirtualClock, VirtualSession, constant, make_cell

MS = 1_000_000


class VirtualLoader:
    """Fills one slot after the other in ``load_ns``, beside whoever moves the clock."""

    def __init__(self, clock: VirtualClock, depth: int, load_ns: int) -> None:
        self.slots = [np.zeros((1, 3, 4, 4), np.float32) for _ in range(depth)]
        self.taken = 0
        self._clock, self._load_ns = clock, load_ns
        self._free: deque[int] = deque([0] * depth)
        """When each slot that nobody holds became free."""
        self._last = 0

    def next(self) -> Any:
        self._last = max(self._last, self._free.popleft()) + self._load_ns
        self._clock.ns = max(self._clock.ns, self._last)
        self.taken += 1
        return SimpleNamespace(images=self.slots[0])

    def release(self, slot: Any) -> None:
        self._free.append(self._clock.ns)


class VirtualData:
    def __init__(self, clock: VirtualClock, session: VirtualSession) -> None:
        self._clock, self._session = clock, session

    def load(self) -> None:
        for part in self.parts().values():
            part()

    def hand_over(self) -> None:
        self._session.copy_in(None)

    def parts(self) -> dict[str, Any]:
        def spend(ns: int) -> Any:
            return lambda: setattr(self._clock, "ns", self._clock.ns + ns)

        return {"read": spend(MS), "decode": spend(5 * MS), "transform": spend(2 * MS)}


def overlapped(depth: int, load_ms: float, run_ms: float) -> tuple[Any, Any, Any, VirtualClock]:
    clock = VirtualClock(reading_ns=1)
    loader = VirtualLoader(clock, depth, round(load_ms * MS))
    session = VirtualSession(clock, constant(run_ms * MS))
    data = VirtualData(clock, session)
    path = Overlapped(loader, lambda slot: session.copy_in(slot.images), session, data)
    return path, loader, session, clock


def rate_ms(path: Any, session: Any, clock: VirtualClock, policy: Policy) -> float:
    """Measured ms per batch, after a pause of an hour at the barrier."""
    cell = make_cell(scenario="throughput", boundary="pipeline")
    sampler = protocol.warm_up(session, np.zeros(1), cell, policy, clock, pipeline=path)
    protocol.pause(sampler)
    clock.ns += 3600 * 10**9
    protocol.once_more(sampler, clock=clock)
    measured = protocol.measure(sampler, policy, clock)
    return sum(measured.durations_ns) / len(measured.durations_ns) / measured.iterations / MS


@pytest.mark.parametrize("load", [2.0, 9.0, 9.9, 10.1, 12.0, 40.0])
@pytest.mark.parametrize("depth", [3, 40])
def test_a_sample_counts_what_was_loaded_in_it(depth: int, load: float) -> None:
    """Ten blocks of one batch each, the shortest sampling that there is."""
    path, _, session, clock = overlapped(depth, load, 10)
    slowest = max(load, 10.003)  # the copies are 3 us
    short = Policy(duration_s=0.001, block_s=0.001, warmup_s=0.01)
    assert rate_ms(path, session, clock, short) == pytest.approx(slowest, rel=0.01)


def test_a_full_queue_would_have_flattered() -> None:
    """The same without emptying it: what the test above is worth."""
    path, _, session, clock = overlapped(40, 40, 10)
    path.hold = path.resume = lambda: None
    path.settle = 1
    short = Policy(duration_s=0.001, block_s=0.001, warmup_s=0.01)
    assert rate_ms(path, session, clock, short) == pytest.approx(10, rel=0.1)


def test_held_it_stands_still() -> None:
    path, loader, _, clock = overlapped(4, 1, 1)
    path.hold()
    taken = loader.taken
    assert taken == 4
    path.hold()
    assert loader.taken == taken
    clock.ns += 10**9
    path.resume()
    begin = clock.ns
    path.enqueue()
    assert clock.ns - begin >= 2 * MS, "the first batch is loaded only now"


def test_stages_of_what_overlaps() -> None:
    path, _, _, clock = overlapped(4, 7, 10)
    assert path.stages(0.1, clock) == pytest.approx(
        {
            "read": MS, "decode": 5 * MS, "transform": 2 * MS, "copy_in": 1_000, "run": 10 * MS,
            "copy_out": 2_000, "postprocess": 0, "loader": 7 * MS, "session": 10_003_000,
        }, rel=1e-3, abs=3,
    )  # fmt: skip


def test_answers_that_can_be_fetched_later_are() -> None:
    """As on CUDA: the host prepares the next batch while this one runs."""

    class Later(VirtualSession):
        in_flight = 1

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.order: list[str] = []

        def run(self) -> None:
            super().run()
            self.order.append("run")

        def enqueue_out(self) -> int:
            return self.order.count("run")

        def collect(self, ticket: int) -> Any:
            self.order.append(f"answer {ticket}")
            return np.zeros((1, 10), np.float32)

    clock = VirtualClock(reading_ns=1)
    loader, session = VirtualLoader(clock, 3, MS), Later(clock, constant(MS))
    data = VirtualData(clock, session)
    path = Overlapped(loader, lambda slot: session.copy_in(slot.images), session, data)
    for _ in range(3):
        path.enqueue()
    path.finish()
    path.finish()
    assert session.order == ["run", "run", "answer 1", "run", "answer 2", "answer 3"]
    path.hold()
    assert loader.taken == 6, "every slot was given back"
    path.stages(0.01, clock)
    assert session.order[-1].startswith("answer")


@pytest.mark.parametrize(("depth", "kept"), [(6, 3), (4, 2), (3, 1), (2, 1)])
def test_several_batches_are_in_flight_as_far_as_there_are_slots(depth: int, kept: int) -> None:
    class Several(VirtualSession):
        in_flight = 3

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.open, self.seen = 0, [0]

        def enqueue_out(self) -> int:
            self.open += 1
            self.seen.append(self.open)
            return self.open

        def collect(self, ticket: int) -> Any:
            self.open -= 1
            return np.zeros((1, 10), np.float32)

    clock = VirtualClock(reading_ns=1)
    loader, session = VirtualLoader(clock, depth, MS), Several(clock, constant(MS))
    data = VirtualData(clock, session)
    path = Overlapped(loader, lambda slot: session.copy_in(slot.images), session, data)
    for _ in range(9):
        path.enqueue()
    assert session.open == kept
    assert max(session.seen) == kept + 1, "one more while the next is run"
    path.finish()
    assert session.open == 0
    path.hold()
    assert loader.taken == 9 + depth, "every slot was given back"


def test_latency_is_serial() -> None:
    clock = VirtualClock(reading_ns=1)
    session = VirtualSession(clock, constant(10 * MS))
    path = Serial(VirtualData(clock, session), session)
    cell = make_cell(boundary="pipeline")
    sampler = protocol.warm_up(session, np.zeros(1), cell, Policy(), clock, pipeline=path)
    protocol.pause(sampler)
    protocol.once_more(sampler, clock=clock)
    measured = protocol.measure(sampler, Policy(), clock)
    assert measured.durations_ns[0] == pytest.approx(18_003_000, rel=1e-4)
    assert list(path.stages(0.1, clock)) == [
        "read", "decode", "transform", "copy_in", "run", "copy_out", "postprocess"
    ]  # fmt: skip


def test_postprocess_gives_the_best_five_with_their_softmax() -> None:
    logits = np.random.default_rng(0).normal(0, 200, (3, 1000)).astype(np.float32)
    labels, scores = postprocess(logits)
    assert labels.tolist() == np.argsort(logits, axis=1)[:, :-6:-1].tolist()
    exact = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    assert scores == pytest.approx(np.take_along_axis(exact, labels, 1), rel=1e-4, abs=1e-7)
    assert postprocess(logits[:, :3])[0].shape == (3, 3)
    labels, scores = postprocess(exact.astype(np.float32), "probabilities")
    assert scores == pytest.approx(np.take_along_axis(exact, labels, 1)), "no second softmax"
