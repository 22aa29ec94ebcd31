"""A cluster without Ray: actors in this process, with real agents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gpubench.run.agent import messages
from gpubench.run.cluster import ray_cluster
from gpubench.run.cluster.ray_cluster import LOST, Cluster, NodeActor, Peer


class Local(Peer):
    """An actor without Ray between."""

    def call(self, method: str, *words: object, limit_s: float | None = None) -> bytes:
        found: bytes = getattr(self._actor, method)(*words)
        return found

    def ask(self, request: messages.Request, progress: Any = None) -> messages.Reply:
        if self._lost:
            return messages.Failure(LOST, self._lost)
        for said in self._actor.ask(msgspec.json.encode(request)):
            reply: messages.Reply = msgspec.json.decode(said, type=messages.Reply)
            if not isinstance(reply, messages.Progress):
                return reply
            if progress is not None:
                progress(reply)
        raise AssertionError("an actor answers")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two machines of one core each."""
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr("gpubench.machine.cores.usable_cores", lambda: [core])
    monkeypatch.setattr("gpubench.run.inventory.usable_cores", lambda: [core])
    monkeypatch.setattr(ray_cluster, "_as_started", lambda: None)
    found = Cluster()
    found.peers = [Local(NodeActor(), f"node {name}") for name in "ab"]
    for peer in found.peers:
        peer.environment = msgspec.json.decode(peer.call("greet", ["gpubench"]))["environment"]
    yield found
    for peer in found.peers:
        peer._actor.stop()
