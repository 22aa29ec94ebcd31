"""From a cluster that is up to the first record, and what a message costs: root and iproute2.

python -m tests.benchmarks.cluster_join 4: so many network namespaces as machines (0: leave it out),
on the cores that there are. Also `ray symmetric-run` as what launches it, with two of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from gpubench.records.reader import begun, read
from tests.benchmarks.cluster_faults import SUITE
from tests.benchmarks.trust.machine import network
from tests.run.cluster.machines import PORT, RAY, Cluster, machines, outcome, until

PING = """
import json, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init("{address}", log_to_driver=False)
here = ray.get_runtime_context().get_node_id()
away = next(n["NodeID"] for n in ray.nodes() if n["NodeID"] != here)

@ray.remote(num_cpus=1)
class Actor:
    def next(self):
        return b"1"

actor, times = Actor.options(scheduling_strategy=On(away, soft=False)).remote(), []
ray.get(actor.next.remote())
for _ in range(500):
    begin = time.perf_counter()
    ray.get(actor.next.remote())
    times.append(1e3 * (time.perf_counter() - begin))
times.sort()
print(json.dumps({{"ping_ms": {{"p50": times[250], "p99": times[495]}}}}))
"""


PATIENCE = {"RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "300"}
ALONE = (
    "unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
    'mkdir -p /tmp/ray; mount -t tmpfs none /tmp/ray; exec "$@"', "sh",
)  # fmt: skip
"""It starts nothing where it sees Ray's processes or files, and all hosts are on one machine."""


def join(place: Path, count: int) -> None:
    suite = place / "suite.toml"
    suite.write_text(SUITE.format(model=place / "small.onnx").replace("[1, 2]", f"[1, {count}]"))
    words = ("-o", place / "run", "--cache-dir", place / "cache")
    with machines(count) as hosts:
        hosts.pinned = False
        begin = time.monotonic()
        Cluster(hosts)
        up = time.monotonic()
        run = hosts.run(suite, *words)
        until(lambda: begun(place / "run"), run, 300)
        joined = time.monotonic()
        until(lambda: bool(read(place / "run").records), run, 300)
        first = time.monotonic()
        code, _, err = outcome(run, 300)
        assert code == 0, err
        print(json.dumps({
            "machines": count, "cluster_up_s": round(up - begin, 1),
            "plan_s": round(joined - up, 1), "first_record_s": round(first - up, 1),
            "run_s": round(time.monotonic() - up, 1),
            "statuses": [r.status for r in read(place / "run").records],
            "barrier_ms": [round(r.telemetry["barrier_ns"] / 1e6, 2) for r in
                           read(place / "run").records if r.cell.replicas > 1],
        }), flush=True)  # fmt: skip
        ping = PING.format(address=f"{hosts.address(0)}:{PORT}")
        print(outcome(hosts.start(0, sys.executable, "-c", ping, **hosts.auth))[1], flush=True)


def symmetric(place: Path) -> None:
    suite = place / "suite.toml"
    suite.write_text(SUITE.format(model=place / "small.onnx"))
    words = ("-o", place / "symmetric", "--cache-dir", place / "cache", "--ray")
    script = "from gpubench.cli.main import main; main()"
    path = {"PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"}  # it runs `ray stop` at the end
    environ = PATIENCE | path
    with machines(2) as hosts:
        begin = time.monotonic()
        both = [
            hosts.start(
                rank, *ALONE, RAY, "symmetric-run", "--address", f"{hosts.address(0)}:{PORT}",
                "--min-nodes", 2, "--num-cpus", 1,
                "--", sys.executable, "-c", script, "run", suite, *words, **hosts.auth | environ,
            )
            for rank in (0, 1)
        ]  # fmt: skip
        code, out, err = outcome(both[0], 300)
        found = read(place / "symmetric").records if begun(place / "symmetric") else []
        print(json.dumps({
            "symmetric-run": code, "s": round(time.monotonic() - begin, 1),
            "other": outcome(both[1], 60)[0], "statuses": [r.status for r in found],
            "nodes": sorted({x.node for r in found for x in r.replicas}),
            "said": "" if code == 0 else (out + err)[-1500:],
        }), flush=True)  # fmt: skip


def main(count: int) -> None:
    place = Path(mkdtemp(dir="/tmp", prefix="gj-"))
    network(place / "small.onnx")
    try:
        if count:
            join(place, count)
        symmetric(place)
    finally:
        rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
