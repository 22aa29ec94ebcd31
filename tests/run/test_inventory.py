"""The devices of several machines, and what the plan makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from gpubench.run.availability import Lack
from gpubench.run.inventory import Node, cores_of_a_device, shares
from gpubench.run.plan import Plan, make
from gpubench.suite.types import Cell
from tests.measure.virtual import make_cell
from tests.run.test_plan import SUITE, Stub


def nodes(*cores: int, gpus: int = 0) -> list[Node]:
    return [Node(rank, f"host{rank}", n, gpus) for rank, n in enumerate(cores)]


@pytest.mark.parametrize(
    ("cell", "where", "share"),
    [
        ({"replicas": 1}, nodes(4, 4), {0: 1}),
        ({"replicas": 4}, nodes(4, 4), {0: 4}),
        ({"replicas": 5}, nodes(4, 4), {0: 4, 1: 1}),
        ({"replicas": 3, "cores": 3}, nodes(4, 7), {0: 1, 1: 2}),
        ({"replicas": 2, "cores": 4}, nodes(3, 8), {1: 2}),
        ({"replicas": 5, "replicas_per_device": 2, "cores": 2}, nodes(4, 4), {0: 4, 1: 1}),
        ({"replicas": 3, "device": "cuda", "cores": 0}, nodes(9, 9, gpus=2), {0: 2, 1: 1}),
    ],
)
def test_devices_are_used_in_the_order_of_ranks(
    cell: dict[str, Any], where: list[Node], share: dict[int, int]
) -> None:
    assert shares(make_cell(**cell), where) == share


@pytest.mark.parametrize(
    ("most", "cores", "each"),
    [(1, (4, 4), 4), (2, (4, 4), 4), (4, (4, 4), 2), (3, (5, 5), 2), (8, (4, 4), 1), (99, (4,), 1)],
)
def test_cores_are_shared_out_so_that_all_devices_fit(
    most: int, cores: tuple[int, ...], each: int
) -> None:
    assert cores_of_a_device(most, nodes(*cores)) == each


def plan(cell: Cell, where: list[Node], **stub: Any) -> Plan:
    return make(SUITE, [cell], {"fake": Stub(**stub)}, [0], 0, where)


def test_what_all_nodes_together_lack_is_said_by_node() -> None:
    [skip] = plan(make_cell(replicas=4, cores=2), nodes(4, 3)).skips
    assert skip.status == "unavailable"
    assert skip.reason == ("4 replicas need 4 set(s) of 2 core(s); there are node 0: 2, node 1: 1")
    [skip] = plan(make_cell(replicas=3, device="cuda", cores=0), nodes(4, 4, gpus=1)).skips
    assert skip.reason == "3 replicas need 3 GPU(s); there are node 0: 1, node 1: 1"


def test_a_backend_that_a_needed_node_lacks_names_the_node() -> None:
    where = nodes(1, 1)
    where[1] = Node(1, "host1", 1, 0, {"fake": Lack("not installed", "install it")})
    [skip] = plan(make_cell(replicas=2), where).skips
    assert (skip.status, skip.reason, skip.remedy) == (
        "unavailable", "node 1 (host1): not installed", "install it"
    )  # fmt: skip
    assert plan(make_cell(replicas=1), where).cells


@pytest.mark.parametrize("dispatch", ["static", "dynamic"])
def test_one_job_is_not_handed_out_over_machines(dispatch: str) -> None:
    cell = make_cell(replicas=2, scenario="throughput", dispatch=dispatch)
    [skip] = plan(cell, nodes(1, 1)).skips
    assert skip.status == "unsupported"
    assert f"dispatch {dispatch}" in skip.reason
    assert plan(cell, nodes(2, 1)).cells == [cell]
