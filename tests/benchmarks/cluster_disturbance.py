"""Whether Ray's processes disturb a CPU cell: python -m tests.benchmarks.cluster_disturbance

A node of a cluster is started here; a network of a fraction of a millisecond runs on one core in
blocks. In every other block all of Ray's processes are stopped (SIGSTOP): as if it were not there.
First they are kept off that core, as a run does where cores are left, then they may use all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np

from gpubench.run.cluster.ray_cluster import Aside
from tests.benchmarks.trust.machine import network
from tests.run.cluster.machines import RAY


def worker(model: str, core: int, block_s: float) -> None:
    """A block for every line of stdin; its p50 and p99, in ns."""
    import onnxruntime

    os.sched_setaffinity(0, [core])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.zeros((1, 3, 32, 32), np.float32)}
    for _ in sys.stdin:
        times, end = [], perf_counter_ns() + block_s * 1e9
        while (begin := perf_counter_ns()) < end:
            session.run(None, feed)
            times.append(perf_counter_ns() - begin)
        print(json.dumps([float(q) for q in np.percentile(times, [50, 99])]), flush=True)


def ratio(pairs: Sequence[tuple[list[float], list[float]]], n: int) -> dict[str, Any]:
    """Of a percentile, with Ray to without: median of the pairs, and its 95 % interval."""
    logs = np.log([on[n] / off[n] for on, off in pairs])
    rng = np.random.default_rng(0)
    found = np.median(rng.choice(logs, (4000, len(logs))), axis=1)
    low, high = np.exp(np.percentile(found, [2.5, 97.5]))
    return {
        "with_us": round(float(np.median([on[n] for on, _ in pairs])) / 1e3, 2),
        "without_us": round(float(np.median([off[n] for _, off in pairs])) / 1e3, 2),
        "ratio": round(float(np.exp(np.median(logs))), 5),
        "interval": [round(float(low), 5), round(float(high), 5)],
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--block-s", type=float, default=1.0)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--worker", help="'chrt -r 1': before the command of what is measured")
    asked = parser.parse_args()
    temp = mkdtemp(dir="/tmp", prefix="gd-")
    words = ["start", "--head", "--port", "6399", "--include-dashboard", "false", "--num-cpus", "1",
             "--temp-dir", temp, "--disable-usage-stats"]  # fmt: skip
    with TemporaryDirectory() as folder:
        network(Path(folder, "small.onnx"))
        subprocess.run([RAY, *words], check=True, stdout=subprocess.DEVNULL)
        session = Path(temp, "session_latest").resolve()
        ray = Aside(session)
        command = [*(asked.worker or "").split(), sys.executable, "-m", __spec__.name, "--serve"]
        serve = [f"{folder}/small.onnx", str(asked.core), str(asked.block_s)]
        try:
            with subprocess.Popen(
                [*command, *serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as cell:
                assert cell.stdin is not None
                assert cell.stdout is not None

                def block(number: int) -> list[float]:
                    for pid in ray._processes():
                        os.kill(pid, number)
                    sleep(0.1)
                    print(file=cell.stdin, flush=True)
                    found: list[float] = json.loads(cell.stdout.readline())  # type: ignore[union-attr]
                    return found

                block(signal.SIGCONT)
                for case, away in (("kept off", [(asked.core,)]), ("anywhere", [])):
                    ray.keep_off(away)
                    pairs = []
                    for pair in range(asked.pairs):
                        order = [signal.SIGCONT, signal.SIGSTOP][:: 1 if pair % 2 else -1]
                        got = {number: block(number) for number in order}
                        pairs.append((got[signal.SIGCONT], got[signal.SIGSTOP]))
                        block_end = ray._processes()
                        for pid in block_end:
                            os.kill(pid, signal.SIGCONT)
                    said = {"ray": case, "processes": len(ray._processes()), "pairs": asked.pairs,
                            "p50": ratio(pairs, 0), "p99": ratio(pairs, 1)}  # fmt: skip
                    print(json.dumps(said), flush=True)
                cell.stdin.close()
        finally:
            for pid in ray._processes():
                os.kill(pid, signal.SIGKILL)
            rmtree(temp, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        worker(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
