"""How many of a replica's cores prefetch and how many compute, found out in a process of its own.

In that of the replica itself a session would leave threads behind, which a loader's forked
processes would lack.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from gpubench.backends import base
from gpubench.measure.loop import sample
from gpubench.measure.path import Serial
from gpubench.run.messages import Measure, Shared
from gpubench.run.reader import Reader

if TYPE_CHECKING:
    from gpubench.backends.base import Device

TRIAL_S = 0.2
WARM, LEAST, MOST = 2, 3, 10_000


def find_out(request: Measure, device: Device) -> Shared:
    """Time the data stages on one core, then the session with all; this process is pinned."""
    from gpubench.workload import reference as ref

    cell, reference = request.cell, ref.load(Path(request.reference))
    reader = Reader(reference.dataset(), cell.decoder, reference.spec, cell.batch_size,
                    device.cores[:1], 0)  # fmt: skip
    try:
        data = _typical(reader.load)
    finally:
        reader.close()
    backend = base.get(cell.backend)
    with base.open_session(backend, cell, Path(request.artefact), device) as session:
        reader.serve(session)
        return Shared(data, _typical(Serial(reader, session).answer))


def _typical(step: Callable[[], object]) -> int:
    """Median ns."""
    for _ in range(WARM):
        step()
    taken = sample(step, lambda: None, iterations=1, seconds=TRIAL_S, at_least=LEAST, at_most=MOST)
    return round(median(taken.durations))
