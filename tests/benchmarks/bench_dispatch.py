"""Jobs shared by uneven replicas, what handing out costs, and many replicas on few cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from gpubench.machine.cores import usable_cores
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.run import driver, setup
from gpubench.run.watcher import Silent
from tests.benchmarks.trust.machine import network

Figure = Callable[[str, float, float], None]
REPEATS = 5
BURN = "while True: pass"

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")


def measure(place: Path, axes: str, model: Path | None = None) -> list[Record]:
    """A run of a suite over a small network, cells in random order in every round."""
    if model is None:
        model = place / "small.onnx"
        network(model)
    (place / "suite.toml").write_text(
        f"""
        [workload]
        model = "{model}"
        images = "synthetic"
        [axes]
        device = "cpu"
        scenario = "throughput"
        cores = 1
        {axes}
        [policy]
        repeats = {REPEATS}
        warmup_s = 0.1
        parity_images = 2
        """
    )
    session = setup.session(
        str(place / "suite.toml"), {}, place / "cache", place / "run", False, ()
    )
    records = driver.run(session, Silent()).records
    assert [r.reason for r in records if r.status != "ok"] == []
    return records


def ideal_rate(replicas: list[Samples], batch_size: int) -> float:
    """Images/s had no replica of a job ever waited: each at its mean rate while it worked."""
    busy = [(len(s.durations_ns) * s.iterations, sum(s.durations_ns)) for s in replicas]
    return sum(batches * batch_size * 1e9 / ns for batches, ns in busy if ns)


def claim_ns_per_batch(replicas: list[Samples]) -> float:
    """What a job's scheduler costs."""
    batches = sum(len(s.durations_ns) * s.iterations for s in replicas)
    return sum(s.claim_ns for s in replicas) / batches


def shares(records: list[Record]) -> dict[str, list[float]]:
    """Dispatch -> share of the ideal combined throughput that each job reached."""
    found: dict[str, list[float]] = {}
    for r in records:
        ideal = ideal_rate(r.replicas, r.cell.batch_size)
        found.setdefault(r.cell.dispatch, []).append((r.images_per_s() or 0) / ideal)
        speeds = sorted(ideal_rate([s], r.cell.batch_size) for s in r.replicas)
        print(f"\n{r.cell.dispatch}: the slower one has {speeds[0] / speeds[-1]:.2f} of the speed")
    for name, values in found.items():
        print(f"\n{name}: median {median(values):.4f}, {min(values):.4f} to {max(values):.4f}")
    return found


def test_one_of_two_replicas_at_half_speed(
    figure: Figure, tmp_path: Path, fakes: None, tiny_onnx: Path
) -> None:
    axes = """backend = "fake"
        replicas = 2
        dispatch = ["static", "dynamic"]
        [axes.options.fake]
        latency_us = 2000.0
        slow_one = 2.0"""
    found = shares(measure(tmp_path, axes, tiny_onnx))
    figure("lost of the ideal, dynamic", 1 - median(found["dynamic"]), 0.05)


def test_a_burner_on_the_core_of_one_of_two_replicas(figure: Figure, tmp_path: Path) -> None:
    axes = """backend = "onnxruntime"
        replicas = 2
        batch_size = 4
        dispatch = ["static", "dynamic"]"""
    with burner(usable_cores()[1]):
        found = shares(measure(tmp_path, axes))
    figure("lost of the ideal, dynamic", 1 - median(found["dynamic"]), 0.05)


@contextmanager
def burner(core: int) -> Iterator[None]:
    """Another process that wants the core all the time: the scheduler gives it half."""
    burning = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", BURN])
    try:
        yield
    finally:
        burning.kill()
        burning.wait()


def test_scheduler_overhead(figure: Figure, tmp_path: Path, fakes: None, tiny_onnx: Path) -> None:
    """Of a batch of 5 ms, which is a unit of its own: each has to be got from the queue."""
    axes = """backend = "fake"
        replicas = 2
        dispatch = ["dynamic", "static"]
        [axes.options.fake]
        latency_us = 5000.0"""
    costs: dict[str, list[float]] = {}
    for r in measure(tmp_path, axes, tiny_onnx):
        assert r.replicas[0].iterations == 1
        costs.setdefault(r.cell.dispatch, []).append(claim_ns_per_batch(r.replicas) / 1e3)
    for name, values in costs.items():
        print(f"\n{name}: {min(values):.2f} to {max(values):.2f} microseconds")
    figure("microseconds a batch, dynamic", median(costs["dynamic"]), 50)


def test_64_replicas_on_two_cores(figure: Figure, tmp_path: Path) -> None:
    """The null backend, 32 replicas a core: barrier skew, time to start, records complete."""
    axes = """backend = "null"
        replicas = 64
        replicas_per_device = 32"""
    records = measure(tmp_path, axes)
    for r in records:
        assert [s.replica for s in r.replicas] == list(range(64))
        assert all(s.durations_ns and s.end_ns > s.start_ns for s in r.replicas)
    starts = [r.telemetry["start_s"] for r in records]
    late = sorted(s.late_ns / 1e6 for r in records for s in r.replicas)
    shown: dict[str, Any] = {
        "late, ms: median": median(late), "p90": late[len(late) * 9 // 10], "most": late[-1],
        "start, s: least": min(starts), "wall, s": median(r.wall_s for r in records),
    }  # fmt: skip
    print("\n" + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    print([sorted(set(r.flags)) for r in records])
    figure("seconds to start", max(starts), 20)
