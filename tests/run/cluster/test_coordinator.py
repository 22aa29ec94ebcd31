"""Rank 0 and its peers, in one process: joining, measuring together, losing one another."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gpubench.errors import ChangedError, InputError
from gpubench.run.agent.messages import (
    PROTOCOL,
    Begin,
    BuildReference,
    Done,
    End,
    Failure,
    Measure,
    Prepare,
    Prepared,
    Reply,
    Request,
    Step,
)
from gpubench.run.cluster import channel as cluster_channel
from gpubench.run.cluster import coordinator
from gpubench.run.cluster import node as cluster_node
from gpubench.run.cluster.node_group import Nodes
from gpubench.run.inventory import shares
from gpubench.suite.types import Cell
from tests.run.cluster.memory import KEY, Several, measure, several, until


@pytest.fixture
def suite(write_suite: Callable[..., Path]) -> Path:
    return write_suite(batch_size="[1]", replicas="[1, 2, 3]")


def cells(them: Several) -> dict[int, Cell]:
    """Replicas -> cell."""
    return {cell.replicas: cell for cell in them.plan().planned}


def prepared(them: Several, nodes: Nodes) -> dict[int, Cell]:
    found = cells(them)
    assert isinstance(nodes.ask(BuildReference(found[1].workload, them.suite.policy)), Prepared)
    assert isinstance(nodes.ask(Prepare(found[1], (0,), 1.0)), Prepared)
    return found


def test_replicas_are_spread_over_nodes_and_their_results_are_one(suite: Path) -> None:
    with several(suite, 3) as (them, nodes):
        found = prepared(them, nodes)
        steps: list[str] = []
        reply = nodes.ask(measure(them, found[3]), lambda step: steps.append(step.step))
    assert isinstance(reply, Done), reply
    assert [(s.node, s.replica) for s in reply.record.replicas] == [(0, 0), (1, 1), (2, 2)]
    assert steps == ["opened", "warm"]
    assert set(reply.record.telemetry["nodes"]) == {"0", "1", "2"}
    assert reply.record.telemetry["barrier_ns"] > 0
    assert reply.record.facts["pinned"] == [""] * 3
    assert reply.record.flags == []
    assert them.codes == {1: 0, 2: 0}
    assert them.told == []


def test_a_node_uses_its_own_paths_whatever_rank_0_says(suite: Path) -> None:
    with several(suite) as (them, nodes):
        found = prepared(them, nodes)
        assert isinstance(nodes.ask(measure(them, found[2])), Done)
    [begin] = [asked for asked in them.agents[1].asked if isinstance(asked, Begin)]
    assert begin.measure.artefact == "/node1/Prepare"
    assert begin.measure.reference == "/node1/BuildReference"
    assert (begin.measure.node, begin.measure.first, len(begin.measure.cores)) == (1, 1, 1)
    assert all(b"rank0" not in value for _, value in them.store.seen)


def test_a_cell_that_fits_on_rank_0_runs_there_alone(suite: Path) -> None:
    with several(suite) as (them, nodes):
        found = prepared(them, nodes)
        assert isinstance(nodes.ask(measure(them, found[1])), Done)
    assert isinstance(them.agents[0].asked[-1], Measure)
    assert not any(isinstance(asked, Begin) for asked in them.agents[1].asked)


def test_nodes_that_differ_are_flagged_where_a_cell_spans_them(suite: Path) -> None:
    them = Several(suite, 3)
    them.environments = {2: {"libraries": {"torch": "1.0"}}}
    with them.cluster:
        them.start(1)
        them.start(2)
        them.gather()
        with Nodes(them.cluster, them.plan(), them.agents[0]) as nodes:
            found = prepared(them, nodes)
            two, three = (nodes.ask(measure(them, found[n])) for n in (2, 3))
    assert isinstance(two, Done)
    assert isinstance(three, Done)
    assert (two.record.flags, three.record.flags) == ([], ["NODES-DIFFER"])


def test_nodes_whose_folders_hold_different_pictures_are_told_so(suite: Path) -> None:
    with several(suite) as (them, nodes):
        for rank, held in enumerate("ab"):
            answer = Prepared("made", {}, {"model": "same", "images": held})
            them.agents[rank].before = lambda _, answer=answer: answer
        reply = nodes.ask(BuildReference(them.suite.workload, them.suite.policy))
        assert isinstance(reply, Failure)
        assert reply.kind == ChangedError.kind
        assert reply.reason.startswith("images: node 1 and node 0 hold different contents")


def test_a_failure_names_its_node_and_ends_the_others_turn(suite: Path) -> None:
    def broken(request: Request) -> Reply | None:
        return Failure("crash", "replica 0 died") if isinstance(request, Step) else None

    with several(suite) as (them, nodes):
        found = prepared(them, nodes)
        them.agents[1].before = broken
        reply = nodes.ask(measure(them, found[2]))
        assert reply == Failure("crash", "node 1 (host1): replica 0 died")
        until(lambda: isinstance(them.agents[0].asked[-1], End))
        them.agents[1].before = lambda _: None
        assert isinstance(nodes.ask(measure(them, found[2])), Done)


def test_what_a_node_cannot_prepare_costs_the_cells_that_need_it(suite: Path) -> None:
    def lacking(request: Request) -> Reply | None:
        return Failure("unavailable", "no", "buy") if isinstance(request, Prepare) else None

    with several(suite) as (them, nodes):
        them.agents[1].before = lacking
        found = prepared(them, nodes)
        assert isinstance(nodes.ask(measure(them, found[1])), Done)
        assert nodes.ask(measure(them, found[2])) == Failure(
            "unavailable", "node 1 (host1): no", "buy"
        )


def test_a_silent_node_is_lost_at_once_though_the_others_still_measure(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what needs only living nodes goes on, when they are free."""
    going_on = threading.Event()

    def slow(request: Request) -> Reply | None:
        if isinstance(request, Step):
            going_on.wait(10)
        return None

    with several(suite, 3) as (them, nodes):
        found = prepared(them, nodes)
        them.agents[0].before = slow
        pulse = them.stations[2]._pulse
        assert pulse is not None
        monkeypatch.setattr(pulse._channels[0], "send", lambda _: None)  # as if it hung
        begin = time.monotonic()
        reply = nodes.ask(measure(them, found[3]))
        assert time.monotonic() - begin < 5
        assert reply == Failure("node-lost", "node 2 (host2): silent for 1 s")
        assert nodes.ask(measure(them, found[3])) == reply
        going_on.set()
        assert isinstance(nodes.ask(measure(them, found[2])), Done)
        assert isinstance(nodes.ask(measure(them, found[1])), Done)
        until(lambda: 2 in them.codes)
    assert "lost node 2 (host2): silent for 1 s" in them.told
    assert "rank 0 gave this node up: silent for 1 s" in them.told
    assert them.codes == {1: 0, 2: 1}


