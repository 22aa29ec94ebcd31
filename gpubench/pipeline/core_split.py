"""How many of a replica's cores prefetch and how many compute, found out in a process of its own.

In that of the replica itself a session would leave threads behind, which a loader's forked
processes would lack.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from msgspec import Struct

from gpubench.machine.cores import Cores
from gpubench.suite.types import Cell

if TYPE_CHECKING:
    from gpubench.backends.base import Device

TRIAL_S = 0.2
WARM, LEAST, MOST = 2, 3, 10_000


class StageTimes(Struct, frozen=True, tag=True):
    """What a replica's cores are split by: ns per batch."""

    data_ns: int
    """Its data stages on one core."""
    session_ns: int
    """The session, with all of the cores."""


def find_out(cell: Cell, artefact: Path, reference_at: Path, device: Device) -> StageTimes:
    """Time the data stages on one core, then the session with all; this process is pinned."""
    from gpubench.backends import base
    from gpubench.pipeline.iteration import Serial
    from gpubench.pipeline.readers import Reader
    from gpubench.workload import reference as ref

    reference = ref.load(reference_at)
    reader = Reader(reference.dataset(), cell.decoder, reference.spec, cell.batch_size,
                    device.cores[:1], 0)  # fmt: skip
    try:
        data = _mean(reader.load)
    finally:
        reader.close()
    backend = base.get(cell.backend)
    with base.open_session(backend, cell, artefact, device) as session:
        reader.serve(session)
        serial = Serial(reader, session, cell.batch_size, reference.output)
        return StageTimes(data, _mean(serial.answer))


def _mean(step: Callable[[], object]) -> int:
    """ns; the mean, for what is large and rare takes its time too."""
    from gpubench.measure.loop import sample

    for _ in range(WARM):
        step()
    taken = sample(step, lambda: None, seconds=TRIAL_S, at_least=LEAST, at_most=MOST)
    return round(fmean(taken.durations))


def loader_cores(cores: int, times: StageTimes | None) -> int:
    """How many of a replica's ``cores`` prefetch; 0: all of them do both.

    In proportion to the core-time that a batch needs: that of its data stages, and that of the
    session, which held all of the cores while it was timed. Where the data stages need less than
    half a core, one of their own would idle and be missed. Half of them where nothing was timed.
    """
    if cores < 2:
        return 0
    if times is None:
        return cores // 2
    data, session = times.data_ns, times.session_ns * cores
    return min(cores - 1, round(cores * data / max(1, data + session)))


def is_open(cell: Cell, cores: int) -> bool:
    """Whether there is more than one way to split a replica's ``cores``, and nobody said which."""
    overlaps = cell.boundary == "pipeline" and cell.scenario == "throughput"
    return overlaps and cell.device == "cpu" and not cell.loader_cores and cores > 1


def split(
    cell: Cell, cores: Sequence[Cores], replica: int, times: StageTimes | None = None
) -> tuple[Cores, Cores]:
    """(cores that prefetch, cores that compute) of a replica.

    Latency does one after the other, on all of them. On CUDA the replicas whose GPUs have the same
    cores next to them share those out, and each keeps one to feed its GPU.
    """
    own = cores[replica]
    if cell.device != "cpu":
        mine = _fair(tuple(own) or tuple(sorted(os.sched_getaffinity(0))), cores, replica)
        return (mine[1:] or mine) if cell.scenario == "throughput" else mine, ()
    if cell.scenario == "latency":
        return own, own
    k = cell.loader_cores or loader_cores(len(own), times)
    return (own[-k:], own[:-k]) if k else (own, own)


def _fair(cores: Cores, sets: Sequence[Cores], replica: int) -> Cores:
    """The replica's part of ``cores``, which others have as well; all where they are too few."""
    same = [i for i, other in enumerate(sets) if other == sets[replica]]
    each = len(cores) // len(same)
    at = same.index(replica) * each
    return cores[at : at + each] if each else cores
