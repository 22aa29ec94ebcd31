"""A space that was never measured: rates from a seed, with noise as machines have it."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gpubench.records.parity import Parity
from gpubench.records.record import Ceiling, Header, Record, RecordFile, Work
from gpubench.records.samples import Samples
from gpubench.suite.types import Cell
from tests.benchmarks.tune import record

FLOPS = 8.2e9
PEAKS = {"fp32": 3.4e11, "bf16": 6.8e11, "int8": 13.6e11}
"""FLOP/s: what one image needs, and what the machine could do."""
RIGHT = {"fp32": 118, "bf16": 117, "int8": 114}
LABELLED = 128
SAMPLES = 12
INTERACTION = 0.03
"""Standard deviation of what the effects of single axes do not explain."""
BUILD_S = {"onnx": 25.0, "int8": 40.0}


class Noise(Struct, frozen=True):
    """Standard deviations of logs, and how often somebody else takes the machine."""

    rounds: float = 0.01
    tasks: float = 0.012
    samples: float = 0.02
    burst: float = 0.1
    """Share of measurements that a burst hits: they are up to 40 % slower."""


SILENT = Noise(rounds=0.0, tasks=0.0, samples=0.0, burst=0.0)
"""What is true."""


def rates(rng: np.random.Generator, cells: list[Cell]) -> dict[str, float]:
    """Images/s of each cell: a share of its precision's peak, by additive effects on logs."""
    way = {
        (c.backend, c.precision, str(c.options)): rng.uniform(np.log(0.4), np.log(0.8))
        for c in cells
    }
    slope = {c.backend: rng.uniform(0.0, 0.12) for c in cells}
    split = {c.backend: rng.normal(0.0, 0.08) for c in cells}
    found = {}
    for c in cells:
        log = way[c.backend, c.precision, str(c.options)]
        log += slope[c.backend] * (np.log2(c.batch_size) - 3) / 3 + rng.normal(0, INTERACTION)
        log += split[c.backend] * (c.replicas - 1)
        found[c.key] = PEAKS[c.precision] / FLOPS * float(np.exp(min(log, np.log(0.95))))
    return found


def space(seed: int, noise: Noise | None = None, rounds: int = record.ROUNDS) -> RecordFile:
    """A record file as `record` writes it, of the same space."""
    noise = noise or Noise()
    rng = np.random.default_rng(seed)
    cells = record.cells()
    rate = rates(rng, cells)
    common = rng.normal(0, noise.rounds, rounds)
    found = [
        _record(rng, cell, repeat, rate[cell.key] * np.exp(common[repeat]), noise)
        for repeat in range(rounds)
        for cell in cells
    ]
    header = Header(
        run_id=f"synthetic{seed}",
        suite=record.SUITE,
        environment={},
        fingerprint="",
        command=[],
        started="",
        planned=cells,
    )
    return RecordFile(f"synthetic {seed}", header, found)


def _record(rng: np.random.Generator, cell: Cell, repeat: int, rate: float, noise: Noise) -> Record:
    slow = rng.normal(0, noise.tasks)
    if rng.random() < noise.burst:
        slow += rng.uniform(0.05, 0.35)
    batch_ns = 1e9 * cell.total_batch / rate * np.exp(slow)
    replicas = []
    for replica in range(cell.replicas):
        tail = 1 + 0.1 * (rng.random(SAMPLES) < 0.05)
        times = batch_ns * tail * np.exp(rng.normal(0, noise.samples, SAMPLES))
        durations = [int(t) for t in times]
        replicas.append(
            Samples(replica=replica, device=f"cpu:{replica}", durations_ns=durations,
                    end_ns=sum(durations))
        )  # fmt: skip
    checked = LABELLED if repeat == 0 else 16
    policy = record.POLICY
    per_batch = batch_ns / 1e9
    wall = 1.0 + max(policy.warmup_s, 3 * per_batch) + max(policy.duration_s, 5 * per_batch)
    built = [] if cell.backend == "torch-eager" else ["onnx"]
    built += ["int8"] if cell.precision == "int8" else []
    right = RIGHT[cell.precision] * checked // LABELLED
    return Record(
        cell=cell,
        repeat=repeat,
        status="ok",
        replicas=replicas,
        prepare_ns={step: int(1e9 * BUILD_S[step]) for step in built},
        parity=Parity(
            images=checked, relative_error=0.01, top1_agreement=1.0, worst_slot=0,
            max_relative_error=1.5, min_top1_agreement=0.8, passed=True, labelled=checked,
            correct=right, reference_correct=RIGHT["fp32"] * checked // LABELLED,
        ),
        ceiling=Ceiling(
            work=Work(flops=FLOPS, weights=2.5e7, activations=2e7, ends=1.5e5),
            flops_per_s=PEAKS[cell.precision], bytes_per_s=4e10, precision=cell.precision,
        ),
        wall_s=float(wall + checked * cell.replicas / rate),
    )  # fmt: skip
