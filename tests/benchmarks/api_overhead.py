"""What calling from Python costs: `python -m tests.benchmarks.api_overhead DIRECTORY [rows]`.

Interleaved rounds, each in an order of its own; those of an earlier start are kept and counted.

`rows`: a live ResNet-18 by `gpubench.run` in a kernel of Jupyter that holds it already, and the
suite that such a call leaves by `gpubench run`. Both find an empty cache, and make all that they
need. Told are seconds to the first row: from the start of the cell, which imports gpubench, or of
the process. Else: the median time of a batch of a small network, on the cores that this process
may use: by a call of a script that holds it, by the command, by the command once more (what is left
between these two is chance), and by a bare loop of torch; of each `WORKERS` fresh processes a
round. Jobs are left out during which other cores were busy, as one may be half of ours.
Exits with 1 where a limit of `LIMITS` is missed.
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
from pathlib import Path
from statistics import median

import numpy as np

from gpubench.records.reader import read
from gpubench.records.record import RECORDS
from tests.run.test_api_surroundings import Notebook

ROWS, ROUNDS, WORKERS, SIZE = 4, 9, 3, 96
CALM = 0.1
"""Jobs during which the other cores worked more than this share do not count."""
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
LIMITS = {"first row by a call, s": 20.0, "first row, call / command": 1.05,
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


def elsewhere() -> tuple[float, float]:
    """Seconds that cores worked which are not this process's, and that passed."""
    own = os.sched_getaffinity(0)
    busy = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name[3:].isdigit() and int(name[3:]) not in own:
            busy += sum(map(int, ticks[:3])) / os.sysconf("SC_CLK_TCK")
    return busy, time.monotonic()


def rounds(root: Path, what: str, number: int, jobs: dict[str, Callable[[Path], list[float]]]
           ) -> dict[str, list[list[float]]]:  # fmt: skip
    """What each job gave, this time and before, but where other cores were busy meanwhile."""
    kept = root / f"{what}.jsonl"
    for _ in range(number):
        for name in random.sample([*jobs], len(jobs)):
            scratch = root / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            busy, begin = elsewhere()
            values = jobs[name](scratch)
            share = (elsewhere()[0] - busy) / (elsewhere()[1] - begin)
            line = json.dumps({"job": name, "elsewhere": round(share, 3), "values": values})
            print(line, flush=True)
            with kept.open("a") as file:
                file.write(f"{line}\n")
    found: dict[str, list[list[float]]] = {name: [] for name in jobs}
    for line in kept.read_text().splitlines():
        job = json.loads(line)
        if job["elsewhere"] <= CALM:
            found[job["job"]].append(job["values"])
    return found


def ratio(one: list[list[float]], other: list[list[float]]) -> list[float]:
    """That of the medians, and its 95 % interval, by a bootstrap of whole jobs."""
    draw = np.random.default_rng(0)

    def middle(jobs: list[list[float]]) -> list[float]:
        many = (draw.integers(len(jobs), size=len(jobs)) for _ in range(2000))
        drawn = [median(v for i in some for v in jobs[i]) for some in many]
        return [median(v for job in jobs for v in job), *drawn]

    found = np.array(middle(one)) / np.array(middle(other))
    return [round(float(x), 4) for x in (found[0], *np.quantile(found[1:], (0.025, 0.975)))]


def main(root: Path, rows: bool) -> int:
    root.mkdir(parents=True, exist_ok=True)
    first = root / ("ResNet" if rows else "Small")
    cache = root / "cache"
    if not first.exists():  # makes the suite, and warms the page cache
        (called if rows else call)(first, cache)
    suite = first / f"{first.name}.toml"
    jobs: dict[str, Callable[[Path], list[float]]] = {
        "call": lambda at: call(at / "out", cache),
        "command": lambda at: command(suite, at / "out", cache),
        "again": lambda at: command(suite, at / "out", cache),
        "bare": lambda _: bare(),
    }
    if rows:
        jobs = {"call": lambda at: called(at / "out", at / "cache"),
                "command": lambda at: commanded(suite, at / "out", at / "cache")}  # fmt: skip
    found = rounds(root, "rows" if rows else "p50", ROWS if rows else ROUNDS, jobs)
    asked = [("call", "command"), ("call", "bare"), ("again", "command")][: 1 if rows else 3]
    ratios = {f"{a} / {b}": ratio(found[a], found[b]) for a, b in asked}
    came = {"first row, call / command" if rows else name: max(value, 1 / value)
            for name, (value, *_) in ratios.items()}  # fmt: skip
    if rows:
        came["first row by a call, s"] = median(v for job in found["call"] for v in job)
    missed = [name for name, most in LIMITS.items() if came.get(name, 0) > most]
    medians = {name: median(v for job in found[name] for v in job) for name in found}
    count = {name: len(found[name]) for name in found}
    print(json.dumps({"calm jobs": count, "medians": medians, "ratios": ratios, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:] == ["rows"]))
