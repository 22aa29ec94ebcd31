"""Faults of a cluster for real, each many times over: python -m tests.benchmarks.cluster_faults

Two network namespaces as machines, Ray, real agents and workers (root and iproute2). Every time a
run breaks in the middle of a cell over both machines, and `--resume` completes it. After each: no
finished record is lost, no process of ours is left, and nothing of ours in a temporary directory.
A line of JSON for each goes to standard output, the counts come last.
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
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from gpubench.records.reader import read
from tests.benchmarks.trust.machine import network
from tests.run.cluster.machines import (
    PORT,
    Cluster,
    Machines,
    machines,
    ours,
    outcome,
    running,
    until,
)

REPEATS = 6
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
    hosts.signal(0, signal.SIGKILL)


def driver(hosts: Machines) -> None:
    hosts.signal(0, signal.SIGKILL, "gpubench.cli.main")


FAULTS: dict[str, Callable[[Machines], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (actor, raylet, link, hung_node, hung_actor, head, driver)
}


class Rounds:
    """One fault after the other on two machines."""

    def __init__(self, hosts: Machines, place: Path) -> None:
        self._hosts, self._place = hosts, place
        hosts.pinned = False  # others may hold a core: each replica takes all there are
        self._environ = {"TMPDIR": str(place / "tmp")}
        (place / "tmp").mkdir()
        network(place / "small.onnx")
        (place / "suite.toml").write_text(SUITE.format(model=place / "small.onnx"))
        self._cluster = self._new()

    def _new(self) -> Cluster:
        for rank in (0, 1):
            self._hosts.signal(rank, signal.SIGKILL)
        return Cluster(self._hosts, **self._environ)

    def _start(self, rank: int, out: Path, *words: str) -> subprocess.Popen[str]:
        where = f"--ray={self._hosts.address(0)}:{PORT}"
        more = ("-o", out, "--cache-dir", self._place / "cache", *words)
        suite = self._place / "suite.toml"
        return self._hosts.gpubench(rank, "run", suite, where, *more, **self._environ)

    def once(self, fault: str) -> dict[str, Any]:
        """What became of one; raises AssertionError where anything was lost or left."""
        out = self._place / "run"
        rmtree(out, ignore_errors=True)
        where = 1 if fault == "head" else 0
        lead = self._start(where, out)
        until(lambda: running(out, 2), lead, limit_s=400)
        kept = _lines(out)
        begin = time.monotonic()
        FAULTS[fault](self._hosts)
        code, said, err = outcome(lead, 400)
        seconds = time.monotonic() - begin
        if fault != "driver":
            assert "Traceback" not in err, err
        broken = [r for r in read(out).records if r.status != "ok"]
        if fault not in ("driver", "head"):
            assert code == 1, said + err
            assert [(r.kind, r.cell.replicas) for r in broken] == [("node-lost", 2)]
        self._mend(fault)
        until(lambda: not ours(self._hosts), limit_s=120)
        self._restored(fault)
        again, said, err = outcome(self._start(where, out, "--resume"), 300)
        assert again == 0, said + err
        file = read(out)
        assert len(file.records) == 2 * REPEATS
        assert {r.status for r in file.records} == {"ok"}
        assert set(kept) <= set(_lines(out)), "a finished record is as it was"
        until(lambda: not ours(self._hosts), limit_s=60)
        until(lambda: not list((self._place / "tmp").glob("gpubench-*")), limit_s=30)
        reason = broken[0].reason if broken else err.strip()[-300:]
        return {"fault": fault, "code": code, "noticed_s": round(seconds, 1), "kept": len(kept),
                "reason": reason}  # fmt: skip

    def _mend(self, fault: str) -> None:
        if fault == "link":
            self._hosts.mend(1)
        elif fault.startswith("hung"):
            self._hosts.signal(1, signal.SIGCONT)

    def _restored(self, fault: str) -> None:
        """The cluster that the run goes on with: the same, its second machine anew, or another."""
        if fault == "head":
            self._cluster = self._new()
        elif fault not in ("actor", "driver", "hung-actor"):
            self._hosts.signal(1, signal.SIGKILL)
            self._cluster.start(1)


def _lines(out: Path) -> list[str]:
    """Whole lines of the records, the header left out."""
    whole = (out / "records.jsonl").read_text().split("\n")[:-1]
    return [line for line in whole[1:] if '"status":"ok"' in line]


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
                    words = {"fault": fault, "failed": repr(error)[:3000], "at": where,
                             "left": ours(hosts)}  # fmt: skip
                    print(json.dumps(words), flush=True)
                    bad[fault] += 1
                    hosts.mend(1)
                    hosts.down()
                    hosts.up()
                    (place / "tmp").rename(place / f"tmp-{sum(bad.values())}")
                    (place / "tmp").mkdir()
                    rounds._cluster = rounds._new()
    finally:
        rmtree(place, ignore_errors=True)
    print(json.dumps({"held": good, "failed": bad, "cores": len(os.sched_getaffinity(0))}))


if __name__ == "__main__":
    main()
