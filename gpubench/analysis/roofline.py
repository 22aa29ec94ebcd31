"""What hardware leaves possible: the roofline that a cell is held against, and a bound for it.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", 2009:
products of matrices are limited by the peak of the arithmetic units, or by what memory delivers.
Peaks and bandwidth are those measured in the same run (`records.record.Ceiling`), and belong to
all replicas of the cell together, as do its images/s.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gpubench.analysis.summary import Summary
from gpubench.records.record import Ceiling
from gpubench.suite.goal import Metric
from gpubench.suite.types import Cell

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "amp": 2, "int8": 1}
"""Of one number, at best: amp keeps some in fp32, int8 leaves some operators in floating point."""
GIVEN = {"float32": 4, "float16": 2, "uint8": 1}
"""Of one number of what the host gives."""
MARGIN = 1.15
"""Peaks are measured within half a second, and kernels differ: `best` must not be too low."""
WINOGRAD = 4.0
"""F(4x4, 3x3) needs a quarter of the multiplications (A. Lavin, S. Gray, "Fast algorithms for
convolutional neural networks", 2016). Libraries on GPUs use it; those on CPUs here do not."""


class Share(Struct, frozen=True, kw_only=True):
    """One record against its roofline."""

    share: float
    """Achieved / possible. Above 1: fewer operations than were counted (Winograd), caches that
    spare memory, or a peak measured in a bad moment."""
    binds: Literal["compute", "memory"]
    """Which side of the roofline it is."""
    roofline_ns: float
    """In which all replicas could have done one batch each."""
    flops_per_s: float
    """Achieved by all replicas, as if every operation that was counted had been done."""
    intensity: float
    """Arithmetic intensity, FLOP per byte of weights and fused layers' activations."""


def shares(s: Summary) -> dict[int, Share]:
    """How near each repeat came; without those that have no ceiling, no timing, or no product."""
    return {
        r.repeat: found
        for r in s.timed
        if r.ceiling
        and (value := s.values.get(r.repeat))
        and (found := _against(s.cell, r.ceiling, value))
    }


def _against(cell: Cell, ceiling: Ceiling, value: float) -> Share | None:
    """Of a repeat's ``value``: ns per batch (latency) or images/s."""
    work, images = ceiling.work, cell.total_batch
    if work.flops < 1:
        return None
    batch_ns = value if cell.scenario == "latency" else 1e9 * images / value
    numbers = cell.replicas * work.weights + images * work.activations
    moved = max(1.0, numbers * BYTES[cell.precision])
    compute_ns = 1e9 * images * work.flops / ceiling.flops_per_s
    memory_ns = 1e9 * moved / ceiling.bytes_per_s
    least = max(compute_ns, memory_ns)
    return Share(
        share=least / batch_ns,
        binds="compute" if compute_ns >= memory_ns else "memory",
        roofline_ns=least,
        flops_per_s=1e9 * images * work.flops / batch_ns,
        intensity=images * work.flops / moved,
    )


def best(cell: Cell, ceiling: Ceiling | None, metric: Metric) -> float | None:
    """No configuration like ``cell`` can be better: images/s, or ns per batch; None: unknown.

    Counted is only what cannot be avoided: the operations, and that weights, images and logits
    that no cache can hold come from memory once a batch. Throughput is that of all replicas;
    latency that of one replica, which has its device's arithmetic units, and all of the memory.
    """
    if ceiling is None or metric.kind not in ("throughput", "latency"):
        return None
    work, size = ceiling.work, BYTES[cell.precision]
    flops_per_s = MARGIN * ceiling.flops_per_s
    if cell.device == "cuda" and cell.precision != "int8":
        flops_per_s *= WINOGRAD
    ends = min(size, GIVEN[cell.input]) * cell.batch_size * work.ends
    replica = size * work.weights + ends
    if metric.kind == "throughput":
        moved = max(0.0, cell.replicas * replica - ceiling.cache_bytes)
        seconds = cell.total_batch * work.flops / flops_per_s
        seconds = max(seconds, moved / (MARGIN * ceiling.bytes_per_s))
        return cell.total_batch / seconds if seconds else None
    moved = max(0.0, replica - ceiling.cache_bytes)
    seconds = cell.batch_size * work.flops / (flops_per_s / cell.devices)
    return 1e9 * max(seconds, moved / (MARGIN * ceiling.bytes_per_s)) or None
