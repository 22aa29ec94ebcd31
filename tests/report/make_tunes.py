"""Seeded synthetic searches: a space whose true speeds are known, explored, raced, ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from gpubench.records.record import Ceiling, Record, RecordFile, Work
from gpubench.suite.goal import Goal, Metric, Search
from gpubench.suite.types import Cell, Policy
from tests.report import make, make_pairs

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GAIN = {"fp32": 1.0, "bf16": 4.0, "int8": 7.0}
CORES = 8
WORK = Work(flops=3.6e9, weights=11.7e6, activations=1e7, ends=2e5)
PEAK = {"fp32": 1.2e12, "bf16": 8e12, "int8": 16e12}


def cell(**changes: Any) -> Cell:
    """A configuration on eight cores, from a preprocessed batch to logits."""
    base: dict[str, Any] = {"boundary": "transfer", "scenario": "latency"}
    made = make.cell(**(base | changes))
    return replace(made, cores=CORES // made.replicas)


def factor(c: Cell) -> float:
    """The true ns per batch in units of `make.batch_ns`."""
    usual = {"fp32": 1.0, "bf16": 1.6}.get(c.precision, 1.0)
    spin = 1.15 if c.options.get("spinning") is False else 1.0
    small = 1 + 0.3 * math.log2(c.replicas)
    return usual / GAIN[c.precision] * spin * small


def truth(c: Cell) -> float:
    """The true ns per batch."""
    return make.batch_ns(c) * factor(c)


def wrong(c: Cell) -> bool:
    """Whether its answers are: OpenVINO's int8."""
    return c.backend == "openvino" and c.precision == "int8"


def space(batches: Sequence[int] = (1, 8, 32), replicas: Sequence[int] = (1, 2, 4)) -> list[Cell]:
    """Backends x precisions x batch sizes x replicas, ONNX Runtime's with and without spinning."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("torch-eager", "fp32", {}), ("torch-eager", "bf16", {}),
        ("onnxruntime", "fp32", {}), ("onnxruntime", "int8", {}),
        ("onnxruntime", "int8", {"spinning": False}),
        ("openvino", "fp32", {}), ("openvino", "bf16", {}), ("openvino", "int8", {}),
    ]  # fmt: skip
    return [
        cell(backend=backend, precision=precision, options=options, batch_size=n, replicas=g)
        for backend, precision, options in kinds for n in batches for g in replicas
    ]  # fmt: skip


def record(c: Cell, repeat: int, rng: np.random.Generator, at: float, **changes: Any) -> Record:
    """One measurement that began ``at`` seconds after the start."""
    made = make.record(c, repeat, rng, samples=60, factor=factor(c), passed=not wrong(c))
    ceiling = Ceiling(work=WORK, flops_per_s=PEAK[c.precision], bytes_per_s=1e11,
                      precision=c.precision)  # fmt: skip
    started = (START + timedelta(seconds=at)).isoformat(timespec="milliseconds")
    return replace(made, started=started.replace("+00:00", "Z"), wall_s=1.7, ceiling=ceiling,
                   **changes)  # fmt: skip


def search(planned: Sequence[Cell], goal: Goal | None = None) -> Search:
    """For throughput; today's default is torch-eager fp32 with one replica."""
    baseline = tuple(c.key for c in planned if c.backend == "torch-eager"
                     and c.precision == "fp32" and c.replicas == 1)  # fmt: skip
    return Search(goal=goal or Goal(Metric("throughput")), baseline=baseline)


def tune(
    planned: Sequence[Cell] | None = None,
    goal: Goal | None = None,
    *,
    rounds: int = 4,
    explored: int | None = None,
    ended: bool = True,
    seed: int = 0,
    path: str = "reports/tune-1/records.jsonl",
    change: Any = None,
    **header: Any,
) -> RecordFile:
    """The first ``explored`` configurations are measured once, the best eight ``rounds`` more
    times.

    ``ended``: what was not measured has a record that says so. ``change`` edits or drops records.
    """
    planned = space() if planned is None else list(planned)
    rng = np.random.default_rng(seed)
    found, at = [], 2.0
    tried = planned[:explored]
    fast = sorted(tried, key=lambda c: truth(c) / c.total_batch)
    best = [c for c in fast if not wrong(c)][:8]
    for repeat in range(rounds + 1):
        for c in tried if repeat == 0 else best:
            found.append(record(c, repeat, rng, at))
            at += 2.1
    if ended:
        found += [
            Record(cell=c, repeat=0, status="ruled-out",
                   reason="at most 812 images/s by the roofline, the leader has 2,341")
            for c in planned if c not in tried
        ]  # fmt: skip
    if change:
        found = [r for r in map(change, found) if r]
    head = make.header(
        list(planned), "tune-1", Policy(repeats=1, max_repeats=1),
        search=search(planned, goal), started="2026-01-02T03:04:05Z",
        command=["/opt/venv/bin/gpubench", "tune", "resnet18", "-o", "reports/tune-1"], **header,
    )  # fmt: skip
    return RecordFile(path, head, found)


def evidence(
    best: Cell, base: Cell, seed: int = 0, pairs: int | None = None
) -> tuple[RecordFile, RecordFile]:
    """The A/B of ``best`` against ``base``."""
    effect = factor(best) - 1
    first, second = make_pairs.arms([(base, best)], pairs, effect, seed=seed,
                                    differs=("today's default", "recommended"))  # fmt: skip
    return _by_rate(first), _by_rate(second)


def _by_rate(file: RecordFile) -> RecordFile:
    """Compared as the proof of a search for throughput is."""
    pairing = msgspec.structs.replace(file.header.pairing, rates=True)
    return msgspec.structs.replace(
        file, header=msgspec.structs.replace(file.header, pairing=pairing)
    )
