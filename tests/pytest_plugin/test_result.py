"""What a test gets, and pytest-benchmark's clock."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.analysis.summary import Summary
from gpubench.pytest_plugin.result import Result, replay
from gpubench.records.parity import Parity
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.suite.types import Cell, Policy


def test_replay_loses_nothing_and_can_be_read_again() -> None:
    durations = [0.1, 1e-9, 123.456789, 1 / 3]
    clock = replay(durations)
    for _ in range(2):
        assert [-(clock() - clock()) for _ in durations] == durations
    assert replay([])() == 0


def result(starts: tuple[int, int], **fields: Any) -> Result:
    """Of two replicas, which take one sample of 5 ns each from there on."""
    axes: dict[str, Any] = {"backend": "fake", "device": "cpu", "model": "m", "weights": "w"}
    axes |= {"images": "i", "precision": "fp32", "batch_size": 1, "replicas": 2, "cores": 1}
    cell = Cell(**axes, scenario="throughput", boundary="compute")
    replicas = [
        Samples(replica=i, device="cpu:0", durations_ns=[5], start_ns=start, end_ns=start + 5)
        for i, start in enumerate(starts)
    ]
    record = Record(cell=cell, repeat=0, status="ok", replicas=replicas, **fields)
    summary = Summary(run="", baseline="fake", policy=Policy(), cell=cell, records=[record])
    return Result(summary, failure="", timed=True, about={})


def test_a_cell_without_a_value_fails_instead_of_taking_no_time() -> None:
    """Replicas that never ran at the same time have no throughput."""
    with pytest.raises(pytest.fail.Exception, match=r"no repeat has a value.*NO-COMMON-WINDOW"):
        _ = result((0, 10), flags=["NO-COMMON-WINDOW"]).images_per_s


def test_a_cell_without_accuracy_fails_with_the_reason() -> None:
    parity = Parity(
        images=8, relative_error=0.0, top1_agreement=1.0, worst_slot=0, max_relative_error=0.1,
        min_top1_agreement=0.9, passed=True, reference="r", labelled=0, correct=0,
        reference_correct=0,
    )  # fmt: skip
    found = result((0, 0), parity=parity, facts={"labelling": "no accuracy: 4 folders"})
    with pytest.raises(pytest.fail.Exception, match=r": no accuracy: 4 folders$"):
        _ = found.accuracy
