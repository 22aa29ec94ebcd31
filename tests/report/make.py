"""Seeded synthetic record files of any size, with everything a report must cope with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubench.analysis.summary import summarise
from gpubench.analysis.tables import run as run_tables
from gpubench.analysis.tables.table import Table
from gpubench.records.parity import Parity
from gpubench.records.record import Header, Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.suite.types import Axes, Cell, Policy, Suite, Workload

MS, S = 1_000_000, 1_000_000_000
SPEED = {"torch-eager": 1.0, "torch-compile": 1.5, "onnxruntime": 1.9, "openvino": 2.3}


def cell(**changes: Any) -> Cell:
    base: dict[str, Any] = {
        "backend": "torch-eager", "device": "cpu", "model": "resnet18", "weights": "probe",
        "images": "digits", "precision": "fp32", "batch_size": 1, "replicas": 1, "cores": 1,
        "scenario": "latency", "boundary": "compute", "options": {},
    }  # fmt: skip
    return Cell(**(base | changes))


def batch_ns(c: Cell) -> float:
    """The true median of one batch: fixed cost + work, some loss for each further replica."""
    speed = SPEED.get(c.backend, 1.0) * {"fp32": 1.0, "bf16": 1.6}.get(c.precision, 1.0)
    return (2 * MS + 9 * MS * c.batch_size**0.95) / speed * (1 + 0.04 * (c.replicas - 1))


def parity(c: Cell, rng: np.random.Generator, passed: bool = True) -> Parity:
    error = float(rng.uniform(2e-7, 9e-6)) if passed else 0.31
    return Parity(
        images=32 * c.replicas, relative_error=error, top1_agreement=1.0 if passed else 0.41,
        worst_slot=c.batch_size - 1, max_relative_error=1e-3, min_top1_agreement=0.99,
        passed=passed, labelled=32 * c.replicas, correct=(30 if passed else 12) * c.replicas,
        reference_correct=30 * c.replicas,
    )  # fmt: skip


def record(
    c: Cell,
    repeat: int,
    rng: np.random.Generator,
    *,
    samples: int = 200,
    factor: float = 1.0,
    passed: bool = True,
    flags: tuple[str, ...] = (),
    sigma: float = 0.03,
    launch: float = 0.01,
) -> Record:
    """An ok record (or ``failed: parity``) whose true latency is ``factor`` x `batch_ns`."""
    iterations = 8 if c.scenario == "throughput" else 1
    level = math.log(batch_ns(c) * factor) + launch * rng.standard_normal()
    replicas = []
    for index in range(c.replicas):
        noise = sigma * rng.standard_normal(samples) / math.sqrt(iterations)
        durations = np.exp(level + 0.01 * index + noise) * iterations
        start = int(rng.integers(0, MS))
        replicas.append(
            Samples(
                replica=index, device=f"cpu:{index}", iterations=iterations,
                durations_ns=durations.astype(int).tolist(), warmup_durations_ns=[20 * MS] * 10,
                start_ns=start, end_ns=start + int(durations.sum() * 1.001), open_ns=80 * MS,
                first_inference_ns=35 * MS, stop_reason="time", peak_host_bytes=400 << 20,
            )
        )  # fmt: skip
    return Record(
        cell=c, repeat=repeat, status="ok" if passed else "failed",
        kind="" if passed else "parity", replicas=replicas, parity=parity(c, rng, passed),
        reason="" if passed else "relative error 0.31 at slot 0, tolerance 0.001",
        prepare_ns={"export": 900 * MS, **({"compile": 9 * S} if "compile" in c.backend else {})},
        telemetry={"seconds": 1.5, "cpu": {"load_1min": 0.4, "other_busy_share": 0.02}},
        facts={"version": "1.2.3"}, flags=list(flags),
        started="2026-01-02T03:04:05Z", wall_s=1.7,
    )  # fmt: skip


GPU = {
    "index": 0, "uuid": "GPU-1", "sm_mhz": {"min": 1200.0, "median": 1900.0, "max": 1980.0},
    "temperature_c_max": 61, "power_w": {"mean": 312.5, "max": 402.0},
    "memory_used_bytes_peak": 3 << 30, "throttle": {"SwPowerCap": 0.1},
}  # fmt: skip
"""What telemetry says of one GPU."""


def header(
    cells: list[Cell],
    run_id: str = "20260102-030405",
    policy: Policy | None = None,
    **changes: Any,
) -> Header:
    suite = Suite(
        name="quick", description="A first look in two minutes.", workload=Workload(),
        axes=Axes(backend=tuple(dict.fromkeys(c.backend for c in cells))),
        policy=policy or Policy(), baseline="torch-eager",
    )  # fmt: skip
    values: dict[str, Any] = {
        "run_id": run_id, "suite": suite, "fingerprint": "f00d", "planned": cells,
        "command": ["/opt/venv/bin/gpubench", "run", "quick", "-o", "reports/x", "--resume"],
        "started": "2026-01-02T03:04:05Z", "seed": 7,
        "environment": {
            "cpu": {"model": "Example CPU 9000", "cores": 8, "numa_nodes": 1},
            "gpus": [], "libraries": {"torch": "2.9.0", "onnxruntime": "1.22.0"},
            "os": {"name": "Linux", "kernel": "6.1.0"}, "commit": "abc1234",
        },
    }  # fmt: skip
    return Header(**(values | changes))


def grid(
    backends: tuple[str, ...] = tuple(SPEED),
    batches: tuple[int, ...] = (1, 4, 16, 64),
    replicas: tuple[int, ...] = (1, 2, 4),
    precisions: tuple[str, ...] = ("fp32",),
    boundaries: tuple[str, ...] = ("compute",),
    scenarios: tuple[str, ...] = ("latency", "throughput"),
) -> list[Cell]:
    return [
        cell(backend=b, batch_size=n, replicas=g, precision=p, scenario=s, boundary=e)
        for p in precisions for e in boundaries for s in scenarios
        for b in backends for n in batches for g in replicas
    ]  # fmt: skip


def run(
    cells: list[Cell],
    *,
    repeats: int = 3,
    seed: int = 0,
    run_id: str = "20260102-030405",
    factor: float = 1.0,
    samples: int = 200,
    launch: float = 0.01,
    sigma: float = 0.03,
    policy: Policy | None = None,
    **changes: Any,
) -> RecordFile:
    """All cells ok; every repeat belongs to the first stage unless ``policy`` says otherwise."""
    policy = policy or Policy(repeats=repeats, max_repeats=repeats)
    rng = np.random.default_rng(seed)
    records = [
        record(c, n, rng, samples=samples, factor=factor, launch=launch, sigma=sigma)
        for n in range(repeats)
        for c in cells
    ]
    head = header(cells, run_id, policy, **changes)
    return RecordFile(f"reports/{run_id}/records.jsonl", head, records)


def realistic(seed: int = 0, run_id: str = "20260102-030405", samples: int = 200) -> RecordFile:
    """A run with every kind of trouble: skips, failures, wrong answers, flags, a missing cell."""
    rng = np.random.default_rng(seed)
    cells = grid(precisions=("fp32", "bf16"))
    gpu = [cell(backend="tensorrt", scenario=s) for s in ("latency", "throughput")]
    int8 = cell(backend="openvino", precision="int8")
    lost, records = cell(backend="onnxruntime", batch_size=128), []
    for repeat in range(3):
        for c in cells:
            if c.backend == "torch-compile" and c.batch_size == 64 and c.replicas == 4:
                records.append(Record(cell=c, repeat=repeat, status="failed", kind="out-of-memory",
                                      reason="worker killed: 3.9 of 4.0 GiB used"))  # fmt: skip
                continue
            wrong = c.backend == "openvino" and c.precision == "bf16" and c.replicas == 1
            drift = c.backend == "onnxruntime" and c.batch_size == 16 and repeat > 0
            crash = c.backend == "torch-eager" and c.batch_size == 4 and c.replicas == 2
            if crash and repeat == 2:
                records.append(Record(cell=c, repeat=2, status="failed", kind="crash",
                                      reason="worker 1 ended by signal 11"))  # fmt: skip
                continue
            flags = ("DRIFT", "CPU-BUSY") if drift else ()
            records.append(record(c, repeat, rng, samples=samples, passed=not wrong, flags=flags))
        records += [
            Record(cell=c, repeat=repeat, status="unavailable", reason="no CUDA device",
                   remedy="run on a machine with an NVIDIA GPU") for c in gpu
        ]  # fmt: skip
        records.append(Record(cell=int8, repeat=repeat, status="unsupported",
                              reason="int8 needs a calibrated ONNX file"))  # fmt: skip
    planned = [*cells, *gpu, int8, lost]
    return RecordFile(f"reports/{run_id}/records.jsonl", header(planned, run_id), records)


def tables(files: list[RecordFile]) -> list[Table]:
    """All that have rows."""
    return run_tables.of_cells(summarise(files))
