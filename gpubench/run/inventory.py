"""The devices of several nodes, one after the other in the order of ranks."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from gpubench import cache
from gpubench.machine.cores import usable_cores
from gpubench.machine.gpu import visible_gpus
from gpubench.run import availability
from gpubench.run.availability import Lack
from gpubench.suite.types import Cell, Suite, model_path, weights_file


class Node(Struct, frozen=True):
    """What one machine of a run offers."""

    rank: int
    host: str
    cores: int
    gpus: int
    lacks: dict[str, Lack] = {}
    """By what is named in `gpubench.run.availability.parts`."""

    @property
    def name(self) -> str:
        return f"node {self.rank} ({self.host})"

    def devices(self, cell: Cell) -> int:
        """GPUs, or disjoint sets of the cell's ``cores``."""
        return self.gpus if cell.device == "cuda" else self.cores // cell.cores


def shares(cell: Cell, nodes: Sequence[Node]) -> dict[int, int]:
    """Rank -> how many of the cell's replicas run there; nodes without any are left out.

    Devices are used in the order of ranks, so a cell that fits on rank 0 runs there alone.
    """
    found, left = {}, cell.replicas
    for node in nodes:
        taken = min(left, node.devices(cell) * cell.replicas_per_device)
        left -= taken
        if taken:
            found[node.rank] = taken
    return found


def cores_of_a_device(most: int, nodes: Sequence[Node]) -> int:
    """The largest equal share of cores of which the nodes together have ``most``; at least 1."""
    whole = sum(node.cores for node in nodes)
    for cores in range(whole // most, 1, -1):
        if sum(node.cores // cores for node in nodes) >= most:
            return cores
    return 1


def here(rank: int, suite: Suite) -> Node:
    """This machine as node ``rank``, with what it lacks for ``suite``."""
    lacks = availability.lacks(*availability.named_by(suite))
    return Node(rank, platform.node(), len(usable_cores()), len(visible_gpus()), lacks)


def digest(suite: Suite, elsewhere: Mapping[str, str] = {}) -> str:
    """SHA-256 of the suite, its overrides included, and of the files it takes the network from.

    ``elsewhere``: paths in the suite -> where the file lies on this machine.
    """
    found = hashlib.sha256(msgspec.json.encode(suite))
    for path in network_files(suite):
        here = Path(elsewhere.get(path, path))
        if here.is_file():
            found.update(cache.digest(here).encode())
    return found.hexdigest()


def network_files(suite: Suite) -> list[str]:
    """Absolute paths of the model and of its weights, where they are files or folders."""
    work = suite.workload
    paths = (model_path(work.model), weights_file(work.weights)[0])
    return [path for path in paths if Path(path).is_absolute()]


def missing(cell: Cell, nodes: Sequence[Node]) -> Lack | None:
    """What the nodes lack to run ``cell``: devices, or its backend on one that it needs."""
    share = shares(cell, nodes)
    if sum(share.values()) < cell.replicas:
        offered = ", ".join(f"node {node.rank}: {node.devices(cell)}" for node in nodes)
        what = "GPU(s)" if cell.device == "cuda" else f"set(s) of {cell.cores} core(s)"
        return Lack(
            f"{cell.replicas} replicas need {cell.devices} {what}; there are {offered}",
            "use more or larger nodes, fewer --replicas, or a smaller axes.cores",
        )
    for node in nodes:
        for part in availability.parts(cell):
            if node.rank in share and (why := node.lacks.get(part)):
                return Lack(f"{node.name}: {why.reason}", why.remedy)
    return None


def apart(cell: Cell, nodes: Sequence[Node]) -> str | None:
    """Why ``cell`` cannot run over several nodes, or None."""
    if cell.dispatch != "independent" and len(shares(cell, nodes)) > 1:
        return (
            f"dispatch {cell.dispatch}: one job is handed out within a machine, and this cell "
            "needs several"
        )
    return None
