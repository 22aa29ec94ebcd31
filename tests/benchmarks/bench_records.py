"""100,000 records: appending, resuming, reading, and a run over a plan of that size, are linear.

CPU time, so that neighbours on the machine count less; 10,000 and 100,000 in turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from msgspec.structs import replace

from gpubench.backends.null import Null
from gpubench.records.parity import Parity
from gpubench.records.reader import read
from gpubench.records.record import Header, Record
from gpubench.records.samples import Samples
from gpubench.records.writer import Writer
from gpubench.run import driver
from gpubench.run.agent.messages import Done, Measure, Preloaded, Prepared, Reply, Request
from gpubench.run.driver import RunJob
from gpubench.run.plan import Plan
from gpubench.run.watcher import Silent
from gpubench.suite.types import Axes, Cell, Policy, Suite, Workload
from tests.measure.virtual import make_cell

Figure = Callable[[str, float, float], None]
SMALL, LARGE = 10_000, 100_000
GROWTH = 1.3
"""Time for LARGE / (10 x time for SMALL): 1 is linear."""
REPEATS = 3
POLICY = Policy(repeats=REPEATS, max_repeats=2 * REPEATS, target_half_width=0.9)
"""With a second stage: it asks for the value of every record of the pilot."""
PARITY = Parity(images=64, relative_error=1e-5, top1_agreement=1, worst_slot=0,
                max_relative_error=2e-3, min_top1_agreement=0.95, passed=True)  # fmt: skip
_MHZ = {"min": 2900.0, "median": 2900.0, "max": 2900.0}
_CPU = {"load_1min": 0.5, "steal_share": 0.0, "own_busy_share": 0.49, "other_busy_share": 0.01}
TELEMETRY = {"seconds": 1.52, "cpu": {**_CPU, "mhz": _MHZ}}


def samples() -> Samples:
    """50 batches and a warm-up of 20."""
    each = [20_000_000 + 137 * n for n in range(50)]
    return Samples(replica=0, device="cpu:0,1", durations_ns=each, warmup_durations_ns=each[:20],
                   start_ns=1_000, end_ns=sum(each) + 1_000, first_inference_ns=31_000_000,
                   open_ns=200_000_000, stop_reason="time")  # fmt: skip


def plan_of(cells: int) -> Plan:
    axes = Axes(backend=("null",))
    suite = Suite(name="s", workload=Workload(), axes=axes, policy=POLICY, baseline="null")
    grid = [make_cell(backend="null", batch_size=n + 1) for n in range(cells)]
    return Plan(suite, grid, [], [0, 1])


def job_of(plan: Plan, out: Path) -> RunJob:
    header = Header(run_id="r", suite=plan.suite, environment={}, fingerprint="f", command=[],
                    started="now", planned=plan.planned)  # fmt: skip
    return RunJob(plan, {"null": Null()}, header, out, out, resume=True)


def record(cell: Cell, repeat: int) -> Record:
    return Record(cell=cell, repeat=repeat, status="ok", replicas=[samples()], parity=PARITY,
                  telemetry=TELEMETRY, prepare_ns={"export": 1_000_000_000}, wall_s=1.5,
                  started="2026-01-01T00:00:00+00:00", facts={"provider": "x"})  # fmt: skip


def spent(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk needs is reported apart."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def fill(plan: Plan, out: Path, count: int) -> None:
    with Writer(out, job_of(plan, out).header) as writer:
        for repeat in range(REPEATS):
            for cell in plan.cells:
                if repeat * len(plan.cells) < count:
                    writer.append(record(cell, repeat))


def compared(figure: Figure, what: str, works: Mapping[int, Callable[[], Any]]) -> float:
    """Seconds of the large one; the growth is a figure."""
    times: dict[int, list[float]] = {SMALL: [], LARGE: []}
    for _ in range(3):
        for size, work in works.items():
            times[size].append(spent(work))
    small, large = (min(each) for each in times.values())
    figure(f"{what}: {large:.2f} s for {LARGE}, growth", large / (small * LARGE / SMALL), GROWTH)
    return large


def test_append_resume_and_read(figure: Figure, no_fsync: None, tmp_path: Path) -> None:
    plans = {size: plan_of(size // REPEATS) for size in (SMALL, LARGE)}
    outs = {size: tmp_path / str(size) for size in plans}
    again = iter(range(100))

    def append(size: int) -> None:
        out = outs[size] = tmp_path / f"{size}-{next(again)}"
        fill(plans[size], out, size)

    compared(figure, "append", {n: partial(append, n) for n in plans})
    file = outs[LARGE] / "records.jsonl"
    print(f"\n{file.stat().st_size / LARGE:.0f} bytes a record")

    def resume(size: int) -> None:
        with Writer(outs[size], None) as writer:
            walk = driver._Walk(job_of(plans[size], outs[size]), writer, Silent())
        assert len(walk._done) == size // REPEATS * REPEATS

    seconds = compared(figure, "resume", {n: partial(resume, n) for n in plans})
    figure("resume, seconds", seconds, 5.0)
    compared(figure, "read", {n: partial(read, outs[n]) for n in plans})
    for what, work in {
        "nothing": "",
        "scan": "all(scan(path, [])[1])",
        "read": "read(path)",
    }.items():
        print(f"{what}: {_peak(work, file)} at most")


def _peak(work: str, file: Path) -> str:
    """Memory that a process of its own had resident at most."""
    code = (
        "import sys; from pathlib import Path; from gpubench.records.reader import read, scan; "
        f"path = sys.argv[1]; {work}\nprint(Path('/proc/self/status').read_text())"
    )
    command = [sys.executable, "-c", code, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next(line for line in said.splitlines() if line.startswith("VmHWM")).split(None, 1)[1]


def test_fsync(tmp_path: Path) -> None:
    """Not ours to improve: what the disk takes to say that a record is safe."""
    plan = plan_of(1)
    with Writer(tmp_path, job_of(plan, tmp_path).header) as writer:
        one, times = record(plan.cells[0], 0), []
        for _ in range(200):
            begin = time.perf_counter()
            writer.append(one)
            times.append(time.perf_counter() - begin)
    times.sort()
    print(f"\nappend with fsync: median {times[100] * 1e3:.2f} ms, 99 % {times[198] * 1e3:.2f} ms")


class Instant:
    """An agent that answers at once."""

    running = True

    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...
    def start(self) -> Preloaded:
        return Preloaded({}, 0.0)

    def ask(self, request: Request, progress: object = None) -> Reply:
        if isinstance(request, Measure):
            found = Record(cell=request.cell, repeat=request.repeat, status="ok",
                           replicas=[samples()], parity=PARITY, telemetry=TELEMETRY)  # fmt: skip
            return Done(found, invalid=False)
        return Prepared("path", {"export": 1})


def test_a_run_over_a_large_plan(
    figure: Figure, no_fsync: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that the driver does for 10,000 cells x 3 repeats, with a second stage."""
    monkeypatch.setattr(driver, "AgentClient", Instant)
    again = iter(range(100))

    def run(cells: int) -> None:
        plan = plan_of(cells)
        job = replace(job_of(plan, tmp_path / str(next(again))), resume=False, cache_dir=tmp_path)
        file = driver.run(job, Silent())
        assert len(file.records) == cells * REPEATS

    works = {size: partial(run, size // 10) for size in (SMALL, LARGE)}
    seconds = compared(figure, "run", works)
    figure("milliseconds a task", seconds / (LARGE / 10 * REPEATS) * 1e3, 1.0)
