"""Copies on streams of their own, under a race detector: no wait is missing, none too many."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from gpubench.backends import _torch
from tests.cuda_races import Clock, Gpu, Race, Tensor, later


def replay(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> list[int]:
    """Answers to two bursts of four batches that are copied in, computed and fetched.

    The host waits after each burst only: while it waits for every batch, it orders much by itself.
    """
    monkeypatch.setitem(sys.modules, "torch", gpu)  # type: ignore[arg-type]
    monkeypatch.setattr(_torch, "logits_of", lambda tensor: tensor.numpy())
    target, logits = Tensor(gpu), Tensor(gpu)
    buffers: Any = _torch.Buffers(target, gpu.current, None)  # type: ignore[arg-type]
    answers: Any = _torch.Answers(gpu.current)  # type: ignore[arg-type]
    sources, found = [Tensor(gpu, i, host=True) for i in range(8)], []
    for burst in (sources[:4], sources[4:]):
        tickets = []
        for source in burst:
            buffers.copy_in(source)
            gpu.current.work([target.memory], [logits.memory])
            logits.value = target.value
            tickets.append(answers.enqueue(logits))
        found += [answers.collect(ticket) for ticket in tickets]
    return found


def test_every_batch_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replay(monkeypatch, Gpu()) == list(range(8))


def test_each_wait_that_is_left_out_is_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the host's after the first burst, and those for what it has waited for by then."""
    whole = Gpu()
    replay(monkeypatch, whole)
    found = []
    for missing in range(len(whole.edges)):
        try:
            replay(monkeypatch, Gpu(missing))
        except Race:
            found.append(whole.edges[missing])
    left_out = [what for what in whole.edges if what not in found]
    assert left_out == ["stream 1 waits for nothing"] * 2, "each buffer is free at first"
    assert len(found) >= len(whole.edges) - 4


def test_copies_in_and_out_overlap_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not ordered may happen at once: two copies ahead of a run, and no third."""
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "torch", gpu)  # type: ignore[arg-type]
    target, logits, network = Tensor(gpu), Tensor(gpu), gpu.current
    buffers: Any = _torch.Buffers(target, network, None)  # type: ignore[arg-type]
    answers: Any = _torch.Answers(network)  # type: ignore[arg-type]
    copying, fetching = gpu.streams[1:]
    sources = [Tensor(gpu, i, host=True) for i in range(4)]
    behind: list[bool] = []
    tickets = []
    first: Clock = {}
    for source in sources:
        buffers.copy_in(source)
        ran = network.work([target.memory], [logits.memory])
        first = first or ran
        behind.append(later(copying.clock, first) == copying.clock)
        tickets.append(answers.enqueue(logits))
        assert network.clock.get(id(fetching), 0) == 0, "a run waits for no answer"
    assert behind == [False, False, False, True]
