"""Several nodes in one process: a store in memory, agents that do as they are told."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpubench.backends import base
from gpubench.records.record import Record
from gpubench.records.samples import Samples
from gpubench.run import availability, inventory, setup
from gpubench.run.agent.client import AgentClient, OnProgress
from gpubench.run.agent.messages import (
    Begin,
    Done,
    End,
    Measure,
    Preloaded,
    Prepared,
    Progress,
    Reply,
    Request,
    Step,
    Waiting,
)
from gpubench.run.cluster import node as cluster_node
from gpubench.run.cluster.coordinator import Cluster
from gpubench.run.cluster.node_group import Nodes
from gpubench.run.cluster.rendezvous import Membership
from gpubench.run.cluster.transport import StoreLost
from gpubench.run.plan import Plan, make
from gpubench.suite import grid
from gpubench.suite.types import Cell, Suite

KEY = b"sixteen letters at least"
TIMEOUT_S = 1.0


class MemoryStore:
    """What a TCPStore does; every connection is the same object."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[bytes]] = defaultdict(deque)
        self.seen: list[tuple[str, bytes]] = []
        """All that was ever pushed, for who wants to replay it."""
        self.closed = False
        self._changed = threading.Condition()

    def push(self, queue: str, value: bytes) -> None:
        with self._changed:
            self._check()
            self.queues[queue].append(value)
            self.seen.append((queue, value))
            self._changed.notify_all()

    def pop(self, queue: str, timeout_s: float) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self.queues[queue] or self.closed, timeout_s)
            self._check()
            return self.queues[queue].popleft() if self.queues[queue] else None

    def holds(self, queue: str) -> bool:
        return bool(self.queues[queue])

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self.closed:
            raise StoreLost("closed")


class Told(AgentClient):
    """An agent that measures nothing; ``before`` sees each request, and may answer it."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, list[Request]()
        self.before: Callable[[Request], Reply | None] = lambda _: None
        self._measure: Measure | None = None
        self._steps = 0

    def start(self) -> Preloaded:
        return Preloaded({}, 0)

    def stop(self) -> None: ...
    def kill(self) -> None: ...

    def ask(self, request: Request, progress: OnProgress | None = None) -> Reply:
        self.asked.append(request)
        if reply := self.before(request):
            return reply
        if isinstance(request, Begin):
            self._measure, self._steps = request.measure, 0
            return Waiting("opened", [])
        if isinstance(request, Step):
            self._steps += 1
            if progress:
                progress(Progress("released"))
            assert self._measure is not None
            return Waiting("warm", []) if self._steps == 1 else done(self._measure)
        if isinstance(request, Measure):
            return done(request)
        if isinstance(request, End):
            return Waiting("", [])
        return Prepared(f"/{self.name}/{type(request).__name__}", {"export": 1})


def done(measure: Measure) -> Done:
    replicas = [
        Samples(
            replica=measure.first + i, node=measure.node, device="cpu:0",
            durations_ns=[1000] * 20, start_ns=0, end_ns=20_000,
        )
        for i in range(len(measure.cores))
    ]  # fmt: skip
    record = Record(
        cell=measure.cell, repeat=measure.repeat, status="ok", replicas=replicas,
        telemetry={"seconds": 1.0, "cpu": {}}, facts={"pinned": [""] * len(replicas)},
    )  # fmt: skip
    return Done(record, invalid=False)


class Several:
    """Rank 0 and its peers, the peers in threads."""

    def __init__(self, suite: Path, nnodes: int) -> None:
        self.store = MemoryStore()
        self.suite: Suite = setup.load(str(suite), {})
        self.backends: dict[str, base.Backend] = availability.backends_of(self.suite)
        self.told: list[str] = []
        """What rank 0 and the others wrote to stderr."""
        self.codes: dict[int, int] = {}
        self.agents = {rank: Told(f"node{rank}") for rank in range(nnodes)}
        self.cluster = Cluster(lambda: self.store, nnodes, KEY, TIMEOUT_S, 5.0, self.told.append)
        self.environments: dict[int, dict[str, Any]] = {}
        self.threads: dict[int, threading.Thread] = {}
        self.stations: dict[int, cluster_node.Station] = {}

    def node(self, rank: int) -> inventory.Node:
        return inventory.Node(rank, f"host{rank}", 1, 0)

    def environment(self, rank: int) -> dict[str, Any]:
        return {"host": f"host{rank}"} | self.environments.get(rank, {})

    def start(self, rank: int, key: bytes = KEY) -> None:
        """A node, as `gpubench.run.cluster.node.run` makes one, in a thread."""
        ended = threading.Event()

        def leave(code: int) -> None:
            self.codes[rank] = code
            ended.set()

        member = Membership(len(self.agents), rank, "nowhere", 1)
        station = cluster_node.Station(
            member, lambda: self.store, key, lambda _: None, self.told.append, leave
        )
        here, agent = inventory.here(rank, self.suite), self.agents[rank]
        desk = cluster_node.Desk(here, self.suite, self.backends, agent, lambda _: None)
        self.stations[rank] = station

        def work() -> None:
            try:
                environment = self.environment(rank)
                station.join(inventory.digest(self.suite), self.node(rank), environment, 5.0)
                station.work(self.agents[rank], desk)
            except StoreLost:
                pass
            except Exception as error:  # noqa: BLE001  # the test looks at it
                self.told.append(str(error))

        self.threads[rank] = threading.Thread(target=work, daemon=True)
        self.threads[rank].start()

    def gather(self) -> None:
        self.cluster.gather(inventory.digest(self.suite), self.node(0), self.environment(0))

    def plan(self) -> Plan:
        cells = grid.expand(self.suite, "cpu", 1)
        return make(self.suite, cells, self.backends, [0], 0, self.cluster.nodes)


@contextmanager
def several(suite: Path, nnodes: int = 2) -> Iterator[tuple[Several, Nodes]]:
    """All have joined, and everything is prepared."""
    them = Several(suite, nnodes)
    with them.cluster:
        for rank in range(1, nnodes):
            them.start(rank)
        them.gather()
        plan = them.plan()
        with Nodes(them.cluster, plan, them.agents[0]) as nodes:
            nodes.start()
            yield them, nodes
        them.cluster.finish()
    them.store.close()


def measure(them: Several, cell: Cell) -> Measure:
    """As the driver asks for it."""
    cores = them.plan().cores_of(cell)
    return Measure(cell, them.suite.policy, "/rank0/artefact", "/rank0/reference", cores)


def until(true: Callable[[], object], limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.005)
