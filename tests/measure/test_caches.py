"""What the caches hold when a batch begins: what is done for it, when, and off the clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubench.measure import caches, protocol
from gpubench.suite.types import Policy
from tests.measure.virtual import VirtualClock, VirtualSession, constant, make_cell

IMAGES = [np.full((1, 3, 4, 4), i, np.float32) for i in range(3)]
LLC = 10 * IMAGES[0].nbytes


class Session(VirtualSession):
    """Remembers what it was given."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, constant(5e6))
        self.seen: list[Any] = []
        self.attached: list[Any] = []

    def attach(self, arrays: Any) -> bool:
        self.attached = list(arrays)
        return True

    def copy_in(self, images: Any) -> None:
        super().copy_in(images)
        self.seen.append(images)


@pytest.mark.parametrize("cache", ["warm", "rotating", "cold"])
def test_each_batch_finds_the_caches_as_it_says(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_bytes", lambda device: LLC)
    clock = VirtualClock()
    emptied: list[int] = []

    def emptying(device: str, size: int) -> Any:
        def empty() -> None:
            emptied.append(size)
            clock.ns += 1_000_000_000

        return empty

    monkeypatch.setattr(caches, "_emptying", emptying)
    session, cell = Session(clock), make_cell(cache=cache)
    before = caches.preparing(session, IMAGES, cell)
    sampler = protocol.warm_up(session, IMAGES[0], cell, Policy(), clock, before=before)
    found = protocol.measure(sampler, Policy(), clock)
    assert max(found.durations_ns) < 5_001_000, "what is done before is off the clock"
    samples = len(found.durations_ns) + len(found.warmup_durations_ns)
    assert len(emptied) == (samples if cache == "cold" else 0)
    assert {*emptied} <= {2 * LLC}
    if cache == "warm":
        assert (before, session.seen, session.attached) == (None, [], [])
        return
    assert len(session.seen) == samples
    assert sum(array.nbytes for array in session.attached) >= 2 * LLC
    for given, held in zip(session.seen, session.attached, strict=False):
        assert given is held, "each in its turn"
    assert [array.flat[0] for array in session.seen[:4]] == [0, 1, 2, 0]


def test_a_batch_too_short_for_the_clock_is_not_grouped_with_others() -> None:
    clock = VirtualClock()
    cell = make_cell(cache="rotating")
    session = VirtualSession(clock, constant(20))
    sampler = protocol.warm_up(
        session, IMAGES[0], cell, Policy(warmup_s=0.001), clock, before=lambda: None
    )
    assert (sampler.iterations, sampler.flags) == (1, [])


def test_it_is_emptied_for_real_and_its_size_is_known() -> None:
    assert 1 << 18 <= caches._bytes("cpu") <= 4 << 30
    caches._emptying("cpu", 1 << 16)()


def test_a_soak_comes_before_all_and_is_not_recorded() -> None:
    clock = VirtualClock()
    session = VirtualSession(clock, constant(5e6))
    begin = clock.ns
    sampler = protocol.warm_up(session, IMAGES[0], make_cell(), Policy(soak_s=30), clock)
    assert clock.ns - begin >= 30e9
    assert sum(sampler.warmup) < 2e9
