"""One job for several replicas: its size, its queue, and whole runs on the fake backend."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace as Bag
from typing import Any

import numpy as np
import pytest

from gpubench.analysis.scaling.efficiency import jobs
from gpubench.analysis.summary import summarise
from gpubench.machine.processes import session_members
from gpubench.records.record import Record, RecordFile
from gpubench.run import driver, setup
from gpubench.run.ab import arms
from gpubench.run.ab import driver as ab_driver
from gpubench.run.ab import setup as ab_setup
from gpubench.run.agent import measure_task
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.messages import (
    AtBarrier,
    BuildReference,
    Done,
    Go,
    Measure,
    Prepare,
    Prepared,
)
from gpubench.run.agent.shared_job import Dispatcher, Queue, claims, size
from gpubench.run.watcher import Silent
from gpubench.suite.types import Policy, Rule
from gpubench.workload import reference
from tests.measure.virtual import make_cell

# ------------------------------------------------------------------------------ the job


def test_a_job_takes_the_sampling_time_when_nobody_waits() -> None:
    for batches in ([1e6, 1e6], [1e6, 2e6], [3e5, 4e5, 9e9], [2e7] * 4):
        job = size(batches, Policy(duration_s=2))
        rate = sum(1 / ns for ns in batches)
        total = job.share * len(batches) * job.iterations
        assert total / rate == pytest.approx(2e9, rel=0.02)


@pytest.mark.parametrize(
    ("batch_ns", "iterations"), [(1e6, 5), (2e6, 2), (4e6, 1), (7e7, 1), (100, 50_000), (0, 5e6)]
)
def test_a_unit_is_a_batch_or_about_five_milliseconds(batch_ns: float, iterations: int) -> None:
    assert size([batch_ns, batch_ns], Policy()).iterations == iterations


def test_a_job_has_some_units_for_each_replica_and_not_too_many() -> None:
    assert size([9e9, 9e9], Policy(duration_s=1)).share == 10
    assert size([5e6, 5e6], Policy(duration_s=500, max_samples=30)).share == 30


def request(**cell: Any) -> Measure:
    return Measure(make_cell(scenario="throughput", **cell), Policy(), "", "", [(0,), (1,)])


def test_a_job_is_handed_out_afresh_in_every_turn() -> None:
    static = Dispatcher(request(replicas=2, dispatch="static"))
    static.warm([AtBarrier("warm", 6e6, 5e6), AtBarrier("warm", 4e6, 5e6)])
    for _ in range(2):
        go = static.hand_out(1000)
        assert go == Go(1000 + 12_000_000, 1, 200)
        assert [drain(claims(go, static.queue)) for _ in range(2)] == [200, 200]
    static.close()
    dynamic = Dispatcher(request(replicas=2, dispatch="dynamic"))
    dynamic.warm([AtBarrier("warm", 5e6, 5e6)] * 2)
    for _ in range(2):
        go = dynamic.hand_out(0)
        assert [drain(claims(go, dynamic.queue)) for _ in range(2)] == [400, 0]
    dynamic.close()


def drain(claim: Callable[[], bool]) -> int:
    count = 0
    while claim():
        count += 1
    return count


# ------------------------------------------------------------------------------ the queue


def _worker(queue: Queue, pipe: Connection) -> None:
    pipe.recv()
    pipe.send(drain(queue.claim))


def test_every_unit_is_claimed_once_by_processes_in_a_race() -> None:
    fork = multiprocessing.get_context("forkserver")
    queue, units, pipes, processes = Queue(), 20_000, [], []
    for _ in range(3):
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_worker, args=(queue, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    queue.fill(units)
    for pipe in pipes:
        pipe.send("go")
    assert sum(pipe.recv() for pipe in pipes) == units
    for process in processes:
        process.join()
    for pipe in pipes:
        pipe.close()
    queue.close()


# ------------------------------------------------------------------------------ in the worker


@pytest.mark.parametrize(("share", "turns"), [(0, 1), (3, 1), (3, 2)])
def test_whoever_is_finished_waits_before_it_does_anything_else(
    monkeypatch: pytest.MonkeyPatch, fakes: None, share: int, turns: int
) -> None:
    seen: list[str] = []

    def barrier(name: str, *_: float) -> Go:
        seen.append(name)
        return Go(0, 2 if share else 0, share)

    images = np.zeros((4, 3, 16, 16), np.float32)
    monkeypatch.setattr(reference, "load", lambda _: Bag(images=images, facts={}))
    monkeypatch.setattr(measure_task, "alone", lambda *_: seen.append("stages") or {})
    monkeypatch.setattr(measure_task, "_check", lambda *_: seen.append("check"))
    cell = make_cell(scenario="throughput", boundary="transfer", dispatch="static")
    policy = Policy(warmup_s=0.001, block_s=0.001, duration_s=0.001, parity_images=2)
    made = measure_task._measure(Measure(cell, policy, "", "", [()], turns=turns), 0, barrier, None)
    turn = ["finished"] if share else []
    again = ["again", *turn] if turns == 2 else []
    end = ["measured", "check"] if turns == 2 else ["check"]
    assert seen == ["opened", "warm", *turn, *again, "stages", *end]
    assert len(made.record.replicas[0].durations_ns) == share or not share


# ------------------------------------------------------------------------------ whole runs

WriteSuite = Callable[..., Path]
POLICY = {"duration_s": 0.3, "repeats": 1, "max_repeats": 1, "parity_images": 4}
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")


@pytest.fixture
def run(tmp_path: Path, cache_dir: Path, write_suite: WriteSuite) -> Callable[..., RecordFile]:
    def start(policy: dict[str, float] | None = None, **changes: Any) -> RecordFile:
        changes = {"batch_size": "[1]", "scenario": '["throughput"]'} | changes
        suite = write_suite(policy=POLICY | (policy or {}), **changes)
        session = setup.session(str(suite), {}, cache_dir, tmp_path / "run", False, ())
        return driver.run(session, Silent())

    return start


def by_dispatch(file: RecordFile) -> dict[str, Record]:
    for record in file.records:
        assert record.status == "ok", record.reason
    return {record.cell.dispatch: record for record in file.records}


@needs_two
def test_a_slow_replica_holds_up_a_static_job_and_not_a_dynamic_one(
    run: Callable[..., RecordFile],
) -> None:
    file = run(
        replicas="[2]",
        dispatch='["static", "dynamic", "independent"]',
        axes="[axes.options.fake]\nlatency_us = 1000.0\nslow_one = 5.0",
    )
    found = by_dispatch(file)
    units, share = {}, {}
    for name in ("static", "dynamic"):
        record = found[name]
        each = record.replicas
        units[name] = sorted(len(s.durations_ns) for s in each)
        [made] = [one for one in jobs(summarise([file])) if one.summary.cell.dispatch == name]
        share[name] = made.share.value
        assert {s.stop_reason for s in each} == {"job done"}
        assert len({s.iterations for s in each}) == 1
        assert all(s.truncated == 0 and 0 < s.claim_ns < s.end_ns for s in each)
        makespan = max(s.end_ns for s in each)
        batches = sum(units[name]) * each[0].iterations
        assert record.images_per_s() == pytest.approx(batches * 1e9 / makespan)
        assert sum(record.replica_rates()) == pytest.approx(record.images_per_s())
        assert "NO-COMMON-WINDOW" not in record.flags
    assert units["static"][0] == units["static"][1]
    assert units["dynamic"][1] > units["dynamic"][0] > 0
    # 2 / (1 + 5) of it where the slow one is five times slower, against nearly all of it
    assert share["static"] < share["dynamic"]
    assert {s.claim_ns for s in found["independent"].replicas} == {0}


@needs_two
def test_an_interleaved_comparison_of_both_ways(
    tmp_path: Path, cache_dir: Path, write_suite: WriteSuite
) -> None:
    """A fresh job in each of the two turns of a process."""
    suite = write_suite(
        policy=POLICY | {"duration_s": 0.2},
        batch_size="[1]",
        scenario='["throughput"]',
        replicas="[2]",
        axes="[axes.options.fake]\nlatency_us = 1000.0",
    )
    specs = (
        arms.parse("--baseline", ["dispatch=static"]),
        arms.parse("--candidate", ["dispatch=dynamic"]),
    )
    job = ab_setup.comparison(
        str(suite), {}, specs, (None, None), Rule(), 0.001, cache_dir, tmp_path / "ab", False, ()
    )
    for file in ab_driver.run(job, Silent()):
        assert file.records
        for record in file.records:
            assert record.status == "ok", record.reason
            assert len(record.again) == len(record.replicas) == 2
            totals = [sum(len(s.durations_ns) for s in visit) for visit in record.visits]
            assert totals[0] == totals[1] >= 20
            assert all(s.late_ns >= 0 and s.cpu_ns > 0 for v in record.visits for s in v)
            span = sum(max(s.end_ns for s in visit) for visit in record.visits)
            batches = sum(totals) * record.replicas[0].iterations
            assert record.images_per_s() == pytest.approx(batches * 1e9 / span)
        [summary] = summarise([file])
        assert summary.rates


def test_no_descriptor_and_no_process_is_left_behind(
    tmp_path: Path, cache_dir: Path, tiny_onnx: Path, fakes: None
) -> None:
    cell = make_cell(
        backend="fake", model=str(tiny_onnx), weights="file", images="synthetic", replicas=2,
        replicas_per_device=2, scenario="throughput", dispatch="dynamic",
    )  # fmt: skip
    policy = Policy(duration_s=0.02, warmup_s=0.01, block_s=0.005, parity_images=2)
    core = min(os.sched_getaffinity(0))
    seen = []
    with AgentClient([], cache_dir, tmp_path / "log") as agent:
        agent.start()
        assert agent._process is not None
        reference = agent.ask(BuildReference(cell.workload, policy))
        artefact = agent.ask(Prepare(cell, (core,), 60))
        assert isinstance(reference, Prepared)
        assert isinstance(artefact, Prepared)
        request = Measure(cell, policy, artefact.path, reference.path, [(core,)] * 2)
        for _ in range(3):
            assert isinstance(agent.ask(request), Done)
            time.sleep(0.2)  # the fork server hears of its children's ends by signals
            seen.append({pid: open_files(pid) for pid in session_members(agent._process.pid)})
    assert seen[1] == seen[2]
    assert not [name for files in seen[2].values() for name in files if "eventfd" in name]


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to, less the numbers of pipes and sockets."""
    found = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return sorted(re.sub(r"\d+", "", name) for name in found)
