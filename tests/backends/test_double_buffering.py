"""Copies on a stream of their own, on a simulated device that runs its streams in any order."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from gpubench.backends import _torch

Choose = Callable[[list["Stream"]], "Stream"]


class Event:
    """What was recorded last; a wait that is enqueued is for that, as in CUDA."""

    def __init__(self) -> None:
        self.done: list[bool] = [True]  # never recorded: nothing to wait for

    def record(self, stream: Stream) -> None:
        done = self.done = [False]
        stream.enqueue(lambda: done.__setitem__(0, True))


class Stream:
    """Work in order; an entry may have to wait for another stream's."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], object], list[bool]]] = deque()

    def enqueue(self, work: Callable[[], object], after: list[bool] | None = None) -> None:
        self.queue.append((work, after or [True]))

    def wait_event(self, event: Event) -> None:
        self.enqueue(lambda: None, event.done)

    def synchronize(self) -> None:
        """Nothing is enqueued yet where this is called."""
        assert not self.queue


class Gpu:
    """Stands in for torch, with what `_torch.Buffers` uses of it."""

    float32 = "float32"

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.current = self.stream()
        self.cuda = SimpleNamespace(Stream=self.stream, Event=Event, stream=self.on)

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def zeros(self, *_: object, **__: object) -> Tensor:
        return Tensor(self)

    def work_off(self, choose: Choose) -> None:
        """Until nothing is left; ``choose`` says which of the streams that can go on does."""
        while waiting := [s for s in self.streams if s.queue]:
            ready = [s for s in waiting if s.queue[0][1][0]]
            assert ready, "the streams wait for one another"
            choose(ready).queue.popleft()[0]()


class Tensor:
    """A batch: one value."""

    shape, device, value = (4,), "cuda", -1

    def __init__(self, gpu: Gpu, value: int = -1) -> None:
        self._gpu, self.value = gpu, value

    def copy_(self, source: Tensor, non_blocking: bool = False) -> None:
        self._gpu.current.enqueue(lambda: setattr(self, "value", source.value))


def replay(
    monkeypatch: pytest.MonkeyPatch, choose: Choose, batches: int = 12
) -> tuple[list[int], Gpu]:
    """What the network read in each of its runs, all enqueued before the device begins."""
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "torch", gpu)  # type: ignore[arg-type]
    network, target, read = gpu.current, Tensor(gpu), []  # type: ignore[var-annotated]
    buffers: Any = _torch.Buffers(target, network, None)  # type: ignore[arg-type]
    for number in range(batches):
        buffers.copy_in(Tensor(gpu, number))
        network.enqueue(lambda: read.append(target.value))
    gpu.work_off(choose)
    return read, gpu


@pytest.mark.parametrize("seed", range(30))
def test_every_run_reads_its_own_batch_whatever_is_faster(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    read, _ = replay(monkeypatch, random.Random(seed).choice)
    assert read == list(range(12))


@pytest.mark.parametrize("first", [0, -1])
def test_a_fast_bus_and_a_fast_network(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    read, _ = replay(monkeypatch, lambda ready: ready[first])
    assert read == list(range(12))


def test_the_next_batch_crosses_the_bus_while_the_network_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the network standing still, two batches are copied and no third."""
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "torch", gpu)  # type: ignore[arg-type]
    network = gpu.current
    buffers: Any = _torch.Buffers(Tensor(gpu), network, None)  # type: ignore[arg-type]
    network.enqueue(lambda: None, [False])
    for number in range(3):
        buffers.copy_in(Tensor(gpu, number))
    with pytest.raises(AssertionError, match="wait for one another"):
        gpu.work_off(lambda ready: ready[0])
    assert [pair[0].value for pair in buffers._pairs] == [0, 1]
