"""What samples hold besides durations, so that a shortfall can be explained later."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpubench.measure import protocol
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.run import driver, setup
from gpubench.run.agent import measure_task
from gpubench.run.agent.messages import Go, Measure
from gpubench.run.watcher import Silent
from gpubench.suite.types import Policy
from tests.measure.virtual import make_cell

WriteSuite = Callable[..., Path]
Run = Callable[..., list[Record]]


@pytest.fixture
def run(tmp_path: Path, cache_dir: Path, write_suite: WriteSuite) -> Run:
    def start(**changes: Any) -> list[Record]:
        policy = {"repeats": 1, "max_repeats": 1, "parity_images": 4, "duration_s": 0.1}
        suite = write_suite(policy=policy, **({"batch_size": "[2]"} | changes))
        session = setup.session(str(suite), {}, cache_dir, tmp_path / "run", False, ())
        records = driver.run(session, Silent()).records
        assert [r.reason for r in records if r.status != "ok"] == []
        return records

    return start


def test_every_turn_says_what_the_process_used(run: Run) -> None:
    axes = "[axes.options.fake]\nlatency_us = 300.0"
    for record in run(scenario='["latency", "throughput"]', axes=axes):
        [own] = record.replicas
        total = sum(own.durations_ns)
        assert 0.9 * total < own.enqueue_ns < total, "the fake computes in run(), not in sync()"
        assert 0 < own.cpu_ns < 1.1 * (own.end_ns - own.start_ns) + 2e7
        assert own.switches >= 0
        assert 0 <= own.withheld_ns <= own.end_ns - own.start_ns
        assert "FROZEN" not in record.flags
        share = measure_task._withheld(own, record.cell, (0,))
        assert ("CPU-WITHHELD" in record.flags) == (share > measure_task.WITHHELD_LIMIT)
        assert 0 <= own.late_ns <= own.start_ns
        assert (own.claim_ns, own.stages_ns) == (0, {})
        assert record.telemetry["start_s"] > own.open_ns / 1e9
        assert record.facts["pinned"] == [own.device.removeprefix("cpu:")]


@pytest.mark.parametrize(
    ("device", "cores", "share"), [("cpu", (3,), 0.5), ("cpu", (2, 3), 0.25), ("cuda", (2, 3), 0.5)]
)
def test_what_is_withheld_is_a_share_of_the_cores_that_it_can_keep_busy(
    device: str, cores: tuple[int, ...], share: float
) -> None:
    turn = Samples(replica=0, device=device, durations_ns=[], end_ns=100, withheld_ns=50)
    assert measure_task._withheld(turn, make_cell(device=device), cores) == share


def test_a_transfer_is_told_apart_into_its_stages(run: Run) -> None:
    axes = "[axes.options.fake]\nlatency_us = 2000.0"
    for record in run(scenario='["latency", "throughput"]', boundary='["transfer"]', axes=axes):
        stages = record.replicas[0].stages_ns
        assert list(stages) == ["copy_in", "run", "copy_out"]
        assert stages["run"] >= 2_000_000 > stages["copy_in"] > 0


def test_many_replicas_on_one_core_give_complete_records(run: Run) -> None:
    [record] = run(
        replicas="[12]", replicas_per_device="[12]", scenario='["throughput"]',
        axes="[axes.options.fake]\nlatency_us = 100.0",
    )  # fmt: skip
    assert [s.replica for s in record.replicas] == list(range(12))
    assert len({s.device for s in record.replicas}) == 1
    assert all(s.durations_ns and s.late_ns >= 0 for s in record.replicas)
    assert len(record.facts["pinned"]) == 12
    assert record.telemetry["start_s"] > 0


def test_a_barrier_is_never_passed_early() -> None:
    for spin in (True, False):
        at = measure_task.perf_counter_ns() + 5_000_000
        late = measure_task.wait_until(at, spin=spin)
        assert 0 <= late <= measure_task.perf_counter_ns() - at
    assert measure_task.wait_until(measure_task.perf_counter_ns() - 1000, spin=True) >= 1000


def test_replicas_that_share_a_core_do_not_wait_actively(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would keep each other from being there in time."""
    spins: list[bool] = []
    monkeypatch.setattr(measure_task, "wait_until", lambda at, spin: spins.append(spin) or 0)
    sampler = protocol.Sampler(lambda: None, lambda: None, 1, 1, [1], [], 1.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    for cores in ([(0, 1)] * 2, [(0, 1)] * 3, [(0, 1), (2, 3), (0, 1)], [()] * 2, [()] * 3):
        cell = make_cell(replicas=len(cores))
        request = Measure(cell, Policy(duration_s=0.001), "", "", cores)
        measure_task._sample(request, 0, sampler, Go(0), None)
    assert spins == [True, False, True, True, False]
