"""Faults of a cluster for real, each many times over: python -m tests.benchmarks.cluster_faults

Two network namespaces as machines, Ray, real agents and workers (root and iproute2). Every time a
run breaks in the middle of a cell over both machines, `--resume` goes on with it, is broken in
turn, and so on; the last completes it. After each: no finished record is lost, no process of ours
is left, and nothing of ours in a temporary directory. A line of JSON for each goes to standard
output, the counts come last.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import traceback
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from gpubench.records.reader import begun, read
from tests.benchmarks.trust.machine import network
from tests.run.cluster.machines import (
    PORT,
    Cluster,
    Machines,
    finished,
    machines,
    ours,
    outcome,
    until,
)

REPEATS = 12
SUITE = f"""
[workload]
model = "{{model}}"
images = "synthetic"
[axes]
backend = "null"
device = "cpu"
scenario = "latency"
cores = {len(os.sched_getaffinity(0))}
replicas = [1, 2]
[policy]
repeats = {REPEATS}
max_repeats = {REPEATS}
warmup_s = 0.05
duration_s = 0.2
parity_images = 2
timeout_s = 15
"""


SOON = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
"""How soon a machine, and the head, are given up: so that repeats are cheap."""


def actor(hosts: Machines) -> None:
    hosts.signal(1, signal.SIGKILL, "NodeActor")


def raylet(hosts: Machines) -> None:
    hosts.signal(1, signal.SIGKILL, "/raylet/raylet ")


def link(hosts: Machines) -> None:
    hosts.cut(1)


def hung_node(hosts: Machines) -> None:
    hosts.signal(1, signal.SIGSTOP)


def hung_actor(hosts: Machines) -> None:
    hosts.signal(1, signal.SIGSTOP, "NodeActor")


def head(hosts: Machines) -> None:
    """All but agents and workers: without power these would leave what the next start sweeps."""
    for pid, command in hosts.processes(0).items():
        if "gpubench.run" not in command:
            os.kill(pid, signal.SIGKILL)


def driver(hosts: Machines) -> None:
    hosts.signal(0, signal.SIGKILL, "gpubench.cli.main")


FAULTS: dict[str, Callable[[Machines], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (actor, raylet, link, hung_node, hung_actor, head, driver)
}


class Rounds:
    """One fault after the other in one cluster, of which only what was killed starts anew.

    The run that one breaks is the `--resume` of the run that the one before broke.
    """

    def __init__(self, hosts: Machines, place: Path) -> None:
        self._hosts, self._place = hosts, place
        hosts.pinned = False  # others may hold a core: each replica takes all there are
        hosts.grace_s = 5
        self._temp, self._outs = place / "tmp", 0
        self._temp.mkdir()
        self._environ = {"TMPDIR": str(self._temp)} | SOON
        network(place / "small.onnx")
        (place / "suite.toml").write_text(SUITE.format(model=place / "small.onnx"))
        self.anew()

    def anew(self) -> None:
        """Another cluster, another run."""
        for rank in (0, 1):
            self._hosts.signal(rank, signal.SIGKILL)
        for left in self._temp.glob("gpubench-*"):
            rmtree(left)
        self._cluster = Cluster(self._hosts, **self._environ)
        self._out = self._place / f"run-{self._outs}"
        self._outs += 1
        self._kept: set[str] = set()

    def _start(self, rank: int) -> subprocess.Popen[str]:
        where = f"--ray={self._hosts.address(0)}:{PORT}"
        more = ["-o", self._out, "--cache-dir", self._place / "cache"]
        more += ["--resume"] * begun(self._out)
        suite = self._place / "suite.toml"
        return self._hosts.gpubench(rank, "run", suite, where, *more, **self._environ)

    def once(self, fault: str) -> dict[str, Any]:
        """What became of one; raises AssertionError where anything was lost or left."""
        if self._ok(2) > REPEATS - 4:
            self.complete()
        before, start = self._ok(2), time.monotonic()
        lead = self._start(1 if fault == "head" else 0)
        until(lambda: self._ok(2) > before, lead, limit_s=300)
        kept, begin = self._lines(), time.monotonic()
        FAULTS[fault](self._hosts)
        code, said, err = outcome(lead, 300)
        seconds = time.monotonic() - begin
        broken = []
        if fault != "driver":
            assert "Traceback" not in err, err
        if fault not in ("driver", "head"):
            assert code == 1, said + err
            broken = [r for r in read(self._out).records if r.status != "ok"]
            assert [(r.kind, r.cell.replicas) for r in broken] == [("node-lost", 2)]
            assert self._ok(1) == REPEATS, "the others go on"
        self._whole(kept)
        if fault == "link":
            self._hosts.mend(1)
        elif fault.startswith("hung"):
            self._hosts.signal(1, signal.SIGCONT)
        self._nothing_left()
        if fault == "head":
            for rank in (0, 1):
                self._hosts.signal(rank, signal.SIGKILL)
            self._cluster = Cluster(self._hosts, **self._environ)
        elif fault in ("raylet", "link", "hung-node"):
            self._hosts.signal(1, signal.SIGKILL)
            self._cluster.start(1)
        return {"fault": fault, "code": code, "noticed_s": round(seconds, 1), "kept": len(kept),
                "all_s": round(time.monotonic() - start, 1),
                "reason": broken[0].reason if broken else err.strip()[-300:]}  # fmt: skip

    def complete(self) -> None:
        """Let the run end, and begin another."""
        code, said, err = outcome(self._start(0), 300)
        assert code == 0, said + err
        file = read(self._out)
        assert len(file.records) == 2 * REPEATS
        assert {r.status for r in file.records} == {"ok"}
        self._whole([])
        self._nothing_left()
        self._out = self._place / f"run-{self._outs}"
        self._outs += 1
        self._kept = set()

    def _ok(self, replicas: int) -> int:
        """How many repeats of a cell are finished."""
        return begun(self._out) and finished(read(self._out), replicas).count("ok")

    def _lines(self) -> list[str]:
        """Whole lines of finished records, the header left out."""
        lines = (self._out / "records.jsonl").read_text().split("\n")[1:-1]
        return [line for line in lines if '"status":"ok"' in line]

    def _whole(self, kept: Sequence[str]) -> None:
        self._kept |= {*kept}
        assert self._kept <= {*self._lines()}, "a finished record is as it was"

    def _nothing_left(self) -> None:
        until(lambda: not ours(self._hosts), limit_s=60)
        until(lambda: not list(self._temp.glob("gpubench-*")), limit_s=30)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "faults", nargs="*", default=[*FAULTS], metavar="FAULT", help=str([*FAULTS])
    )
    parser.add_argument("--times", type=int, default=10)
    asked = parser.parse_args()
    good, bad = Counter[str](), Counter[str]()
    place = Path(mkdtemp(dir="/tmp", prefix="gf-"))
    try:
        with machines(2) as hosts:
            rounds = Rounds(hosts, place)
            for fault in (each for _ in range(asked.times) for each in asked.faults):
                try:
                    print(json.dumps(rounds.once(fault)), flush=True)
                    good[fault] += 1
                except Exception as error:  # noqa: BLE001  # counted
                    where = traceback.extract_tb(error.__traceback__)[1].line
                    left = [each.name for each in (place / "tmp").glob("gpubench-*")]
                    words = {"fault": fault, "failed": repr(error)[:3000], "at": where,
                             "left": [x[:80] for x in ours(hosts)] + left}  # fmt: skip
                    print(json.dumps(words), flush=True)
                    bad[fault] += 1
                    hosts.down()
                    hosts.up()
                    rounds.anew()
            rounds.complete()
    finally:
        rmtree(place, ignore_errors=True)
    print(json.dumps({"held": good, "failed": bad, "cores": len(os.sched_getaffinity(0))}))


if __name__ == "__main__":
    main()
