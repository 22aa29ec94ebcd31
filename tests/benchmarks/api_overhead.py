"""What calling from Python costs: `uv run python -m tests.benchmarks.api_overhead DIRECTORY`.

Interleaved rounds, each in an order of its own: a live ResNet-18 by `gpubench.run` in a kernel of
Jupyter that holds it already, the suite that such a call leaves by `gpubench run`, and a bare loop
of torch with as many threads. Every call and every command finds an empty cache, and makes all that
it needs. Told are seconds to the first row (from the start of the cell, which imports gpubench, or
of the process) and to the end, and the median time of a batch. Exits with 1 where a limit of
`LIMITS` is missed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from gpubench.records.reader import read
from gpubench.records.record import RECORDS
from tests.run.test_api_surroundings import Notebook

ROUNDS = 5
MODEL = """
import torch, torchvision
torch.manual_seed(0)
model = torchvision.models.resnet18()
"""
CALL = """
import gpubench
gpubench.run(model, backend="torch-eager", batch_size=1, scenario="latency", boundary="compute",
             repeats=1, duration_s=3.0, device="cpu", output={out!r}, cache_dir={cache!r})
"""
BARE = """
import time
torch.set_num_threads({threads})
model.eval()
times, images = [], torch.randn(1, 3, 224, 224)
with torch.inference_mode():
    for seconds in (1, 3):
        end = time.monotonic() + seconds
        times.clear()
        while time.monotonic() < end:
            begin = time.perf_counter_ns()
            model(images)
            times.append(time.perf_counter_ns() - begin)
print(sorted(times)[len(times) // 2])
"""
LIMITS = {"first row by a call, s": 20.0, "call / command, first row": 1.05,
          "p50 of call and command, apart": 1.02, "p50 of call and bare, apart": 1.02}  # fmt: skip
"""Ratios are medians of those within a round: what the machine does for minutes hits both alike."""


def first_row(out: Path, ended: Callable[[], bool]) -> float:
    """When (`time.monotonic`) the first record stood in ``out``."""
    while not ended():
        if (out / RECORDS).exists() and (out / RECORDS).read_bytes().count(b"\n") > 1:
            break
        time.sleep(0.02)
    return time.monotonic()


def call(out: Path, cache: Path) -> tuple[float, float, float]:
    """(seconds to the first row, to the end, p50 in ns) in a notebook."""
    book = Notebook(out.parent)
    try:
        assert not book(MODEL)["error"]
        begin = time.monotonic()
        sent = book.start(CALL.format(out=str(out), cache=str(cache)))
        row = first_row(out, lambda: not book.manager.is_alive())
        told = book.finish(sent)
        end = time.monotonic()
    finally:
        book.client.stop_channels()
        book.manager.shutdown_kernel(now=True)
    assert not told["error"], told
    return row - begin, end - begin, read(out).records[0].median_ns() or 0.0


def command(suite: Path, out: Path, cache: Path) -> tuple[float, float, float]:
    """The same by the command line."""
    words = ["run", str(suite), "-o", str(out), "--cache-dir", str(cache), "-q"]
    begin = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "gpubench", *words]) as process:
        row = first_row(out, lambda: process.poll() is not None)
        assert process.wait() == 0
    return row - begin, time.monotonic() - begin, read(out).records[0].median_ns() or 0.0


def bare() -> tuple[float, float, float]:
    """Of the loop there is only the p50."""
    code = MODEL + BARE.format(threads=len(os.sched_getaffinity(0)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return 0.0, 0.0, float(done.stdout)


def main(root: Path) -> int:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    call(root / "first", root / "cache")  # makes the suite, and warms the page cache
    found: dict[str, list[tuple[float, float, float]]] = {"call": [], "command": [], "bare": []}
    for number in range(ROUNDS):
        places = [root / f"{name}-{number}" for name in ("call", "command")]
        caches = [root / f"cache-{name}-{number}" for name in ("call", "command")]
        jobs: dict[str, Callable[[], tuple[float, float, float]]] = {
            "call": lambda p=places, c=caches: call(p[0], c[0]),  # type: ignore[misc]
            "command": lambda p=places, c=caches: command(  # type: ignore[misc]
                root / "first" / "ResNet.toml", p[1], c[1]),
            "bare": bare,
        }  # fmt: skip
        names = [*jobs]
        for name in names[number % 3 :] + names[: number % 3]:
            found[name].append(jobs[name]())
            row, end, p50 = found[name][-1]
            print(f"{number} {name}: row {row:.2f} s, end {end:.2f} s, p50 {p50 / 1e6:.3f} ms",
                  flush=True)  # fmt: skip
    rows, ends, p50s = ({name: median(one[at] for one in found[name]) for name in found}
                        for at in range(3))  # fmt: skip
    pairs = {f"{one} / {other}": [median(a[at] / b[at] for a, b in zip(found[one], found[other],
                                                                       strict=True) if b[at])
                                  for at in (0, 2) if found[other][0][at]]
             for one, other in (("call", "command"), ("call", "bare"))}  # fmt: skip
    ratio, same = pairs["call / command"]
    came = dict(zip(LIMITS, (rows["call"], ratio, *(
        max(r, 1 / r) for r in (same, *pairs["call / bare"]))), strict=True))  # fmt: skip
    missed = [name for name, most in LIMITS.items() if came[name] > most]
    print(json.dumps({"first row, s": rows, "end, s": ends, "p50, ns": p50s, "limits": LIMITS,
                      "came": came, "missed": missed}, indent=1))  # fmt: skip
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
