"""The device's own time: what it is made of, what reading it costs, and phases for tracers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubench.measure.device_time import TURNS, device_time, phase
from tests.measure.virtual import VirtualClock, VirtualSession, constant, make_cell

IMAGES = np.zeros(1)


class Gpu(VirtualSession):
    """Launches in 30 us, copies in 40 us and runs 200 us on a device whose clock costs 2 us."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, constant(200_000), enqueue_ns=30_000)
        self.ahead, self.marks = 0, 0

    def copy_in(self, images: Any) -> None:
        self.ahead += 40_000
        self._pending += 40_000

    def run(self) -> None:
        super().run()
        self.ahead += 200_000
        self._pending += 30_000  # the device works for all of the 200 us, once it was launched

    def mark(self) -> int:
        self.marks += 1
        self._clock.ns += 2_000
        return self.ahead

    def between_ns(self, first: int, second: int) -> int:
        return second - first


@pytest.mark.parametrize("copies", [False, True])
def test_a_batch_is_told_apart_by_the_devices_clock(copies: bool) -> None:
    clock = VirtualClock(reading_ns=0)
    session = Gpu(clock)
    found = device_time(session, IMAGES, copies=copies, clock=clock)
    assert found is not None
    assert found["run"] == 200_000
    assert found.get("copy_in") == (40_000 if copies else None)
    marks = 3 if copies else 2
    assert found["cost"] == 2_000 * marks
    assert found["wall"] == 230_000 + 40_000 * copies + found["cost"]
    assert found["outside"] == 30_000 + found["cost"]
    assert session.marks == 1 + marks * TURNS, "half of the batches have none"


def test_without_such_a_clock_nothing_is_run() -> None:
    session = VirtualSession(VirtualClock(), iter(()))
    assert device_time(session, IMAGES, copies=False) is None


def test_a_tracer_of_cuda_sees_phases_by_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    nvtx = SimpleNamespace(range_push=seen.append, range_pop=lambda: seen.append("end"))
    cuda_of, build = SimpleNamespace(nvtx=nvtx), SimpleNamespace(cuda="13.0")
    torch = SimpleNamespace(cuda=cuda_of, version=build)
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    cuda = make_cell(device="cuda")
    with pytest.raises(ValueError), phase(cuda, "sample"):  # noqa: PT011
        raise ValueError
    assert seen == [f"gpubench:{cuda.label}:sample", "end"]
    with phase(make_cell(), "sample"):
        assert len(seen) == 2, "on a CPU there is nothing to trace"
    build.cuda = None
    with phase(cuda, "sample"):
        assert len(seen) == 2, "torch's build for CPUs has no such ranges, and says so by raising"
    monkeypatch.delitem(sys.modules, "torch")
    with phase(cuda, "sample"):
        pass
