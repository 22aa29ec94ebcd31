"""Whether Ray's processes disturb a CPU cell: python -m tests.benchmarks.cluster_disturbance

A node of a cluster is started here; a network of a fraction of a millisecond runs on one core, in
one process, in blocks of a fifth of a second. In every other block all of Ray's processes are
stopped (SIGSTOP), so that a pair is over before the machine drifts. First Ray is kept off that
core, as a run does where cores are left, then it may use all. With `--absent` the other half of
the pairs has no Ray at all: it is started and killed over and over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np

from gpubench.machine import processes
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


class Node:
    """Of a cluster, and its processes."""

    def __init__(self, temp: str, core: int) -> None:
        words = ["start", "--head", "--port", "6399", "--include-dashboard", "false",
                 "--num-cpus", "1", "--temp-dir", temp, "--disable-usage-stats"]  # fmt: skip
        subprocess.run([RAY, *words], check=True, stdout=subprocess.DEVNULL)
        self.aside = Aside(Path(temp, "session_latest").resolve())
        self.aside.keep_off([(core,)])

    def signal(self, number: int) -> None:
        for pid in self.aside._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Cell:
    """What is measured, in a process of its own."""

    def __init__(self, command: Sequence[str], model: Path, asked: Namespace) -> None:
        words = [*command, sys.executable, "-m", __spec__.name, "--serve"]
        self._process = subprocess.Popen(
            [*words, str(model), str(asked.core), str(asked.block_s)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.block()

    def block(self) -> list[float]:
        """Its p50 and p99, ns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        found: list[float] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def stopped(cell: Cell, node: Node, pairs: int) -> list[tuple[list[float], list[float]]]:
    """Pairs of blocks, Ray on and stopped; the order changes from pair to pair."""
    found = []
    for pair in range(pairs):
        got = {}
        for number in [signal.SIGCONT, signal.SIGSTOP][:: 1 if pair % 2 else -1]:
            node.signal(number)
            sleep(0.02)
            got[number] = cell.block()
        found.append((got[signal.SIGCONT], got[signal.SIGSTOP]))
    node.signal(signal.SIGCONT)
    return found


def absent(
    cell: Cell, temp: str, core: int, rounds: int, blocks: int
) -> list[tuple[list[float], list[float]]]:
    """Pairs of medians of some blocks, with a Ray that has come to rest and with none."""
    found = []
    for _ in range(rounds):
        without = [cell.block() for _ in range(blocks)]
        node = Node(temp, core)
        sleep(3)
        beside = [cell.block() for _ in range(2 * blocks)]
        node.signal(signal.SIGKILL)
        sleep(1)
        without += [cell.block() for _ in range(blocks)]
        on, off = ([float(m) for m in np.median(x, axis=0)] for x in (beside, without))
        found.append((on, off))
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--block-s", type=float, default=0.2)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--absent", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--worker", default="", help="before its command: 'chrt -r 1'")
    asked = parser.parse_args()
    temp = mkdtemp(dir="/tmp", prefix="gd-")
    network(Path(temp, "small.onnx"))
    cell = Cell(asked.worker.split(), Path(temp, "small.onnx"), asked)
    try:
        if asked.absent:
            tell("absent or kept off", absent(cell, temp, asked.core, asked.absent, 10))
            return
        node = Node(temp, asked.core)
        sleep(5)  # its start is over
        for case, away in (("kept off", [(asked.core,)]), ("anywhere", [])):
            node.aside.keep_off(away)
            tell(f"{case} ({len(node.aside._processes())} processes)",
                 stopped(cell, node, asked.pairs))  # fmt: skip
    finally:
        cell.end()
        for pid in processes.naming(temp):
            os.kill(pid, signal.SIGKILL)
        rmtree(temp, ignore_errors=True)


def tell(case: str, pairs: Sequence[tuple[list[float], list[float]]]) -> None:
    said = {"ray": case, "pairs": len(pairs), "p50": ratio(pairs, 0), "p99": ratio(pairs, 1)}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        worker(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
