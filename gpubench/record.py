"""Results as they are stored: one header line, then one JSON line for each task.

Raw nanoseconds are stored and every statistic is derived when the file is read. Schema history:

1   first version
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from gpubench.errors import RecordError
from gpubench.suite import Cell, Suite

SCHEMA = 1

Status = Literal["ok", "failed", "unavailable", "unsupported"]

FAILURES = {
    "parity": "answers outside the tolerance: timing kept, never ranked",
    "out-of-memory": "the device or the host ran out of memory",
    "timeout": "a step outlasted its time-out",
    "crash": "a worker process died",
    "fallback": "something other than the asked-for device or provider ran",
    "error": "the backend raised",
    "required": "skipped although --require names it",
    "not-run": "the run ended before this task was measured",
}

FLAGS = {
    "DRIFT": "first and second half of the samples differ: the machine was still changing",
    "NO-STEADY-STATE": "warm-up detection would cut more than half of the samples",
    "GROUPED": "an iteration is so short that several share one sample",
    "FEW-SAMPLES": "fewer than 10 samples in a repeat: lengthen policy.sample_s",
    "NO-COMMON-WINDOW": "the replicas did not run at the same time",
    "RECOMPILED": "a recompilation happened while sampling",
    "CPU-STEAL": "more than 2 % of the CPU time was taken by the hypervisor",
    "CPU-BUSY": "other processes used more than 10 % of the replicas' cores",
    "THROTTLED": "the GPU lowered its clocks because of heat or power brake",
    "POWER-CAP": "the GPU ran at its software power cap",
    "CO-TENANT": "another process used the GPU",
    "WIDE": "the budget ended before the target half-width was reached",
    "NO-PARITY": "no reference for this workload: answers were not checked",
    "SPEED-ONLY": "random weights or synthetic images: parity says little about right answers",
}
"""Validity flags: everything a reader must know before believing a number."""


class Samples(Struct, frozen=True, kw_only=True):
    """What one replica measured in one task. All times in ns, on this node's monotonic clock."""

    replica: int
    device: str
    """'cpu:0,1' or 'cuda:0'."""
    durations_ns: list[int]
    """Steady samples; each spans ``iterations`` calls of ``run()``."""
    iterations: int = 1
    warmup_durations_ns: list[int] = []
    """Planned warm-up (one iteration each), then what truncation moved here."""
    truncated: int = 0
    """How many samples MSER truncation moved from the start to the warm-up."""
    start_ns: int = 0
    """Offset of the first steady sample from the task's common start."""
    end_ns: int = 0
    """Offset of the end of the last sample."""
    open_ns: int = 0
    first_inference_ns: int = 0
    stop_reason: str = ""
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0


class Parity(Struct, frozen=True, kw_only=True):
    """Answers against the fp32 eager reference on the same images, every batch slot."""

    images: int
    """Answers compared (slots x batches, over all replicas)."""
    relative_error: float
    """max over images of ||logits - reference|| / ||reference||, centred per image."""
    top1_agreement: float
    worst_slot: int
    max_relative_error: float
    min_top1_agreement: float
    passed: bool
    labelled: int = 0
    correct: int = 0
    reference_correct: int = 0
    """Of the same ``labelled`` answers, how many the reference gets right."""
    reference: str = "torch-eager fp32"


class Record(Struct, frozen=True, kw_only=True):
    """One task's result; a skip and a failure are records too."""

    cell: Cell
    repeat: int
    status: Status
    kind: str = ""
    """For ``failed``: a key of FAILURES."""
    reason: str = ""
    remedy: str = ""
    replicas: list[Samples] = []
    prepare_ns: dict[str, int] = {}
    """What preparing cost when it was done (export, build, compile), by step, cached or not."""
    parity: Parity | None = None
    telemetry: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    """What really ran: providers, precision, versions, engine digest."""
    flags: list[str] = []
    started: str = ""
    """UTC, ISO 8601."""
    wall_s: float = 0.0

    def latencies_ns(self) -> list[float]:
        """Per-batch durations of all replicas."""
        return [d / s.iterations for s in self.replicas for d in s.durations_ns]

    def window_ns(self) -> tuple[int, int] | None:
        """The common window: latest start to earliest end; None when there is none."""
        if not self.replicas:
            return None
        start, end = max(s.start_ns for s in self.replicas), min(s.end_ns for s in self.replicas)
        return (start, end) if end > start else None

    def replica_rates(self) -> list[float]:
        """Images/s of each replica inside the common window; [] when there is no window.

        Samples that cross the window's edge count by the share that lies inside.
        """
        window = self.window_ns()
        if window is None:
            return []
        start, end = window
        rates = []
        for s in self.replicas:
            total = sum(s.durations_ns)
            scale = (s.end_ns - s.start_ns) / total if total else 0.0
            at, inside = float(s.start_ns), 0.0
            for d in s.durations_ns:
                stop = at + d * scale
                if stop > at:
                    inside += max(0.0, min(stop, end) - max(at, start)) / (stop - at)
                at = stop
            rates.append(inside * s.iterations * self.cell.batch_size * 1e9 / (end - start))
        return rates

    def images_per_s(self) -> float | None:
        """Images completed by all replicas inside the common window / its length."""
        rates = self.replica_rates()
        return sum(rates) if rates else None


class Header(Struct, frozen=True, kw_only=True):
    """First line of a record file."""

    schema: int = SCHEMA
    run_id: str
    suite: Suite
    environment: dict[str, Any]
    fingerprint: str
    command: list[str]
    started: str
    planned: list[Cell]
    """Every cell of the plan, so that a missing one is seen."""
    seed: int = 0


class RecordFile(Struct, frozen=True):
    """A record file in memory."""

    path: str
    header: Header
    records: list[Record]
    notes: list[str] = field(default_factory=list)
    """For example that the last line was cut off."""
