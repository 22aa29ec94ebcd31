"""What calling from Python costs: `python -m tests.benchmarks.api_overhead DIRECTORY [rows]`.

Interleaved rounds, each in an order of its own; those of an earlier start are kept and counted.

`rows`: a live ResNet-18 by `gpubench.run` in a kernel of Jupyter that holds it already, and the
suite that such a call leaves by `gpubench run`. Both find an empty cache, and make all that they
need. Told are seconds to the first row: from the start of the cell, which imports gpubench, or of
the process. Else: the median time of a batch of a small network, on one core: by a call of a script
that holds it, by the command, by the command once more (what is left between these two is chance),
and by a bare loop of torch; of each `WORKERS` fresh processes a round. Exits with 1 where a limit
of `LIMITS` is missed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from gpubench.records.reader import read
from gpubench.records.record import RECORDS
from tests.run.test_api_surroundings import Notebook

ROWS, ROUNDS, WORKERS, SIZE = 4, 8, 3, 96
RESNET = """
import torch, torchvision
torch.manual_seed(0)
model = torchvision.models.resnet18()
"""
SMALL = """
import torch
from torch import nn
torch.manual_seed(0)
class Small(nn.Sequential):
    def __init__(self):
        blocks = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
                  for _ in range(4)]
        super().__init__(nn.Conv2d(3, 32, 7, 2, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(32, 10))
model = Small()
"""
CALL = """
import gpubench
gpubench.run(model, backend="torch-eager", batch_size=1, scenario="latency", boundary="compute",
             repeats={repeats}, duration_s={seconds}, input_size={size}, device="cpu",
             output={out!r}, cache_dir={cache!r}, progress=False)
"""
BARE = """
import time
torch.set_num_threads({threads})
model.eval()
times, images = [], torch.randn(1, 3, {size}, {size})
with torch.inference_mode():
    for seconds in (1, 1):
        end = time.monotonic() + seconds
        times.clear()
        while time.monotonic() < end:
            begin = time.perf_counter_ns()
            model(images)
            times.append(time.perf_counter_ns() - begin)
print(sorted(times)[len(times) // 2])
"""
LIMITS = {"first row by a call, s": 20.0, "call / command, first row": 1.05,
          "call / command": 1.02, "call / bare": 1.02}  # fmt: skip


def first_row(out: Path, ended: Callable[[], bool]) -> float:
    """When (`time.monotonic`) the first record stood in ``out``."""
    while not ended():
        if (out / RECORDS).exists() and (out / RECORDS).read_bytes().count(b"\n") > 1:
            break
        time.sleep(0.02)
    return time.monotonic()


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return done.stdout


def words(suite: Path, out: Path, cache: Path) -> list[str]:
    return [sys.executable, "-m", "gpubench", "run", str(suite), "-o", str(out), "--cache-dir",
            str(cache), "-q"]  # fmt: skip


# ------------------------------------------------------------------------------ the first row


def called(out: Path, cache: Path) -> list[float]:
    """Seconds to the first row in a notebook."""
    book = Notebook(out.parent)
    try:
        assert not book(RESNET)["error"]
        begin = time.monotonic()
        sent = book.start(CALL.format(out=str(out), cache=str(cache), repeats=1, seconds=3.0,
                                      size=224))  # fmt: skip
        row = first_row(out, lambda: not book.manager.is_alive())
        assert not book.finish(sent)["error"]
    finally:
        book.client.stop_channels()
        book.manager.shutdown_kernel(now=True)
    return [row - begin]


def commanded(suite: Path, out: Path, cache: Path) -> list[float]:
    """The same by the command line."""
    begin = time.monotonic()
    with subprocess.Popen(words(suite, out, cache)) as process:
        row = first_row(out, lambda: process.poll() is not None)
        assert process.wait() == 0
    return [row - begin]


# ------------------------------------------------------------------------------ the median


def p50s(out: Path) -> list[float]:
    """Of every fresh process, ns."""
    return [record.median_ns() or 0.0 for record in read(out).records]


def call(out: Path, cache: Path) -> list[float]:
    python(SMALL + CALL.format(out=str(out), cache=str(cache), repeats=WORKERS, seconds=1.0,
                               size=SIZE))  # fmt: skip
    return p50s(out)


def command(suite: Path, out: Path, cache: Path) -> list[float]:
    subprocess.run(words(suite, out, cache), check=True)
    return p50s(out)


def bare() -> list[float]:
    code = SMALL + BARE.format(threads=len(os.sched_getaffinity(0)), size=SIZE)
    return [float(python(code)) for _ in range(WORKERS)]


# ------------------------------------------------------------------------------ both


def rounds(root: Path, what: str, number: int, jobs: dict[str, Callable[[Path], list[float]]]
           ) -> list[dict[str, list[float]]]:  # fmt: skip
    """What each job gave in each round, this time and before."""
    kept = root / f"{what}.jsonl"
    for _ in range(number):
        done = {}
        for name in random.sample([*jobs], len(jobs)):
            scratch = root / "scratch"
            scratch.mkdir()
            done[name] = jobs[name](scratch)
            shutil.rmtree(scratch)
        print(json.dumps(done), flush=True)
        with kept.open("a") as file:
            file.write(json.dumps(done) + "\n")
    return [json.loads(line) for line in kept.read_text().splitlines()]


def ratio(found: list[dict[str, list[float]]], one: str, other: str) -> list[float]:
    """That of the medians, and its 95 % interval: a bootstrap of whole rounds,
    percentiles."""

    def of(some: list[dict[str, list[float]]]) -> float:
        a, b = (median(v for r in some for v in r[name]) for name in (one, other))
        return a / b

    draw = np.random.default_rng(0)
    many = [of([found[i] for i in draw.integers(len(found), size=len(found))])
            for _ in range(2000)]  # fmt: skip
    return [round(float(x), 4) for x in (of(found), *np.quantile(many, (0.025, 0.975)))]


def main(root: Path, rows: bool) -> int:
    root.mkdir(parents=True, exist_ok=True)
    first = root / ("ResNet" if rows else "Small")
    cache = root / "cache"
    if not first.exists():  # makes the suite, and warms the page cache
        (called if rows else call)(first, cache)
    suite = first / f"{first.name}.toml"
    if rows:
        found = rounds(root, "rows", ROWS, {
            "call": lambda at: called(at / "out", at / "cache"),
            "command": lambda at: commanded(suite, at / "out", at / "cache"),
        })  # fmt: skip
        middle = median(r["call"][0] for r in found)
        pairs = {"call / command, first row": ratio(found, "call", "command")}
        came = {"first row by a call, s": middle}
    else:
        typed = partial(command, suite)
        found = rounds(root, "p50", ROUNDS, {
            "call": lambda at: call(at / "out", cache), "bare": lambda _: bare(),
            "command": lambda at: typed(at / "out", cache),
            "again": lambda at: typed(at / "out", cache),
        })  # fmt: skip
        both = (("call", "command"), ("call", "bare"), ("again", "command"))
        pairs = {f"{a} / {b}": ratio(found, a, b) for a, b in both}
        came = {}
    came |= {name: max(value, 1 / value) for name, (value, *_) in pairs.items()}
    missed = [name for name, most in LIMITS.items() if came.get(name, 0) > most]
    medians = {name: median(v for r in found for v in r[name]) for name in found[0]}
    print(json.dumps({"rounds": len(found), "medians": medians, "ratios": pairs, "limits": LIMITS,
                      "missed": missed}, indent=1))  # fmt: skip
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:] == ["rows"]))
