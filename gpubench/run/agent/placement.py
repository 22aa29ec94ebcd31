"""Which GPU a replica runs on, and which CPU cores it is pinned to there.

On CPU the plan decides. On CUDA the agent does, for it knows its own machine: a process runs on the
cores next to its GPU, all of them, and its thread pools keep their defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from gpubench.machine import topology
from gpubench.machine.environment import near_cores
from gpubench.machine.gpu import Gpu
from gpubench.run.agent.messages import Measure


def placed(request: Measure, gpus: Sequence[Gpu], root: Path = topology.DEVICES) -> Measure:
    """The request with UUIDs and cores; nothing is pinned where the machine does not say to what.

    ``gpus``: the visible ones; replica i runs on that of index i // `Cell.replicas_per_device`.
    """
    cell = request.cell
    if cell.device != "cuda":
        return request
    visible = {one.index: one for one in gpus}
    mine = [visible.get(index) for index in range(request.devices)]
    near = [near_cores(one, root) if one else () for one in mine]
    cores = [near[at // cell.replicas_per_device] for at in range(len(request.cores))]
    return replace(request, uuids=[one.uuid if one else "" for one in mine], cores=cores)
