"""Several machines for real: network namespaces as hosts, real stores, agents and workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubench.records.reader import read
from gpubench.records.record import RecordFile
from tests.run.cluster.machines import PORT, SECRET, Machines, machines, outcome, until

WriteSuite = Callable[..., Path]
pytestmark = pytest.mark.slow

TIMEOUT_S = 5.0
LONG = {"repeats": 12, "max_repeats": 12, "duration_s": 0.2}
"""Long enough to break something in the middle of it."""


@pytest.fixture
def two() -> Iterator[Machines]:
    with machines(2) as hosts:
        yield hosts


@pytest.fixture
def four() -> Iterator[Machines]:
    with machines(4) as hosts:
        yield hosts


@pytest.fixture
def words(tmp_path: Path, cache_dir: Path) -> list[Any]:
    return ["-o", tmp_path / "run", "--cache-dir", cache_dir, "--node-timeout", f"{TIMEOUT_S}s"]


@pytest.fixture
def suite(write_suite: WriteSuite) -> Path:
    """Cells of one and of two replicas: the second needs both hosts, of one core each."""
    return write_suite(batch_size="[1]", replicas="[1, 2]", policy=LONG)


def finished(file: RecordFile, replicas: int) -> list[str]:
    return [r.status for r in file.records if r.cell.replicas == replicas]


def running(out: Path, replicas: int) -> bool:
    """Whether a cell of so many replicas has been measured."""
    return (out / "records.jsonl").exists() and "ok" in finished(read(out), replicas)


def test_a_cell_spans_two_machines_and_nothing_else_is_listened_on(
    two: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    suite = write_suite(
        batch_size="[1]",
        replicas="[1, 2, 3]",
        scenario='["throughput"]',
        policy={"duration_s": 0.3},
    )
    nodes = [two.run(suite, rank, *words) for rank in (1, 0)]
    until(lambda: two.listening(0))
    assert two.listening(0) == [f"{two.address(0)}:{PORT}"]
    assert two.listening(1) == []
    for node in nodes:
        code, out, err = outcome(node)
        assert (code, err) == (0, ""), out + err
    file = read(tmp_path / "run")
    assert [len(finished(file, n)) for n in (1, 2, 3)] == [2, 2, 1]
    for record in file.records:
        nodes_used = [samples.node for samples in record.replicas]
        assert nodes_used == list(range(record.cell.replicas))[: len(nodes_used)]
        if record.cell.replicas == 3:
            assert record.status == "unavailable"
            assert "node 0: 1, node 1: 1" in record.reason
        elif record.cell.replicas == 2:
            assert record.status == "ok", record.reason
            assert [samples.replica for samples in record.replicas] == [0, 1]
            assert 0 < record.telemetry["barrier_ns"] < 1e9
            assert set(record.telemetry["nodes"]) == {"0", "1"}
            assert len(record.replica_rates()) == 2
    assert len(file.header.nodes) == 2
    assert file.header.node_differences == []
    assert two.pids(0) == two.pids(1) == []


def test_four_machines(
    four: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    suite = write_suite(batch_size="[1]", replicas="[1, 2, 4]")
    told = [outcome(node) for node in [four.run(suite, rank, *words) for rank in range(4)]]
    assert [code for code, _, _ in told] == [0] * 4, told
    file = read(tmp_path / "run")
    assert [finished(file, n) for n in (1, 2, 4)] == [["ok"] * 2] * 3
    assert [s.node for r in file.records if r.cell.replicas == 4 for s in r.replicas] == [
        *range(4), *range(4),
    ]  # fmt: skip
    assert "node 3 of 4: rank 0 has finished" in told[3][1]


def lost(file: RecordFile) -> str:
    """Why the cell over both machines failed; all others are fine."""
    assert finished(file, 1) == ["ok"] * LONG["repeats"]
    broken = [r for r in file.records if r.cell.replicas == 2 and r.status != "ok"]
    assert [(r.status, r.kind) for r in broken] == [("failed", "node-lost")]
    assert broken[0].reason.startswith("node 1 (")
    return broken[0].reason


def resumed(hosts: Machines, suite: Path, words: list[Any], before: RecordFile) -> None:
    """All nodes started again complete what failed; nothing finished is measured again."""
    kept = {(r.cell.key, r.repeat): r for r in before.records if r.status == "ok"}
    nodes = [hosts.run(suite, rank, *words, "--resume") for rank in (0, 1)]
    told = [outcome(node, 240) for node in nodes]
    assert [code for code, _, _ in told] == [0, 0], told
    file = read(before.path)
    assert len(file.records) == 2 * LONG["repeats"]
    assert {r.status for r in file.records} == {"ok"}
    after = {(r.cell.key, r.repeat): r for r in file.records}
    assert all(after[key] == record for key, record in kept.items())


def test_a_killed_node_costs_its_cells(
    two: Machines, suite: Path, tmp_path: Path, words: list[Any]
) -> None:
    lead, other = (two.run(suite, rank, *words) for rank in (0, 1))
    until(lambda: running(tmp_path / "run", 2))
    other.kill()
    begin = time.monotonic()
    until(lambda: "failed" in finished(read(tmp_path / "run"), 2))
    assert time.monotonic() - begin < TIMEOUT_S + 3
    until(lambda: two.pids(1) == [], 5)
    code, out, err = outcome(lead)
    assert code == 1, out + err
    assert "lost node 1" in err
    assert f"silent for {TIMEOUT_S:g} s" in lost(read(tmp_path / "run"))


def test_a_hung_node_is_given_up_and_gives_up_when_it_wakes(
    two: Machines, suite: Path, tmp_path: Path, words: list[Any]
) -> None:
    lead, other = (two.run(suite, rank, *words) for rank in (0, 1))
    until(lambda: running(tmp_path / "run", 2))
    other.send_signal(signal.SIGSTOP)
    code, out, err = outcome(lead)
    assert code == 1, out + err
    assert f"silent for {TIMEOUT_S:g} s" in lost(read(tmp_path / "run"))
    other.send_signal(signal.SIGCONT)
    code, out, err = outcome(other, 10)
    assert code == 1, out + err
    assert two.pids(1) == []


def test_a_cut_link_ends_both_sides_waiting_and_resume_completes(
    two: Machines, suite: Path, tmp_path: Path, words: list[Any]
) -> None:
    lead, other = (two.run(suite, rank, *words) for rank in (0, 1))
    until(lambda: running(tmp_path / "run", 2))
    two.cut(1)
    begin = time.monotonic()
    code, out, err = outcome(other)
    assert time.monotonic() - begin < TIMEOUT_S + 3
    assert code == 1, out + err
    assert f"silent for {TIMEOUT_S:g} s" in err
    assert two.pids(1) == []
    assert outcome(lead)[0] == 1
    lost(read(tmp_path / "run"))
    two.mend(1)
    resumed(two, suite, words, read(tmp_path / "run"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_rank_0_ends_the_others(
    two: Machines, suite: Path, tmp_path: Path, words: list[Any], how: signal.Signals
) -> None:
    lead, other = (two.run(suite, rank, *words) for rank in (0, 1))
    until(lambda: running(tmp_path / "run", 2))
    lead.send_signal(how)
    code, out, err = outcome(other, TIMEOUT_S + 5)
    assert code == 1, out + err
    code, out, _ = outcome(lead, 10)
    assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
    until(lambda: two.pids(0) == two.pids(1) == [], 5)
    if how == signal.SIGINT:
        assert "rank 0 stopped: interrupted" in err
        assert "--resume" in out


def test_an_interrupted_node_is_lost_at_once(
    two: Machines, suite: Path, tmp_path: Path, words: list[Any]
) -> None:
    lead, other = (two.run(suite, rank, *words) for rank in (0, 1))
    until(lambda: running(tmp_path / "run", 2))
    other.send_signal(signal.SIGINT)
    assert outcome(other, 10)[0] == 130
    assert outcome(lead)[0] == 1
    assert lost(read(tmp_path / "run")).endswith(": interrupted")


STRANGER = """
import sys, time
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("{host}", {port}, is_master=False, wait_for_workers=False,
                 timeout=timedelta(seconds=60))
