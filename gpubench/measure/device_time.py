"""A GPU's own time beside the host's, after the samples: never a second clock for a headline.

And the ranges by which NVIDIA's tools (Nsight) show what of a trace is which phase of a cell.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from gpubench.measure.loop import Clock, sample

if TYPE_CHECKING:
    from gpubench.backends.base import Images, Session
    from gpubench.suite.types import Cell

TURNS, LEAST, FOR_S = 30, 5, 0.2


def device_time(
    session: Session, images: Images, *, copies: bool, clock: Clock = perf_counter_ns
) -> dict[str, int] | None:
    """Of single batches, medians in ns; None where the device has no clock that can be read.

    ``wall`` is a batch's time from its begin until it is waited for, ``run`` the device's from the
    first piece of work to the last, with the gaps in between, ``copy_in`` likewise (with
    ``copies``). ``outside`` is what remains of the wall time: the launch before, the wait after.
    ``cost``: by how much the marks made a batch slower; batches without come in turn with them.
    """
    if session.mark() is None:
        return None
    steps: dict[str, Callable[[], object]] = {"run": session.run}
    if copies:  # without the host's conversion, for which the device would wait
        apart = session.convert(images)
        into = session.upload if apart else lambda: session.copy_in(images)
        steps = {"copy_in": into} | steps
    marks: list[Any] = []

    def marked() -> None:
        marks[:] = [session.mark()]
        for step in steps.values():
            step()
            marks.append(session.mark())

    def plain() -> None:
        for step in steps.values():
            step()

    session.sync()
    walls: dict[Callable[[], None], list[int]] = {plain: [], marked: []}
    took: dict[str, list[int]] = {name: [] for name in steps}
    for turn in range(TURNS):
        if turn >= LEAST and sum(map(sum, walls.values())) > FOR_S * 1e9:
            break
        for batch, wall in walls.items():
            wall += sample(batch, session.sync, clock=clock).durations
        for name, (begin, end) in zip(steps, pairwise(marks), strict=True):
            took[name].append(session.between_ns(begin, end))
    found = {name: round(median(ns)) for name, ns in took.items()}
    wall_ns, bare_ns = round(median(walls[marked])), round(median(walls[plain]))
    outside = max(0, wall_ns - sum(found.values()))
    return {"wall": wall_ns, **found, "outside": outside, "cost": wall_ns - bare_ns,
            "batches": len(walls[marked])}  # fmt: skip


@contextmanager
def phase(cell: Cell, name: str) -> Iterator[None]:
    """What is done meanwhile is ``gpubench:cell:name`` to whoever traces CUDA (NVTX)."""
    torch = sys.modules.get("torch") if cell.device == "cuda" else None
    # another runtime's: nothing is imported for it; a build for CPUs has no ranges
    if torch is None or torch.version.cuda is None:
        yield
        return
    torch.cuda.nvtx.range_push(f"gpubench:{cell.label}:{name}")
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
