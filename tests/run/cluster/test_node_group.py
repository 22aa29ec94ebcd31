"""Several nodes as one agent, with real agents in this process's place of Ray's actors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gpubench import __version__
from gpubench.errors import InputError
from gpubench.machine import cores
from gpubench.records.record import RecordFile
from gpubench.run import driver, setup
from gpubench.run.agent import messages
from gpubench.run.cluster import ray_cluster
from gpubench.run.cluster.node_group import Nodes
from gpubench.run.cluster.ray_cluster import Cluster, Greeting
from gpubench.run.watcher import Silent

WriteSuite = Callable[..., Path]


def measured(
    cluster: Cluster, suite: Path, out: Path, cache_dir: Path, **chosen: Any
) -> RecordFile:
    job = setup.session(str(suite), chosen, cache_dir, out, cluster=cluster)
    return driver.run(job, Silent(), cluster)


def test_a_cell_spans_the_machines_and_says_who_did_what(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", replicas="[1, 2, 3]", scenario='["throughput"]')
    file = measured(cluster, suite, tmp_path / "run", cache_dir)
    by_replicas = {n: [r for r in file.records if r.cell.replicas == n] for n in (1, 2, 3)}
    assert [(r.status, [x.node for x in r.replicas]) for r in by_replicas[1]] == [("ok", [0])] * 2
    for record in by_replicas[2]:
        assert (record.status, record.reason) == ("ok", "")
        assert [(x.node, x.replica) for x in record.replicas] == [(0, 0), (1, 1)]
        assert 0 < record.telemetry["barrier_ns"] < 1e9
        assert set(record.telemetry["nodes"]) == {"0", "1"}
    assert [r.status for r in by_replicas[3]] == ["unavailable"]
    assert "node 0: 1, node 1: 1" in by_replicas[3][0].reason
    assert len(file.header.nodes) == 2


def test_a_lost_machine_costs_its_cells_and_no_others(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", replicas="[1, 2]")
    cluster.gather(setup.load(str(suite), {}))
    ask, asked = cluster.peers[1].ask, []

    def lost(request: messages.Request, progress: Any = None) -> messages.Reply:
        asked.append(request)
        if isinstance(request, messages.Step):
            cluster.peers[1]._lost = "node 1 (b): its node has died"
        return ask(request, progress)

    cluster.peers[1].ask = lost  # type: ignore[method-assign]
    file = measured(cluster, suite, tmp_path / "run", cache_dir)
    assert [r.status for r in file.records if r.cell.replicas == 1] == ["ok", "ok"]
    broken = [r for r in file.records if r.cell.replicas == 2]
    assert [(r.status, r.kind, r.reason) for r in broken] == [
        ("failed", "node-lost", "node 1 (b): its node has died")
    ]


def test_a_first_machine_that_is_lost_costs_no_cell_that_does_not_need_it(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", replicas="[1, 2]")
    job = setup.session(str(suite), {}, cache_dir, tmp_path / "run", cluster=cluster)
    on_b = replace(cluster.nodes[0], cores=0)  # as the head of a cluster that has no GPU
    plan = replace(job.plan, nodes=[on_b, cluster.nodes[1]])
    alone = next(cell for cell in plan.cells if cell.replicas == 1)
    cluster.peers[0]._lost = "node 0 (a): gone"
    both = replace(plan, nodes=cluster.nodes, cells=plan.cells)
    with Nodes(cluster, both, [], str(cache_dir)) as nodes:
        nodes.start()
        reply = nodes.ask(messages.BuildReference(alone.workload, plan.suite.policy))
        assert isinstance(reply, messages.Prepared)
        reply = nodes.ask(messages.Prepare(alone, (), 60))
        assert isinstance(reply, messages.Prepared)
        nodes._plan = plan
        measure = messages.Measure(alone, plan.suite.policy, "", "", [()])
        assert isinstance(nodes.ask(measure), messages.Done)
        nodes._plan = both
        lost = nodes.ask(measure)
    assert (lost.kind, lost.reason) == ("node-lost", "node 0 (a): gone")  # type: ignore[union-attr]


def test_a_reference_that_a_machine_lacks_costs_the_cells_that_need_it(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    ask = cluster.peers[1].ask

    def slow(request: messages.Request, progress: Any = None) -> messages.Reply:
        if isinstance(request, messages.BuildReference) and request.input == "uint8":
            return messages.Failure("timeout", "no answer within 60 s")
        return ask(request, progress)

    cluster.peers[1].ask = slow  # type: ignore[method-assign]
    suite = write_suite(backend='["onnxruntime"]', batch_size="[1]", replicas="[2]",
                        input='["float32", "uint8"]')  # fmt: skip
    file = measured(cluster, suite, tmp_path / "run", cache_dir)
    found = {(r.cell.input, r.status, r.kind) for r in file.records}
    assert found == {("float32", "ok", ""), ("uint8", "failed", "timeout")}


def test_who_has_other_files_is_refused(
    cluster: Cluster, write_suite: WriteSuite, tiny_onnx: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    suite = setup.load(str(write_suite()), {})
    offer = cluster.peers[1]._actor.offer

    def elsewhere(*words: Any) -> bytes:
        with monkeypatch.context() as other:
            other.setattr("gpubench.cache.digest", lambda _: "0" * 64)
            return bytes(offer(*words))

    cluster.peers[1]._actor.offer = elsewhere
    monkeypatch.setattr(ray_cluster, "each", lambda work, those: [work(one) for one in those])
    with pytest.raises(InputError, match=r"node 1 .*are others there.*same paths, or.*--ship"):
        cluster.gather(suite)


def test_a_model_is_shipped_into_the_cache_of_who_lacks_it(
    cluster: Cluster, write_suite: WriteSuite, tiny_onnx: Path, tmp_path: Path, cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ray

    monkeypatch.setattr(ray, "put", lambda content: content)
    monkeypatch.setattr(ray, "get", lambda content: content)
    has = ray_cluster._has
    monkeypatch.setattr(ray_cluster, "_has", lambda path, of: path != tiny_onnx and has(path, of))
    cluster._ship = True
    suite = write_suite(batch_size="[1]", replicas="[2]")
    file = measured(cluster, suite, tmp_path / "run", cache_dir)
    assert [(r.status, r.reason) for r in file.records] == [("ok", "")] * 2
    assert {r.cell.model for r in file.records} == {str(tiny_onnx)}
    for peer in cluster.peers:
        (there,) = peer._actor._shipped.values()
        assert there.startswith(str(cache_dir))
        assert Path(there).read_bytes() == tiny_onnx.read_bytes()
        assert peer._actor._suite.workload.model == there
    monkeypatch.setattr(ray_cluster, "_has", has)
    cluster.gather(setup.load(str(suite), {}))  # of the next run: by now it is there
    assert {p._actor._suite.workload.model for p in cluster.peers} == {str(tiny_onnx)}


def test_what_cannot_be_shipped_is_refused(
    cluster: Cluster, write_suite: WriteSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "MOST_BYTES", 10)
    cluster._ship = True
    with pytest.raises(InputError, match=r"--ship: .*tiny.onnx: .* of at most 2 GiB"):
        cluster.gather(setup.load(str(write_suite()), {}))


def test_one_machine_alone_has_its_own_environment_and_cores(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    cluster.peers[1].environment |= {"host": "b"}
    one = cluster.alone(1)
    file = measured(one, write_suite(batch_size="[1]"), tmp_path / "run", cache_dir)
    assert {r.status for r in file.records} == {"ok"}
    assert file.header.environment["host"] == "b"


def test_a_resumed_run_takes_machines_like_those_that_it_began_with(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", replicas="[1, 2]")
    late, first = cluster.peers  # by address, the one that joined late comes first now
    late.environment |= {"variables": {"OMP_NUM_THREADS": "1"}}
    cluster.peers = [first]
    begun = measured(cluster, suite, tmp_path / "run", cache_dir)
    assert [r.status for r in begun.records] == ["unavailable", "ok", "ok"]
    cluster.peers = [late, first]
    job = setup.session(str(suite), {}, cache_dir, tmp_path / "run", True, (), cluster)
    again = driver.run(job, Silent(), cluster)
    assert cluster.peers == [first]
    assert [r.status for r in again.records] == ["unavailable", "ok", "ok"]
    assert again.records[1:] == begun.records[1:], "measured once"


def test_machines_whose_files_differ_end_the_run(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    ask = cluster.peers[1].ask

    def other(request: messages.Request, progress: Any = None) -> messages.Reply:
        reply = ask(request, progress)
        if isinstance(reply, messages.Prepared):
            return msgspec.structs.replace(reply, contents=dict.fromkeys(reply.contents, "0" * 64))
        return reply

    cluster.peers[1].ask = other  # type: ignore[method-assign]
    suite = write_suite(batch_size="[1]", replicas="[2]")
    with pytest.raises(InputError, match="node 1 and node 0 hold different contents"):
        measured(cluster, suite, tmp_path / "run", cache_dir)
    assert not (tmp_path / "run" / "records.jsonl").exists()


class Says:
    """In Ray's place: one node, which greets so."""

    def __init__(self, **changes: Any) -> None:
        self._greeting = Greeting(__version__, messages.PROTOCOL, True, {"host": "b"})
        self._greeting = msgspec.structs.replace(self._greeting, **changes)

    def call(self, method: str, *_: object, limit_s: float) -> bytes:
        assert (method, limit_s) == ("greet", ray_cluster.JOIN_S)
        return msgspec.json.encode(self._greeting)

    name = "node b"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "9.9"}, rf"node b has gpubench 9.9 .*here is {__version__}.* the same every"),
        ({"protocol": 1}, r"\(protocol 1\)"),
        ({"token": False}, "RAY_AUTH_MODE=token on every node .*--insecure-cluster"),
    ],
)
def test_who_does_not_fit_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Cluster("10.0.0.1:6379")._welcome(Says(**changes), "2.60.0", alone=False)  # type: ignore[arg-type]


