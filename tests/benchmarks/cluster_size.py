"""What many machines cost the driver: python -m tests.benchmarks.cluster_size 10 100 1000

The real driver, plan, messages and records; machines that answer at once stand in for Ray and for
agents. A run of cells over all machines; a line of JSON for each number of machines.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec.structs import replace

from gpubench.analysis.summary import summarise
from gpubench.records.record import RecordFile
from gpubench.run import driver, inventory, setup
from gpubench.run.agent import messages
from gpubench.run.agent.messages import Done, Prepared, Waiting
from gpubench.run.cluster.ray_cluster import Cluster, Peer
from gpubench.run.watcher import Silent
from tests.benchmarks.trust.machine import network

REPEATS = 5
SUITE = """
[workload]
model = "{model}"
images = "synthetic"
[axes]
backend = "null"
device = "cpu"
scenario = "latency"
cores = 1
replicas = {replicas}
[policy]
repeats = {repeats}
max_repeats = {repeats}
warmup_s = 0.01
duration_s = 0.05
max_samples = 1000
parity_images = 2
"""


class Machine(Peer):
    """Answers as a machine of one core does; every word becomes JSON on the way, as with Ray."""

    def __init__(self, done: Done) -> None:
        super().__init__(None, "node")
        self._done, self._part, self._steps = done, 0, 0
        self.asked = 0

    def call(self, method: str, *words: Any, limit_s: float | None = None) -> bytes:
        assert method in ("offer", "stop")
        if method == "stop":
            return b""
        suite, rank = words[:2]
        node = inventory.Node(rank, f"host-{rank}", 1, 0)
        read = msgspec.json.decode(suite, type=setup.Suite)
        return msgspec.json.encode((inventory.digest(read), node))

    def ask(self, request: messages.Request, progress: Any = None) -> messages.Reply:
        self.asked += 1
        line = msgspec.json.encode(request)
        reply = self._answer(msgspec.json.decode(line, type=messages.Request), progress)
        found: messages.Reply = msgspec.json.decode(msgspec.json.encode(reply), type=messages.Reply)
        return found

    def _answer(self, request: messages.Request, progress: Any) -> messages.Reply:
        if isinstance(request, messages.Preload):
            return messages.Preloaded({}, 0.1)
        if isinstance(request, messages.BuildReference | messages.Prepare):
            return Prepared("/cache/entry", {"export": 1}, {"model": "0" * 64})
        if isinstance(request, messages.Begin):
            self._part, self._steps = request.measure.first, 0
            self._node = request.measure.node
            return Waiting("opened", [1])
        assert isinstance(request, messages.Step), request
        progress(messages.Progress("released"))
        self._steps += 1
        if self._steps == 1:
            return Waiting("warm", [1], 1e5, 1e5)
        (one,) = self._done.record.replicas
        mine = replace(one, replica=self._part, node=self._node)
        return Done(replace(self._done.record, replicas=[mine]))


def measured(place: Path, replicas: int, cluster: Cluster | None = None) -> RecordFile:
    model, suite = place / "small.onnx", place / "suite.toml"
    if not model.exists():
        network(model)
    suite.write_text(SUITE.format(model=model, replicas=replicas, repeats=REPEATS))
    job = setup.session(
        str(suite), {}, place / "cache", place / f"run-{replicas}-{cluster is None}",
        cluster=cluster,
    )  # fmt: skip
    return driver.run(job, Silent(), cluster)


def main(count: int) -> None:
    with TemporaryDirectory() as folder:
        place = Path(folder)
        real = measured(place, 1)
        assert real.records[0].status == "ok", real.records[0].reason
        cluster = Cluster("head:6379")
        peers = [Machine(Done(real.records[0])) for _ in range(count)]
        for peer in peers:
            peer.environment = real.header.environment | {"engine": "Ray"}
        cluster.peers = [*peers]
        before, threads, stop = _status("VmRSS"), [0], threading.Event()

        def look() -> None:
            while not stop.wait(0.05):
                threads.append(threading.active_count())

        watch = threading.Thread(target=look)
        watch.start()
        begin, cpu = time.monotonic(), time.process_time()
        file = measured(place, count, cluster)
        seconds, used = time.monotonic() - begin, time.process_time() - cpu
        stop.set()
        watch.join()
        assert [r.status for r in file.records] == ["ok"] * REPEATS
        assert all(len(r.replicas) == count for r in file.records)
        asked = sum(peer.asked for peer in peers)
        most = _status("VmHWM")
        begin = time.monotonic()
        summarise([file])
        print(json.dumps({
            "machines": count, "seconds": round(seconds, 2), "cpu_s": round(used, 2),
            "requests": asked, "requests_per_s": round(asked / seconds),
            "barrier_ms": [round(r.telemetry["barrier_ns"] / 1e6) for r in file.records],
            "task_s": [round(r.wall_s, 2) for r in file.records],
            "threads": max(threads), "rss_before_mb": before // 1024, "rss_most_mb": most // 1024,
            "record_mb": round(Path(file.path).stat().st_size / 1e6 / REPEATS, 2),
            "samples_per_replica": len(real.records[0].replicas[0].durations_ns),
            "summary_s": round(time.monotonic() - begin, 2),
        }), flush=True)  # fmt: skip


def _status(what: str) -> int:
    """Of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what)))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(int(sys.argv[1]))
    else:  # each in a process of its own, for the sake of the memory
        for number in sys.argv[1:]:
            subprocess.run([sys.executable, "-m", __spec__.name, number], check=True)
