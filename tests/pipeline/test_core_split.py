"""What a replica's cores are shared out by: measured once for a cell, by the agent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpubench.backends.base import Device
from gpubench.cache import Cache
from gpubench.pipeline import core_split
from gpubench.pipeline.core_split import StageTimes
from gpubench.run.agent import agent
from gpubench.run.agent.messages import Failure, Measure, Request, SplitCores
from gpubench.suite.types import Policy, Workload
from gpubench.workload import reference
from tests.measure.virtual import make_cell


def request(**changes: Any) -> Measure:
    values = {"boundary": "pipeline", "scenario": "throughput", "cores": 3} | changes
    return Measure(make_cell(**values), Policy(), "", "", [(0, 1, 2)])


def test_both_parts_are_timed(
    fakes: None, tiny_onnx: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_split, "TRIAL_S", 0.01)
    workload = Workload(model=str(tiny_onnx), weights="file", images="synthetic")
    made = reference.build(workload, Policy(), Cache(cache_dir))
    core = min(os.sched_getaffinity(0))
    cell = make_cell(boundary="pipeline", batch_size=4, options={"latency_us": 30_000.0})
    found = core_split.find_out(cell, Path(), made, Device("cpu", 0, (core,)))
    assert found.session_ns > 30_000_000
    assert found.data_ns > 0


def test_the_agent_asks_once_for_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def once(self: object, request: Request) -> StageTimes:
        asked.append(request)
        return StageTimes(2, 1)

    monkeypatch.setattr(agent.Agent, "_once", once)
    own = agent.Agent(lambda _: None, closed=-1)
    for cell in (request(), request(), request(batch_size=2)):
        placed = own._placed(cell)
        assert isinstance(placed, Measure)
        assert placed.times == StageTimes(2, 1)
    assert [type(one) for one in asked] == [SplitCores, SplitCores]
    assert own._placed(request(loader_cores=1)) == request(loader_cores=1)


def test_what_goes_wrong_then_is_the_cells_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Failure("error", "the decoder broke")
    monkeypatch.setattr(agent.Agent, "_once", lambda *_: broken)
    own = agent.Agent(lambda _: None, closed=-1)
    assert own.handle(msgspec.json.encode(request())) == broken
