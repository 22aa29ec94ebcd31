"""What knows of Ray, with a Ray of one machine in this process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import gpubench
from gpubench.errors import InputError
from gpubench.run.agent import messages
from gpubench.run.cluster import ray_cluster
from gpubench.run.cluster.ray_cluster import Cluster, NodeActor
from tests.run.cluster import fake_ray
from tests.run.cluster.fake_ray import Fake

WriteSuite = Callable[..., Path]
END = messages.End("cell")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    for name, module in fake_ray.modules(fake).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ray_cluster, "_as_started", lambda: None)
    monkeypatch.setattr(ray_cluster, "LOOK_S", 0.01)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


def test_a_cluster_of_this_machine_alone_needs_no_token_and_measures(
    ray: Fake, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]")
    with Cluster() as cluster:
        run = gpubench.run(
            suite, output=tmp_path / "run", cache_dir=cache_dir, cluster=cluster, progress=False
        )
    assert [(r.status, r.reason) for r in run.file.records] == [("ok", "")] * 2
    assert run.file.header.environment["engine"] == "Ray 0.0, without a token"
    assert ray.inited is not None
    assert ray.inited[0] is None
    assert ray.inited[1]["include_dashboard"] is False
    assert all(actor.inside._agent._process is None for actor in ray.actors)


def test_a_cluster_is_entered_by_any_thread(ray: Fake) -> None:
    with ThreadPoolExecutor(1) as pool:
        cluster = pool.submit(Cluster().__enter__).result(60)
    assert [peer.name for peer in cluster.peers] == ["node here"]
    cluster.__exit__()


class Silent(NodeActor):
    """Its process is stopped while it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def ask(self, request: bytes) -> Iterator[bytes]:
        yield msgspec.json.encode(messages.Progress("begun"))
        self.asked.wait(30)

    def stop(self) -> None:
        self.asked.set()


@pytest.fixture
def silent(ray: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(ray_cluster, "NodeActor", Silent)
    with Cluster() as cluster:
        yield cluster


def test_an_actor_that_hangs_is_lost_and_killed(
    ray: Fake, silent: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "limit_s", lambda _: -ray_cluster.GRACE_S)
    (peer,) = silent.peers
    steps: list[messages.Progress] = []
    reply = peer.ask(END, steps.append)
    assert reply == messages.Failure(
        "node-lost", "node here: the process that Ray started there hung"
    )
    assert ray.actors[0].dead
    assert peer.ask(END) == reply, "it is not asked again"


def test_who_waits_for_a_machine_is_interrupted_when_the_run_is_over(silent: Cluster) -> None:
    (peer,) = silent.peers
    leaving: list[Any] = []

    def leave(_: object) -> None:
        leaving.append(threading.Thread(target=peer.leave))
        leaving[0].start()

    with pytest.raises(KeyboardInterrupt):
        peer.ask(END, leave)
    leaving[0].join()


def test_an_actor_that_died_says_so_in_rays_words(ray: Fake, silent: Cluster) -> None:
    ray.actors[0].dead = True
    with pytest.raises(InputError, match=r"^node here: The actor died .* this task\.$"):
        silent.peers[0].call("greet", [])


def test_one_that_finds_no_room_says_what_to_look_at(
    ray: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "JOIN_S", 0.01)
    begin = threading.Event()
    monkeypatch.setattr(NodeActor, "greet", lambda *_: begin.wait(30))
    try:
        with pytest.raises(InputError, match=r"did not start within 0.01 s: .*`ray status`"):
            Cluster().__enter__()
    finally:
        begin.set()