def test_a_node_that_leaves_says_why(suite: Path) -> None:
    with several(suite) as (them, nodes):
        found = prepared(them, nodes)
        them.stations[1].close("interrupted")
        until(lambda: them.cluster.lost(1))
        assert nodes.ask(measure(them, found[2])) == Failure(
            "node-lost", "node 1 (host1): interrupted"
        )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(130), "interrupted"),
        (InputError("no room"), "no room"),
    ],
)
def test_whatever_ends_rank_0_ends_the_others_with_exit_code_1(
    suite: Path, error: BaseException, words: str
) -> None:
    them = Several(suite, 2)
    them.start(1)
    with pytest.raises(type(error)), them.cluster:  # noqa: PT012
        them.gather()
        raise error
    assert them.codes == {1: 1}
    assert f"rank 0 stopped: {words}" in them.told


def test_junk_and_replays_in_every_queue_are_refused_and_told(suite: Path) -> None:
    with several(suite) as (them, nodes):
        found = prepared(them, nodes)
        busy = threading.Event()

        def stranger() -> None:
            while not busy.wait(0.02):
                for queue, value in list(them.store.seen)[-30:]:
                    for junk in (value, b"\x80\x04.", value[:-1] + b"?", b"x" * (2 << 20)):
                        them.store.queues[queue].append(junk)

        thread = threading.Thread(target=stranger)
        thread.start()
        try:
            replies = []
            for _ in range(8):
                replies.append(nodes.ask(measure(them, found[2])))
                time.sleep(0.05)
        finally:
            busy.set()
            thread.join()
            for queue in them.store.queues.values():
                queue.clear()
    assert [type(reply) for reply in replies] == [Done] * 8, replies
    said = "\n".join(them.told)
    for words in ("its HMAC does not match", "a replay: number", "too large: 2,097,152 bytes"):
        assert f"node 0's name: {words}" in said
        assert f"node 1's name: {words}" in said
    assert KEY.decode() not in said
    assert len(them.told) < 8 * cluster_channel.MAX_TOLD