print("connected", flush=True)
while True:
    store.queue_push("gpubench/1/hello", b"\\x80\\x04junk" * 3)
    store.queue_push("gpubench/1/hello", b"x" * (2 << 20))
    time.sleep(0.2)
"""


def test_strangers_are_refused_and_logged_and_the_run_goes_on(
    two: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    """A node with a wrong secret, and somebody who writes into the queue that nodes knock at."""
    suite = write_suite(batch_size="[1]", replicas="[2]")
    lead = two.run(suite, 0, *words)
    until(lambda: two.listening(0))
    wrong = two.run(suite, 1, *words, "--join-timeout", "2s", GPUBENCH_SECRET="not the secret" * 3)
    script = STRANGER.format(host=two.address(0), port=PORT)
    stranger = two.start(1, sys.executable, "-W", "ignore", "-c", script)
    assert stranger.stdout is not None
    assert stranger.stdout.readline() == "connected\n"
    code, out, err = outcome(wrong)
    assert code == 2, out + err
    assert "same secret" in err
    honest = two.run(suite, 1, *words)
    for node in (lead, honest):
        code, out, err = outcome(node)
        assert code == 0, out + err
        assert "Traceback" not in err
        assert "secret of these" not in out + err
        if node is lead:
            assert "refused a message to node 0: its HMAC does not match: another secret" in err
            assert "refused a message to node 0: too large: 2,097,152 bytes" in err
    assert finished(read(tmp_path / "run"), 2) == ["ok", "ok"]


def test_a_node_that_never_joins_is_named(two: Machines, suite: Path, words: list[Any]) -> None:
    code, out, err = outcome(two.run(suite, 0, *words, "--join-timeout", "1s"))
    assert code == 2, out + err
    assert "of 2 nodes rank 1 did not join within 1 s" in err
    code, out, err = outcome(two.run(suite, 1, *words, "--join-timeout", "1s"))
    assert code == 2, out + err
    assert f"{two.address(0)}:{PORT}: nothing answers there for 1 s" in err


def test_nodes_must_be_started_alike(two: Machines, suite: Path, words: list[Any]) -> None:
    nodes = two.run(suite, 0, *words), two.run(suite, 1, *words, "--batch-size", "2")
    for node in nodes:
        code, out, err = outcome(node)
        assert code == 2, out + err
        assert "started with another suite, other options or another model file than rank 0" in err


def test_launched_by_torchrun(
    two: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    """Its agent keeps the store; both nodes on one host, over loopback."""
    suite = write_suite(batch_size="[1]", replicas="[1, 2]")
    with (tmp_path / "gpubench_node.py").open("w") as script:
        script.write(
            "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
            "from gpubench.cli.main import main\nmain()\n"
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
    command += ["--master-addr", "127.0.0.1", "--master-port", PORT]
    run = [tmp_path / "gpubench_node.py", "run", suite, *words]
    nodes = [
        two.start(0, *command, "--node-rank", rank, *run, GPUBENCH_SECRET=SECRET) for rank in (0, 1)
    ]
    told = [outcome(node, 150) for node in nodes]
    assert [code for code, _, _ in told] == [0, 0], told
    assert finished(read(tmp_path / "run"), 2) == ["ok", "ok"]
    assert "node 1 of 2: joined 127.0.0.1" in told[1][1]


def test_launched_by_srun(
    two: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    """As far as its variables go."""
    suite = write_suite(batch_size="[1]", replicas="[2]")
    step = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "10.77.0.[1-2]",
        "GPUBENCH_SECRET": SECRET,
    }  # fmt: skip
    nodes = [
        two.gpubench(rank, "run", suite, *words, **step, SLURM_PROCID=str(rank)) for rank in (0, 1)
    ]
    told = [outcome(node) for node in nodes]
    assert [code for code, _, _ in told] == [0, 0], told
    assert finished(read(tmp_path / "run"), 2) == ["ok", "ok"]


def test_nothing_of_the_hosts_is_left() -> None:
    """The tests before this one have removed their namespaces."""
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    assert f"gpubench{os.getpid()}" not in left.stdout
