"""The gate on real code and a real machine: A/A suites, and suites with exactly 5 % more work.

    python -m tests.benchmarks.trust.machine measure --condition quiet -o raw/
    python -m tests.benchmarks.trust.machine measure --condition bursts -o raw/
    python -m tests.benchmarks.trust.machine report raw/ -o reports/reference/trust/

A suite is one cheap cell (a small generated network on ONNX Runtime, batch 1, one core).
One iteration is 20 inferences; the slower arm does 21. Slowed suites are drawn in among the A/A
ones: 120 beside 299, of which none may alarm to bound the rate at 1 % (95 % confidence). Under
``bursts`` another process burns the same core for random times (exponential, mean 0.15 s), with
pauses of 0.3 s. Every pair's values are kept, so that other rules can judge the same data. What
else the machine did meanwhile is said by ``--beside`` and printed in the report. The same command
goes on where it was stopped: suites that its file holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec.structs import replace

from gpubench.analysis.compare import compare
from gpubench.records.record import RecordFile
from gpubench.run.ab import arms, driver
from gpubench.run.ab import setup as ab_setup
from gpubench.run.agent.client import AgentClient
from gpubench.run.roofline import Ceilings
from gpubench.run.watcher import Silent
from gpubench.suite.types import Rule

PLUGIN = str(Path(__file__).parent / "plugin")
"""Its backend makes one iteration of so many inferences; 20 unless something else is asked for."""
SLOWED = "runs=21"
BUDGET_S = 120.0
SAMPLE_S = {"quiet": 0.12, "bursts": 0.24}
"""Of a pair and arm, in turns of 20 ms: longer where bursts of 0.15 s have to be averaged out."""
SUITE = """
[workload]
model = "{model}"
images = "synthetic"
[axes]
backend = "bundled"
batch_size = 1
device = "cpu"
cores = 1
scenario = "latency"
[policy]
duration_s = {duration_s}
warmup_s = 0.05
warmup_iterations = 3
parity_images = 2
"""
BURSTS = """
import random, time
while True:
    end = time.perf_counter() + random.expovariate(1 / 0.15)
    while time.perf_counter() < end:
        pass
    time.sleep(random.expovariate(1 / 0.3))
