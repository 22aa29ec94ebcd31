"""Cells + what the backends can do here -> what will run, in which order, and what will not."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from gpubench.backends.base import Backend
from gpubench.errors import Unavailable
from gpubench.measure.protocol import MIN_SAMPLES
from gpubench.suite import Cell, Policy, Suite

SkipStatus = Literal["unavailable", "unsupported"]


class Skip(Struct, frozen=True):
    """A planned cell that will not be measured here."""

    cell: Cell
    status: SkipStatus
    reason: str
    remedy: str = ""


class Plan(Struct, frozen=True):
    """What a run will do."""

    suite: Suite
    cells: list[Cell]
    """The cells to measure, in the suite's order."""
    skips: list[Skip]
    cores: list[int]
    """CPU cores that replicas may own, siblings adjacent."""

    def round(self, repeat: int) -> list[Cell]:
        """All cells in the fresh random order of one repeat; the same for the same seed."""
        order = list(self.cells)
        random.Random(f"{self.suite.policy.seed}/{repeat}").shuffle(order)  # noqa: S311
        return order

    def cores_of(self, cell: Cell) -> list[tuple[int, ...]]:
        """Per replica, the cores it owns: equal, disjoint, adjacent; empty on CUDA."""
        n = cell.cores
        return [tuple(self.cores[i * n : (i + 1) * n]) for i in range(cell.replicas)]

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
) -> Plan:
    """Sort ``cells`` into those that can run on this machine and those that cannot, with why."""
    missing: dict[str, Unavailable] = {}
    for name in {cell.backend for cell in cells}:
        try:
            backends[name].probe()
        except Unavailable as error:
            missing[name] = error
    run: list[Cell] = []
    skips: list[Skip] = []
    for cell in cells:
        reason = _no_room(cell, len(cores), gpus) or backends[cell.backend].unsupported(cell)
        if cell.backend in missing:
            lack = missing[cell.backend]
            skips.append(Skip(cell, "unavailable", lack.reason, lack.remedy))
        elif reason:
            skips.append(Skip(cell, "unsupported", reason))
        else:
            run.append(cell)
    return Plan(suite, run, skips, cores)


def _no_room(cell: Cell, cores: int, gpus: int) -> str | None:
    if cell.device == "cuda":
        if gpus == 0:
            return "the cell is for CUDA, but no NVIDIA GPU is visible"
        short = cell.replicas > gpus
        return f"{cell.replicas} replicas need as many GPUs; visible: {gpus}" if short else None
    need = cell.replicas * cell.cores
    if need > cores:
        return f"{cell.replicas} replicas of {cell.cores} cores need {need}; usable: {cores}"
    return None


OPEN_AND_CHECK_S = 1.5
ITERATION_S = 0.05


def task_seconds(cell: Cell, policy: Policy, seen: Mapping[str, float]) -> float:
    """How long one task will take: what it took last time, or a guess from the policy."""
    if cell.key in seen:
        return seen[cell.key]
    iterations = policy.warmup_iterations + MIN_SAMPLES + policy.parity_images / cell.batch_size
    at_least = iterations * cell.batch_size * ITERATION_S if cell.device == "cpu" else 0.0
    return OPEN_AND_CHECK_S + max(policy.warmup_s + policy.sample_s, at_least)
