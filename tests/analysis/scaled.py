"""Synthetic cells with one and with many replicas, in which one thing at a time is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from gpubench.analysis.scaling.diagnosis import Diagnosis, diagnose
from gpubench.analysis.summary import summarise
from gpubench.records.record import Record, RecordFile
from gpubench.records.samples import Samples
from gpubench.suite.types import Cell, Policy
from tests.report import make

QUIET: dict[str, Any] = {
    "cpu": {
        "steal_share": 0.0,
        "other_busy_share": 0.01,
        "mhz": dict.fromkeys(("min", "median", "max"), 3000.0),
    }
}
ITERATIONS = 10
SECONDS = 4


def cell(replicas: int = 1, **changes: Any) -> Cell:
    return make.cell(**{"scenario": "throughput", "batch_size": 8, "replicas": replicas} | changes)


def gpu(index: int, mhz: float = 1700.0, **more: Any) -> dict[str, Any]:
    return {"index": index, "sm_mhz": {"min": mhz, "median": mhz, "max": mhz}, **more}


def samples(
    c: Cell, replica: int, rate: float, *, cpu: float = 0.99, switches_per_s: float = 1.0,
    enqueue: float = 0.0, **changes: Any,
) -> Samples:  # fmt: skip
    """Blocks of ITERATIONS batches at ``rate`` images/s for about SECONDS.

    ``cpu``: share of its own cores' time that it had; ``enqueue``: of the sampled time.
    """
    block = round(ITERATIONS * c.batch_size * 1e9 / rate)
    n = max(1, round(SECONDS * 1e9 / block))
    length = n * block
    own = c.cores / c.replicas_per_device if c.device == "cpu" else 1
    kind, at = (
        ("cuda", replica // c.replicas_per_device) if c.device == "cuda" else ("cpu", replica)
    )
    values = {
        "replica": replica, "device": f"{kind}:{at}", "durations_ns": [block] * n,
        "iterations": ITERATIONS, "end_ns": length, "cpu_ns": round(cpu * own * length),
        "switches": round(switches_per_s * length / 1e9), "enqueue_ns": round(enqueue * length),
    }  # fmt: skip
    return Samples(**values | changes)


def records(
    c: Cell,
    rates: Sequence[float],
    *,
    repeats: int = 3,
    telemetry: dict[str, Any] | None = None,
    jitter: float = 0.001,
    **of_samples: Any,
) -> list[Record]:
    """``rates``: images/s of each replica. A value of ``of_samples`` may be a list, by replica."""
    found = []
    for repeat in range(repeats):
        noise = 1 + jitter * (repeat - (repeats - 1) / 2)
        replicas = [
            samples(c, i, rate * noise, **{
                k: v[i] if isinstance(v, list) else v for k, v in of_samples.items()
            })
            for i, rate in enumerate(rates)
        ]  # fmt: skip
        found.append(
            Record(cell=c, repeat=repeat, status="ok", replicas=replicas,
                   telemetry=QUIET if telemetry is None else telemetry)
        )  # fmt: skip
    return found


def file(*measured: list[Record], **header: Any) -> RecordFile:
    made = [r for each in measured for r in each]
    cells = list({r.cell.key: r.cell for r in made}.values())
    head = make.header(cells, policy=Policy(repeats=3, max_repeats=3), **header)
    return RecordFile("x/records.jsonl", head, made)


def diagnosed(*measured: list[Record], **header: Any) -> list[Diagnosis]:
    return diagnose(summarise([file(*measured, **header)]))


def environment(**changes: Any) -> dict[str, Any]:
    return {"cpu": {"usable": 8}, "limits": {"cpus": None}, "gpus": [], **changes}


def changed(found: list[Record], change: Callable[[Samples, Record], Samples]) -> list[Record]:
    return [replace(r, replicas=[change(x, r) for x in r.replicas]) for r in found]