"""


def network(path: Path) -> None:
    """Three convolutions on (n, 3, 32, 32), weights from a seed: a fraction of a millisecond."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 3, 3), "w1": (32, 16, 3, 3), "w2": (32, 32, 3, 3), "w3": (32, 10)}
    weights = [
        numpy_helper.from_array(
            (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name
        )
        for name, shape in shapes.items()
    ]
    nodes = []
    for place, stride in enumerate((1, 2, 1)):
        before = "images" if place == 0 else f"r{place - 1}"
        pads = {"pads": [1] * 4, "strides": [stride] * 2, "kernel_shape": [3, 3]}
        nodes.append(helper.make_node("Conv", [before, f"w{place}"], [f"c{place}"], **pads))
        nodes.append(helper.make_node("Relu", [f"c{place}"], [f"r{place}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )


def measure(
    condition: str, suites: int, slowed: int, seed: int, out: Path, limit_s: float, beside: str
) -> None:
    """Append one JSON line a suite to ``out``/CONDITION-SEED.jsonl: so many A/A and slowed ones."""
    sys.path.insert(0, PLUGIN)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PLUGIN, os.getenv("PYTHONPATH")]))
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{condition}-{seed}.jsonl"
    finished = done(target)
    end = time.monotonic() + limit_s
    core = sorted(os.sched_getaffinity(0))[0]
    with TemporaryDirectory(prefix="trust-") as scratch:
        place = Path(scratch)
        network(place / "small.onnx")
        (place / "suite.toml").write_text(
            SUITE.format(model=place / "small.onnx", duration_s=SAMPLE_S[condition])
        )
        jobs = {}
        for kind, texts in (("same", ()), ("slowed", (SLOWED,))):
            specs = arms.parse("--baseline", ()), arms.parse("--candidate", texts)
            jobs[kind] = job = ab_setup.comparison(
                str(place / "suite.toml"), {}, specs, (None, None), Rule(), BUDGET_S,
                place / "cache", place / "x", False, (),
            )  # fmt: skip
        rival = None
        if condition == "bursts":
            rival = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", BURSTS])
        try:
            with AgentClient(driver.modules(job), job.cache_dir, place / "agent.log") as agent:
                agent.start()
                # the peaks of the machine, once for all suites
                ceilings = Ceilings(agent, job.sides[0].plan.cores_of, job.backends)
                with target.open("a") as file:
                    for number in range(suites):
                        # the n-th of the slowed ones comes with the A/A suite that it is due with
                        due = (number + 1) * slowed // suites - number * slowed // suites
                        kinds = ["same", *["slowed"] * due]
                        random.Random(f"{seed}/{number}").shuffle(kinds)
                        for kind in kinds:
                            at = seed * 1000 + number
                            if (kind, at) in finished:
                                continue
                            if time.monotonic() > end:
                                return
                            row = one(jobs[kind], agent, ceilings, kind, at, place)
                            row |= {"condition": condition, "beside": beside}
                            print(json.dumps(row), file=file, flush=True)
        finally:
            if rival is not None:
                rival.send_signal(signal.SIGKILL)
                rival.wait()


def done(path: Path) -> set[tuple[str, int]]:
    """(kind, seed) of the suites in ``path``."""
    return {(row["kind"], row["seed"]) for row in kept(path)}


def kept(path: Path) -> list[dict[str, Any]]:
    """The rows of ``path``, from which a line that was cut off is removed."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(whole))
    return [json.loads(line) for line in whole]


def one(
    job: driver.ABJob, agent: AgentClient, ceilings: Ceilings, kind: str, seed: int, place: Path
) -> dict[str, Any]:
    """One suite: its verdicts and the values of every pair."""
    begin = time.monotonic()
    job = replace(job, seed=seed, out=place / f"{kind}-{seed}")
    files = driver.run(job, Silent(), agent, ceilings=ceilings)
    found = compare.compare(*files)
    return {
        "kind": kind,
        "seed": seed,
        "machine": machine(files[0].header.environment),
        "seconds": round(time.monotonic() - begin, 1),
        "cells": [
            {
                "label": row.label,
                "verdict": row.verdict,
                "code": row.code,
                "ratio": row.ratio,
                "low": row.low,
                "high": row.high,
                "pairs": row.pairs,
                "pair_sd": row.pair_sd,
                **values(files, (row.baseline_key or row.key, row.key)),
            }
            for row in found
        ],
    }


def machine(here: dict[str, Any]) -> str:
    """Where and with what a suite was measured, in a line."""
    versions = ", ".join(
        f"{name} {here['libraries'][name]}"
        for name in ("onnxruntime", "onnxruntime-gpu", "numpy")
        if here["libraries"].get(name)
    )
    cpu = here["cpu"]
    return (
        f"{cpu['model']}, one core of {cpu['logical']}, kernel {here['os']['kernel']}, "
        f"Python {here['python']['version']}, {versions}"
    )


def values(files: tuple[RecordFile, RecordFile], keys: tuple[str, str]) -> dict[str, list[Any]]:
    """Repeat values in ms, of one cell's pairs that both ended well; ``keys``: its arms'."""
    both = [
        {r.repeat: r for r in f.records if r.cell.key == key}
        for f, key in zip(files, keys, strict=True)
    ]
    pairs = [(b, both[1][n]) for n, b in both[0].items() if n in both[1]]
    pairs = [(b, c) for b, c in pairs if b.status == c.status == "ok" and b.value() and c.value()]
    return {
        "baseline_ms": [round((b.value() or 0) / 1e6, 5) for b, _ in pairs],
        "candidate_ms": [round((c.value() or 0) / 1e6, 5) for _, c in pairs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("measure")
    run.add_argument("--condition", choices=("quiet", "bursts"), required=True)
    run.add_argument("--suites", type=int, default=299)
    run.add_argument("--slowed", type=int, default=120, help="at most as many as --suites")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--minutes", type=float, default=600)
    run.add_argument("--beside", default="", help="what else the machine does meanwhile")
    show = commands.add_parser("report")
    show.add_argument("raw", type=Path)
    for command in (run, show):
        command.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "measure":
        limit_s = 60 * given.minutes
        measure(given.condition, given.suites, given.slowed, given.seed, given.output, limit_s,
                given.beside)  # fmt: skip
    else:
        from tests.benchmarks.trust import machine_report

        machine_report.write(given.raw, given.output)


if __name__ == "__main__":
    main()