# ------------------------------------------------------------------------------ joining


def sent(
    them: Several, rank: int, message: cluster_channel.Message, run: str = "", key: bytes = KEY
) -> None:
    head = cluster_channel.Head(run, rank, 0, 0)
    them.store.push("hello", cluster_channel.seal(key, head, msgspec.json.encode(message)))


def answered(them: Several, rank: int) -> cluster_channel.Message | None:
    pop = them.store.pop
    channel = cluster_channel.Channel(
        KEY, "", rank, 0, lambda _: None, lambda s: pop(f"to/{NONCE}", s), them.told.append
    )
    return channel.receive(0)


NONCE = "0" * 32
HELLO = cluster_channel.Hello(NONCE)


def gathered(them: Several, limit_s: float = 0.3) -> str:
    """Why it failed."""
    them.cluster._join_limit_s = limit_s
    with pytest.raises(InputError) as error, them.cluster:
        them.gather()
    return str(error.value)


def test_absent_nodes_are_named_and_what_was_refused_is_counted(suite: Path) -> None:
    them = Several(suite, 4)
    them.start(2)
    until(lambda: them.store.holds("hello"))
    sent(them, 1, HELLO, key=b"another secret")
    words = gathered(them)
    assert "of 4 nodes rank 1, 3 did not join within 0.3 s" in words
    assert "1 message(s) were refused" in words
    assert "refused a message to node 0: its HMAC does not match: another secret" in them.told[0]


def test_another_version_is_refused_on_both_sides(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    them = Several(suite, 2)
    monkeypatch.setattr(cluster_node, "__version__", "0.0.1")
    them.start(1)
    words = f"gpubench 0.0.1 (protocol {PROTOCOL}), on rank 0 {coordinator.__version__}"
    assert f"node 1: {words}" in gathered(them, 5)
    until(lambda: f"rank 0 refuses this node: {words}" in "".join(them.told))


def test_what_a_future_version_says_of_itself_is_not_read(suite: Path) -> None:
    them = Several(suite, 2)
    sent(them, 1, HELLO)
    body = b'{"type":"Join","nonce":"%s","version":"9.0","protocol":99,"new":[]}' % NONCE.encode()
    head = cluster_channel.Head(f"{them.cluster._run}/join", 1, 0, 0)
    them.store.push("hello", cluster_channel.seal(KEY, head, body))
    them.store.holds = lambda _: False  # type: ignore[method-assign]  # it has been read
    assert "gpubench 9.0 (protocol 99)" in gathered(them, 5)


def test_a_rank_that_is_taken_or_not_there_is_refused_and_the_run_goes_on(suite: Path) -> None:
    them = Several(suite, 2)
    with them.cluster:
        sent(them, 2, HELLO)
        them.start(1)
        them.gather()
        assert isinstance(answered(them, 2), cluster_channel.Refusal)
        sent(them, 1, cluster_channel.Hello("1" * 32))
        with pytest.raises(cluster_channel.Refused, match="is taken"):
            them.cluster._knock(them.store.pop("hello", 0) or b"", "")
    assert "--node-rank 2 is taken, or not one of this run" in them.told[0]


def test_greetings_of_another_run_are_replays(suite: Path) -> None:
    first = Several(suite, 2)
    with first.cluster:
        first.start(1)
        first.gather()
    hello, join = [value for queue, value in first.store.seen if queue == "hello"]
    again = Several(suite, 2)
    for value in (hello, hello, join):
        again.store.push("hello", value)
    assert "rank 1 did not join" in gathered(again)
    assert [words.partition(": ")[2] for words in again.told] == [
        "a replay of a greeting in node 1's name",
        "a replay of a message with which node 1 joins",
    ]


def test_the_pool_is_that_of_all_nodes(suite: Path) -> None:
    with several(suite) as (them, _):
        plan = them.plan()
    assert [node.name for node in plan.nodes] == ["node 0 (host0)", "node 1 (host1)"]
    assert [shares(cell, plan.nodes) for cell in plan.cells] == [{0: 1}, {0: 1, 1: 1}]
    assert [skip.cell.replicas for skip in plan.skips] == [3]


def test_without_several_machines_nobody_imports_torch() -> None:
    script = (
        "import sys; from gpubench.run import driver, setup; "
        "from gpubench.run.cluster import coordinator, node, rendezvous; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