def test_a_cluster_without_a_token_is_taken_when_told_so_and_the_header_says_it() -> None:
    peer = Says(token=False)
    Cluster("10.0.0.1:6379", insecure=True)._welcome(peer, "2.60.0", alone=False)  # type: ignore[arg-type]
    assert peer.environment["engine"] == "Ray 2.60.0, without a token"  # type: ignore[attr-defined]


def test_what_no_machine_could_start_ends_the_run(
    cluster: Cluster, write_suite: WriteSuite, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]")
    job = setup.session(str(suite), {}, cache_dir, cluster=cluster)
    cluster.peers[0]._lost = "gone"
    with (
        Nodes(cluster, job.plan, [], "") as nodes,
        pytest.raises(Exception, match="gone"),
    ):
        nodes.start()


def test_rays_processes_keep_off_what_is_measured_and_come_back(tmp_path: Path) -> None:
    usable = set(cores.usable_cores())
    if len(usable) < 2:
        pytest.skip("one core leaves nothing")
    session = tmp_path / "session_1"
    session.mkdir()
    first, *others = sorted(usable)
    sleep = f"{sys.executable} -c 'import time; time.sleep(60)' {session}"
    forked = ["sh", "-c", f"{sleep} > {tmp_path}/out & echo $!"]
    done = subprocess.run(forked, stdout=subprocess.PIPE, text=True, check=True)
    raylet = int(done.stdout)  # its parent is not we, as Ray's are no children of an actor
    try:
        ray_cluster.Aside(session).keep_off([(first,)])
        assert os.sched_getaffinity(raylet) == set(others)
        ray_cluster.Aside(session)  # of the next run: the first was killed
        assert os.sched_getaffinity(raylet) == usable
        kept = ray_cluster.Aside(session)
        kept.keep_off([(first,)])
        kept.keep_off([tuple(usable)])
        assert os.sched_getaffinity(raylet) == usable
    finally:
        os.kill(raylet, signal.SIGKILL)
