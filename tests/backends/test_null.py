from __future__ import annotations

import time

import pytest

from gpubench.backends.base import Device
from gpubench.backends.null import Null
from gpubench.cache import Cache
from tests.backends import tiny


@pytest.mark.parametrize(("device", "batch"), [("cpu", 1), ("cuda", 64)])
def test_zeros_of_the_right_shape(device: str, batch: int, model: tiny.Model, cache: Cache) -> None:
    backend, cell = Null(), tiny.cell("null", device=device, batch_size=batch, precision="int8")
    assert backend.unsupported(cell) is None
    assert not backend.computes
    artefact = backend.prepare(cell, model, cache)  # type: ignore[arg-type]
    with backend.open(cell, artefact, Device(device)) as session:
        session.copy_in(tiny.images(batch))
        session.run()
        session.sync()
        assert session.copy_out().shape == (batch, tiny.CLASSES)
        assert not session.copy_out().any()


def test_a_run_costs_a_python_call(model: tiny.Model, cache: Cache) -> None:
    cell = tiny.cell("null")
    artefact = Null().prepare(cell, model, cache)  # type: ignore[arg-type]
    run = Null().open(cell, artefact, Device("cpu")).run

    def nothing() -> None:
        pass

    def fastest(call: object) -> int:
        times = []
        for _ in range(50):
            start = time.perf_counter_ns()
            for _ in range(100):
                call()  # type: ignore[operator]
            times.append(time.perf_counter_ns() - start)
        return min(times)

    assert fastest(run) < 3 * fastest(nothing)
