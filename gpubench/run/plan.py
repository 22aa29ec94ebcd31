"""Cells + what the backends can do here -> what will run, in which order, and what will not."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Literal

import msgspec
from msgspec import Struct

from gpubench import units
from gpubench.analysis import floors
from gpubench.backends.base import Backend
from gpubench.cache import Cache
from gpubench.errors import CacheError
from gpubench.run import availability, inventory
from gpubench.run.availability import Lack
from gpubench.suite.types import MIN_BLOCKS, MIN_SAMPLES, Cell, Policy, Suite
from gpubench.workload.data import datasets


class Skip(Struct, frozen=True):
    """A planned cell that will not be measured here."""

    cell: Cell
    status: Literal["unavailable", "unsupported"]
    reason: str
    remedy: str = ""


class Plan(Struct, frozen=True):
    """What a run will do."""

    suite: Suite
    cells: list[Cell]
    """The cells to measure, in the suite's order."""
    skips: list[Skip]
    cores: list[int]
    """This machine's CPU cores that replicas may own, siblings adjacent."""
    nodes: list[inventory.Node] = []
    """Where several machines measure, all of them by rank."""

    def round(self, repeat: int) -> list[Cell]:
        """All cells in the fresh random order of one repeat; the same for the same seed."""
        order = list(self.cells)
        random.Random(f"{self.suite.policy.seed}/{repeat}").shuffle(order)  # noqa: S311
        return order

    def cores_of(self, cell: Cell) -> list[tuple[int, ...]]:
        """Per replica, its device's cores: equal, disjoint, adjacent sets; empty on CUDA."""
        n = cell.cores
        devices = [replica // cell.replicas_per_device for replica in range(cell.replicas)]
        return [tuple(self.cores[i * n : (i + 1) * n]) for i in devices]

    @property
    def planned(self) -> list[Cell]:
        """Every cell, skipped ones too."""
        return self.cells + [skip.cell for skip in self.skips]


def make(
    suite: Suite,
    cells: Sequence[Cell],
    backends: Mapping[str, Backend],
    cores: list[int],
    gpus: int,
    nodes: Sequence[inventory.Node] = (),
) -> Plan:
    """Sort ``cells`` into those that can run and those that cannot, with why.

    ``nodes``: where several machines measure, all of them; else it is this one with its ``cores``.
    Raises InputError for a network that none of them could measure.
    """
    named = {cell.backend: backends[cell.backend] for cell in cells}
    decoders = {c.decoder for c in cells if c.boundary == "pipeline"}
    lacks = availability.lacks(named, decoders, {c.model for c in cells})
    run: list[Cell] = []
    skips: list[Skip] = []
    for cell in cells:
        lacking = next((lacks[part] for part in availability.parts(cell) if part in lacks), None)
        here = lacking or _no_room(cell, len(cores), gpus)
        lack = inventory.missing(cell, nodes) if nodes else here
        reason: str | Lack | None = None
        if lack is None or not {cell.backend, availability.source(cell.model)} & lacks.keys():
            reason = availability.unsupported(cell, backends[cell.backend])
            reason = reason or inventory.apart(cell, nodes)
        if isinstance(reason, str):
            skips.append(Skip(cell, "unsupported", reason))
        elif lack := reason or lack:
            skips.append(Skip(cell, "unavailable", lack.reason, lack.remedy))
        else:
            run.append(cell)
    return Plan(suite, run, skips, cores, list(nodes))


def _no_room(cell: Cell, cores: int, gpus: int) -> Lack | None:
    who = units.count(cell.replicas, "replica")
    if cell.replicas_per_device > 1:
        who = f"{cell.devices} device(s) for {who}"
    if cell.device == "cuda":
        if gpus == 0:
            return Lack(
                "the cell is for CUDA, but no NVIDIA GPU is visible",
                "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use --device cpu",
            )
        if cell.devices > gpus:
            return Lack(
                f"{who} need as many GPUs; visible: {gpus}",
                "use a machine with more GPUs, fewer --replicas, or more --replicas-per-device",
            )
    elif (need := cell.devices * cell.cores) > cores:
        needs = "each need" if cell.devices > 1 else "needs"
        return Lack(
            f"{who} with {cell.cores} core(s) {needs} {need}; usable: {cores}",
            "use a machine with more cores, fewer --replicas, or a smaller axes.cores",
        )
    return None


def undecidable(suite: Suite, cache: Cache) -> str:
    """Why no cell could be shown to keep min_accuracy with the images that there are; '': it may.

    Raises InputError for images that do not serve.
    """
    pool = math.inf
    if suite.policy.min_accuracy is not None and datasets.is_path(suite.workload.images):
        pool = len(datasets.find(suite.workload, cache, 0))
    return floors.hopeless(suite.policy, pool)


OPEN_AND_CHECK_S = 1.5
ITERATION_S = 0.05


def task_seconds(cell: Cell, policy: Policy, seen: Durations) -> float:
    """How long one task will take: what it took last time, or a guess from the policy."""
    known = seen.get(cell, policy)
    if known is not None:
        return known
    checked = policy.parity_images + policy.accuracy_images / policy.repeats
    iterations = policy.warmup_iterations + MIN_SAMPLES + checked / cell.batch_size
    at_least = iterations * cell.batch_size * ITERATION_S if cell.device == "cpu" else 0.0
    opened = OPEN_AND_CHECK_S + policy.soak_s
    return opened + max(policy.warmup_s + sampling_s(cell, policy), at_least)


def sampling_s(cell: Cell, policy: Policy) -> float:
    """Seconds that a repeat samples for: of throughput at least so many blocks."""
    if cell.scenario == "latency" or cell.dispatch != "independent":
        return policy.duration_s
    return max(policy.duration_s, min(MIN_BLOCKS, policy.max_samples) * policy.block_s)


SAVE_EVERY_S = 10.0
"""All durations are written anew each time, so not after every task of a large plan."""


class Durations:
    """How long each cell's task took last time, kept in the cache for the next estimate.

    An estimate is not worth an error: what cannot be read or written is left out.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._seconds: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self._saved = monotonic()
        self._cache = Cache(cache_dir)
        with suppress(CacheError):
            self._seconds = _seconds(self._cache.stored(*_KEPT))

    def get(self, cell: Cell, policy: Policy) -> float | None:
        """Seconds, or None when this cell has not been measured under such a policy."""
        return self._seconds.get(_key(cell, policy))

    def note(self, cell: Cell, policy: Policy, seconds: float) -> None:
        """Remember, and save what was noted every now and then."""
        key = _key(cell, policy)
        self._seconds[key] = self._noted[key] = seconds
        if monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Add what was noted to what is stored by now: other runs share the file."""
        self._saved = monotonic()
        with suppress(CacheError):
            self._cache.store(*_KEPT, lambda now: msgspec.json.encode(_seconds(now) | self._noted))


_KEPT = "durations", {"format": 1}


def _seconds(stored: bytes) -> dict[str, float]:
    with suppress(ValueError, RecursionError):
        found = msgspec.json.decode(stored, type=dict[str, float])
        return {key: s for key, s in found.items() if 0 <= s < math.inf}
    return {}


def _key(cell: Cell, policy: Policy) -> str:
    before_s = policy.soak_s + policy.warmup_s
    return f"{cell.key} {policy.warmup_iterations} {before_s:g} {policy.duration_s:g}"
