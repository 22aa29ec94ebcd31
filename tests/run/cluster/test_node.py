"""What a node does of what it is asked: its own suite's cells, with its own paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpubench.run import availability, inventory, setup
from gpubench.run.agent.messages import (
    Begin,
    BuildReference,
    End,
    Failure,
    Measure,
    Preload,
    Preloaded,
    Prepare,
    Prepared,
    Request,
    Step,
    Waiting,
)
from gpubench.run.cluster.node import Desk
from gpubench.suite.grid import expand
from gpubench.suite.types import Cell, Policy, Workload
from tests.run.cluster.memory import Told


@pytest.fixture
def desk(write_suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Desk:
    suite = setup.load(str(write_suite(batch_size="[1]", replicas="[1, 4]")), {"cores": 0})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6})
    said: list[str] = []
    return Desk(
        inventory.here(1, suite), suite, availability.backends_of(suite), Told("node1"), said.append
    )


@pytest.fixture
def cell(desk: Desk) -> Cell:
    """Of four replicas."""
    return expand(desk._suite, "cpu", 4)[1]


def asked(desk: Desk) -> list[Request]:
    assert isinstance(desk._agent, Told)
    return desk._agent.asked


def say(desk: Desk, request: Request) -> Any:
    return desk.answer(request, lambda _: None)


def share(cell: Cell, **changes: Any) -> Begin:
    whole = Measure(cell, Policy(), "/rank0/a", "/rank0/r", [(), ()], first=2, node=7)
    return Begin("team", msgspec.structs.replace(whole, **changes))


def prepare(desk: Desk, cell: Cell) -> None:
    assert say(desk, BuildReference(cell.workload, Policy())) == Prepared("", {"export": 1})
    assert say(desk, Prepare(cell, (0,), 1.0)) == Prepared("", {"export": 1})


def test_only_names_and_numbers_are_taken_from_rank_0(desk: Desk, cell: Cell) -> None:
    own = desk._suite
    prepare(desk, cell)
    assert isinstance(say(desk, share(cell, turns=9)), Waiting)
    say(desk, Step("team", [1], 1e9))
    say(desk, End("another team"))
    assert asked(desk) == [
        BuildReference(own.workload, own.policy),
        Prepare(cell, (4,), own.policy.prepare_timeout_s),
        Begin(
            "cell",
            Measure(
                cell, own.policy, "/node1/Prepare", "/node1/BuildReference", [(4,), (5,)],
                node=1, first=2,
            ),
        ),
        Step("cell", [], own.policy.timeout_s),
        End("cell"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "/etc/passwd.onnx"}, {"images": "/etc"}, {"weights": "/etc/x.pt"},
        {"backend": "null"}, {"backend": "fake-missing"}, {"device": "cuda", "cores": 0},
        {"options": {"fail": "sigkill"}}, {"options": {"latency_us": 1.0, "evil": 1}},
        {"batch_size": 1_000_000}, {"replicas": 1000}, {"cores": 0}, {"cores": -1},
        {"precision": "bf16"}, {"dispatch": "dynamic", "scenario": "throughput"},
    ],
)  # fmt: skip
def test_a_cell_that_is_not_of_the_nodes_suite_is_refused(
    desk: Desk, cell: Cell, changes: dict[str, Any]
) -> None:
    prepare(desk, cell)
    before = len(asked(desk))
    foreign = msgspec.structs.replace(cell, **changes)
    for request in (share(foreign), Prepare(foreign, (), 1.0)):
        reply = say(desk, request)
        assert isinstance(reply, Failure)
        assert reply.reason.startswith("refused: ")
    assert len(asked(desk)) == before


@pytest.mark.parametrize(
    "changes",
    [{"cores": []}, {"cores": [()] * 4, "first": 0}, {"first": 3}, {"first": -1}],
)
def test_replicas_that_the_node_has_no_room_for_are_refused(
    desk: Desk, cell: Cell, changes: dict[str, Any]
) -> None:
    """Three cores, four replicas."""
    prepare(desk, cell)
    reply = say(desk, share(cell, **changes))
    assert isinstance(reply, Failure)
    assert "has room for 3" in reply.reason


def test_nothing_is_measured_that_was_not_prepared(desk: Desk, cell: Cell) -> None:
    assert "not prepared here" in say(desk, share(cell)).reason


def test_each_input_has_a_reference_of_its_own(desk: Desk, cell: Cell) -> None:
    prepare(desk, cell)
    say(desk, BuildReference(cell.workload, Policy(), "uint8"))
    assert asked(desk)[-1] == BuildReference(desk._suite.workload, desk._suite.policy, "uint8")
    assert {*desk._references} == {"float32", "uint8"}


def test_modules_are_never_imported_for_somebody_else(desk: Desk) -> None:
    assert "a Preload is nothing that a node does" in say(desk, Preload(["os"], "/etc")).reason
    assert asked(desk) == []


def test_the_workload_is_the_nodes_own(desk: Desk) -> None:
    say(desk, BuildReference(Workload(model="/etc/x.onnx"), Policy()))
    assert asked(desk) == [BuildReference(desk._suite.workload, desk._suite.policy)]


def test_a_module_that_cannot_be_imported_here_is_told(desk: Desk, cell: Cell) -> None:
    agent = desk._agent
    assert isinstance(agent, Told)
    agent.start = lambda: Preloaded({"numpy": "broken"}, 0)  # type: ignore[method-assign]
    desk._backends["fake"].preload = ("numpy",)  # type: ignore[misc]
    desk.start()
    reply = say(desk, Prepare(cell, (), 1.0))
    assert (reply.kind, reply.reason) == ("unavailable", "numpy cannot be imported: broken")


def test_suites_are_alike_when_options_and_model_files_are(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_suite()
    suite = setup.load(str(path), {})
    assert inventory.digest(suite) == inventory.digest(setup.load(str(path), {}))
    assert inventory.digest(suite) != inventory.digest(setup.load(str(path), {"batch_size": [2]}))
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(Path(suite.workload.model).read_bytes())
    own = setup.load(str(path), {"model": str(copy)})
    before = inventory.digest(own)
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert inventory.digest(own) != before
