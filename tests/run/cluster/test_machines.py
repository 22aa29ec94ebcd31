"""Several machines for real: network namespaces as hosts, Ray, real agents and workers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

import gpubench
from gpubench.records.reader import begun, read
from gpubench.records.record import RecordFile
from tests.run.cluster.machines import (
    PORT,
    TOKEN,
    Cluster,
    Machines,
    finished,
    machines,
    ours,
    outcome,
    running,
    until,
)  # fmt: skip

WriteSuite = Callable[..., Path]
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

LONG = {"repeats": 12, "max_repeats": 12, "duration_s": 0.2}
"""Long enough to break something in the middle of it."""


@pytest.fixture
def two() -> Iterator[Machines]:
    with machines(2) as hosts:
        yield hosts


@pytest.fixture
def words(tmp_path: Path, cache_dir: Path) -> list[Any]:
    return ["-o", tmp_path / "run", "--cache-dir", cache_dir]


@pytest.fixture
def suite(write_suite: WriteSuite) -> Path:
    """Cells of one and of two replicas: the second needs both hosts, of one core each."""
    return write_suite(batch_size="[1]", replicas="[1, 2]", policy=LONG)


def lost(file: RecordFile) -> str:
    """Why the cell over both machines failed; all others are fine."""
    assert finished(file, 1) == ["ok"] * LONG["repeats"]
    broken = [r for r in file.records if r.cell.replicas == 2 and r.status != "ok"]
    assert [(r.status, r.kind) for r in broken] == [("failed", "node-lost")]
    assert broken[0].reason.startswith("node 1 (")
    return broken[0].reason


def test_a_run_on_two_machines_one_is_lost_and_a_new_cluster_completes_it(
    two: Machines, suite: Path, tmp_path: Path, words: list[Any]
) -> None:
    cluster = Cluster(two)
    lead = two.run(suite, *words)
    until(lambda: running(tmp_path / "run", 2), lead)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    agents = [pid for pid, text in two.processes(1).items() if "gpubench.run" in text]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in agents} == {mine}, "as without Ray"
    cluster.kill(1)
    code, out, err = outcome(lead)
    assert code == 1, out + err
    before = read(tmp_path / "run")
    assert "The actor" in lost(before), "in Ray's own words"
    kept = {(r.cell.key, r.repeat): r for r in before.records if r.status == "ok"}
    assert not ours(two)

    cluster.kill(0)
    Cluster(two)
    code, out, err = outcome(two.run(suite, *words, "--resume"), 240)
    assert code == 0, out + err
    file = read(tmp_path / "run")
    assert len(file.records) == 2 * LONG["repeats"]
    assert {r.status for r in file.records} == {"ok"}
    after = {(r.cell.key, r.repeat): r for r in file.records}
    assert all(after[key] == record for key, record in kept.items())
    spread = [r for r in file.records if r.cell.replicas == 2]
    assert all([x.node for x in r.replicas] == [0, 1] for r in spread)
    assert all(0 < r.telemetry["barrier_ns"] < 1e9 for r in spread)
    assert [node["engine"].split()[0] for node in file.header.nodes] == ["Ray", "Ray"]
    assert TOKEN not in Path(file.path).read_text() + out + err
    assert not ours(two)


def test_a_cut_link_and_a_driver_that_is_killed_leave_nothing(
    two: Machines, suite: Path, tmp_path: Path, words: list[Any]
) -> None:
    Cluster(two)
    lead = two.run(suite, *words)
    until(lambda: running(tmp_path / "run", 2), lead)
    lead.kill()
    until(lambda: not ours(two), limit_s=60)

    lead = two.run(suite, *words, "--resume")
    done = len(read(tmp_path / "run").records)
    until(lambda: len(read(tmp_path / "run").records) > done + 1, lead)
    two.cut(1)
    begin = time.monotonic()
    code, out, err = outcome(lead)
    assert code == 1, out + err
    assert time.monotonic() - begin < 120
    assert lost(read(tmp_path / "run"))


def test_who_has_no_token_runs_nothing(
    two: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    suite = write_suite(batch_size="[1]", replicas="[2]")
    Cluster(two)
    code, out, err = outcome(two.run(suite, *words, RAY_AUTH_TOKEN="another-token" * 3))
    assert code == 2, out + err
    assert "Traceback" not in err
    assert f"--ray {two.address(0)}:{PORT}: " in err
    assert TOKEN not in out + err


def test_who_joins_late_has_other_files_or_another_version(
    write_suite: WriteSuite, tiny_onnx: Path, tmp_path: Path, words: list[Any]
) -> None:
    with machines(3) as hosts:
        late_ones(
            hosts, write_suite(batch_size="[1]", replicas="[1, 2]"), tiny_onnx, tmp_path, words
        )


def late_ones(
    hosts: Machines, suite: Path, tiny_onnx: Path, tmp_path: Path, words: list[Any]
) -> None:
    own = tmp_path / "models" / "own.onnx"
    own.parent.mkdir()
    shutil.copy(tiny_onnx, own)
    suite.write_text(suite.read_text().replace(str(tiny_onnx), str(own)))
    cluster = Cluster(hosts, 1)
    lead = hosts.run(suite, *words)
    until(lambda: begun(tmp_path / "run"), lead)
    hosts.before[1] = f"mount -t tmpfs none {own.parent}"
    cluster.start(1)
    code, out, err = outcome(lead)
    assert code == 0, out + err
    assert finished(read(tmp_path / "run"), 1) == ["ok", "ok"]
    assert finished(read(tmp_path / "run"), 2) == ["unavailable"], "it began without the second"

    words[1] = tmp_path / "with"
    code, out, err = outcome(hosts.run(suite, *words))
    assert code == 2, out + err
    assert "the files that it names are others there" in err
    code, out, err = outcome(hosts.run(suite, "--ship", *words))
    assert code == 0, out + err
    both = [r for r in read(tmp_path / "with").records if r.cell.replicas == 2]
    assert [(r.status, [x.node for x in r.replicas]) for r in both] == [("ok", [0, 1])] * 2

    altered = tmp_path / "altered.py"
    source = Path(gpubench.__file__ or "")
    altered.write_text(source.read_text().replace(gpubench.__version__, "9.9"))
    hosts.before[2] = f"mount --bind {altered} {source}"
    cluster.start(2)
    code, out, err = outcome(hosts.run(suite, *words, "--resume"))
    assert code == 2, out + err
    assert "has gpubench 9.9 (" in err


def test_a_fleet_of_two_kinds_is_compared(
    two: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    suite = write_suite(batch_size="[1, 4]")
    known = Path("/proc/cpuinfo").read_text()
    (tmp_path / "cpuinfo").write_text(re.sub("(?m)^model name.*", "model name : Abacus 1", known))
    two.before[1] = f"mount --bind {tmp_path}/cpuinfo /proc/cpuinfo"
    Cluster(two)
    more = (f"--ray={two.address(0)}:{PORT}", "--price", "Abacus=0.5", "--max-latency", "p50=10s")
    code, out, err = outcome(two.gpubench(0, "fleet", suite, *more, *words))
    assert code == 0, out + err
    assert "Abacus 1 (1 core)" in out
    assert "2 kinds of machine" in out
    assert re.search(r"Devices\s.*cost per million", out, re.DOTALL)
    assert len(list((tmp_path / "run").glob("*/records.jsonl"))) == 2


def test_a_cluster_that_asks_for_no_token_is_refused_unless_that_is_accepted(
    two: Machines, write_suite: WriteSuite, tmp_path: Path, words: list[Any]
) -> None:
    suite = write_suite(batch_size="[1]", replicas="[2]")
    two.auth = {"RAY_AUTH_MODE": "disabled"}
    Cluster(two)
    code, out, err = outcome(two.run(suite, *words))
    assert code == 2, out + err
    assert "RAY_AUTH_MODE=token" in err
    code, out, err = outcome(two.run(suite, *words, "--insecure-cluster"))
    assert code == 0, out + err
    nodes = read(tmp_path / "run").header.nodes
    assert [node["engine"].partition(", ")[2] for node in nodes] == ["without a token"] * 2


def test_a_cluster_of_this_machine_alone_measures_as_without_it(
    write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]")
    words = [suite, "-o", tmp_path / "run", "--cache-dir", cache_dir]
    done = subprocess.run(
        [sys.executable, "-c", "from gpubench.cli.main import main; main()", "run",
         *map(str, words), "--ray"],
        env=os.environ | {"RAY_TMPDIR": mkdtemp(dir="/tmp"), "RAY_ADDRESS": "local"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    file = read(tmp_path / "run")
    assert [(r.status, r.reason) for r in file.records] == [("ok", "")] * 2
    assert file.header.environment["engine"].startswith("Ray ")


def test_nothing_of_the_hosts_is_left() -> None:
    """The tests before this one have removed their namespaces."""
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    assert f"gpubench{os.getpid()}" not in left.stdout
