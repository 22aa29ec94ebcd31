from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gpubench.analysis.pipeline import breakdown
from gpubench.measure import protocol
from gpubench.pipeline.iteration import Overlapped, Serial, postprocess
from gpubench.records.record import Record
from gpubench.suite.types import Policy
from tests.measure.virtual import VirtualClock, VirtualSession, constant, make_cell

MS = 1_000_000


class VirtualLoader:
    """Fills one slot after the other in ``load_ns``, beside whoever moves the clock."""

    def __init__(self, clock: VirtualClock, depth: int, load_ns: Callable[[int], int]) -> None:
        """``load_ns``: of a batch, by its number."""
        self.slots = [np.zeros((1, 3, 4, 4), np.float32) for _ in range(depth)]
        self.taken = self.number = 0
        self._clock, self._load_ns = clock, load_ns
        self._free: deque[int] = deque([0] * depth)
        """When each slot that nobody holds became free."""
        self._last = 0

    def next(self) -> Any:
        self._last = max(self._last, self._free.popleft()) + self._load_ns(self.number)
        self.number += 1
        self._clock.ns = max(self._clock.ns, self._last)
        self.taken += 1
        return SimpleNamespace(images=self.slots[0])

    def release(self, slot: Any) -> None:
        self._free.append(self._clock.ns)

    def rewind(self, batches: int, held: Any) -> Any:
        self.number = max(0, self.number - batches - len(self.slots))
        return held

    def pictures(self, skip: int, batches: int) -> range:
        return range(self.number + skip, self.number + skip + batches)


class VirtualPositions:
    """Pictures by their number, of which no two are the same."""

    def __init__(self) -> None:
        self.at, self.ahead = 0, deque[int]()

    def rewind(self, pictures: int) -> None:
        self.at -= pictures

    def follow(self, positions: Iterable[int]) -> None:
        self.ahead = deque(positions)

    def take(self) -> int:
        if self.ahead:
            return self.ahead.popleft()
        self.at += 1
        return self.at - 1


class VirtualData:
    """A batch is a picture."""

    def __init__(
        self, clock: VirtualClock, session: VirtualSession,
        decode_ns: Callable[[int], int] = lambda _: 5 * MS,
    ) -> None:  # fmt: skip
        self._clock, self._session, self._decode_ns = clock, session, decode_ns
        self.positions = VirtualPositions()

    def load(self) -> None:
        for part in self.parts().values():
            part()

    def hand_over(self) -> None:
        self._session.copy_in(None)

    def parts(self) -> dict[str, Any]:
        def spend(ns: int) -> None:
            self._clock.ns += ns

        def read() -> None:
            self._number = self.positions.take()
            spend(MS)

        return {"read": read, "decode": lambda: spend(self._decode_ns(self._number)),
                "transform": lambda: spend(2 * MS)}  # fmt: skip


def overlapped(depth: int, load_ms: float, run_ms: float) -> tuple[Any, Any, Any, VirtualClock]:
    clock = VirtualClock(reading_ns=1)
    loader = VirtualLoader(clock, depth, lambda _: round(load_ms * MS))
    session = VirtualSession(clock, constant(run_ms * MS))
    data = VirtualData(clock, session)
    path = Overlapped(loader, lambda slot: session.copy_in(slot.images) or (), session, data)
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
    assert path.stages(20, 0.1, clock) == pytest.approx(
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
    loader, session = VirtualLoader(clock, 3, lambda _: MS), Later(clock, constant(MS))
    data = VirtualData(clock, session)
    path = Overlapped(loader, lambda slot: session.copy_in(slot.images) or (), session, data)
    for _ in range(3):
        path.enqueue()
    path.finish()
    path.finish()
    assert session.order == ["run", "run", "answer 1", "run", "answer 2", "answer 3"]
    path.hold()
    assert loader.taken == 6, "every slot was given back"
    path.stages(3, 0.01, clock)
    assert session.order[-1].startswith("answer")


def test_a_decoder_ahead_has_every_batch_computed_by_the_end_of_a_sample() -> None:
    path, loader, *_ = overlapped(4, 1, 1)
    given: list[Any] = []

    def give(slot: Any) -> Any:
        given.append(slot)
        return (len(given) - 2,) if len(given) > 1 else None

    path._give, path._data.flush = give, lambda: (len(given) - 1,)
    for _ in range(5):
        path.enqueue()
    assert len(path.running.last) == 4, "all but the last are computed"
    path.finish()
    assert [batch for batch, _ in path.running.last] == [(0,), (1,), (2,), (3,), (4,)]
    path.hold()
    assert loader.taken == 9, "every slot was given back"


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
    loader, session = VirtualLoader(clock, depth, lambda _: MS), Several(clock, constant(MS))
    data = VirtualData(clock, session)
    path = Overlapped(loader, lambda slot: session.copy_in(slot.images) or (), session, data)
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
    path = Serial(VirtualData(clock, session), session, 1)
    cell = make_cell(boundary="pipeline")
    sampler = protocol.warm_up(session, np.zeros(1), cell, Policy(), clock, pipeline=path)
    protocol.pause(sampler)
    protocol.once_more(sampler, clock=clock)
    measured = protocol.measure(sampler, Policy(), clock)
    assert measured.durations_ns[0] == pytest.approx(18_003_000, rel=1e-4)
    assert list(path.stages(20, 0.1, clock)) == [
        "read", "decode", "transform", "copy_in", "run", "copy_out", "postprocess"
    ]  # fmt: skip


def large(number: int) -> int:
    """Of one picture in 15, and another one now and then, decoding takes 60 times as long."""
    return 300 * MS if number % 15 == 7 or number % 44 == 9 else 5 * MS


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_stages_are_those_of_the_batches_that_were_sampled(scenario: str) -> None:
    """Then parts, rates and what would be free agree, however pictures differ."""
    clock = VirtualClock(reading_ns=1)
    session = VirtualSession(clock, constant(10 * MS))
    data = VirtualData(clock, session, large)
    path: Any = Serial(data, session, 1)
    if scenario == "throughput":
        loader = VirtualLoader(clock, 4, lambda number: 3 * MS + large(number))
        path = Overlapped(loader, lambda slot: session.copy_in(slot.images) or (), session, data)
    policy = Policy(duration_s=4.0, warmup_s=0.1)
    cell = make_cell(scenario=scenario, boundary="pipeline", cores=2)
    sampler = protocol.warm_up(session, np.zeros(1), cell, policy, clock, pipeline=path)
    protocol.pause(sampler)
    protocol.once_more(sampler, clock=clock)
    measured = protocol.measure(sampler, policy, clock)
    protocol.pause(sampler)
    taken = path.stages(sum(measured.batches), 60.0, clock)
    sampled = sum(measured.durations_ns) / sum(measured.batches)
    record = Record(cell=cell, repeat=0, status="ok",
                    replicas=[replace(measured, stages_ns=taken)])  # fmt: skip
    found = breakdown([record])
    assert found is not None
    assert found.bottleneck == "decode"
    if scenario == "latency":
        assert sum(taken.values()) == pytest.approx(sampled, rel=1e-3)
        assert found.serial_ns == pytest.approx(sampled, rel=1e-3)
    else:
        alone = taken["read"] + taken["decode"] + taken["transform"]
        assert taken["loader"] == pytest.approx(alone, rel=1e-3)
        assert taken["loader"] == pytest.approx(sampled, rel=0.05)
        assert found.share_of_slowest == pytest.approx(1, rel=0.05)


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
