"""What a test gets, and pytest-benchmark's clock."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.analysis.summary import Summary
from gpubench.pytest_plugin.result import Result, replay
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.suite.types import Cell, Policy


def test_replay_loses_nothing_and_can_be_read_again() -> None:
    durations = [0.1, 1e-9, 123.456789, 1 / 3]
    clock = replay(durations)
    for _ in range(2):
        assert [-(clock() - clock()) for _ in durations] == durations
    assert replay([])() == 0


def test_a_cell_without_a_value_fails_instead_of_taking_no_time() -> None:
    """Replicas that never ran at the same time have no throughput."""
    fields: dict[str, Any] = {"backend": "fake", "device": "cpu", "model": "m", "weights": "w"}
    fields |= {"images": "i", "precision": "fp32", "batch_size": 1, "replicas": 2, "cores": 1}
    cell = Cell(**fields, scenario="throughput", boundary="compute")
    replicas = [
        Samples(replica=i, device="cpu:0", durations_ns=[5], start_ns=10 * i, end_ns=10 * i + 5)
        for i in range(2)
    ]
    record = Record(cell=cell, repeat=0, status="ok", replicas=replicas, flags=["NO-COMMON-WINDOW"])
    summary = Summary(run="", baseline="fake", policy=Policy(), cell=cell, records=[record])
    result = Result(summary, failure="", timed=True, about={})
    with pytest.raises(pytest.fail.Exception, match=r"no repeat has a value.*NO-COMMON-WINDOW"):
        _ = result.images_per_s
