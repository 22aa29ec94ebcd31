"""What calling from Python costs: `uv run python -m tests.benchmarks.api_overhead DIRECTORY`.

Interleaved rounds in fresh processes: a live ResNet-18 by `gpubench.run` in a script, the suite
that its directory holds by `gpubench run`, and a bare loop of torch with as many threads. Told are
seconds from the start of the process to its end, and the median time of a batch. The network is
the same each time, so that neither of both has to prepare it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from gpubench.records.reader import read

ROUNDS = 5
CALL = """
import gpubench, torch, torchvision
torch.manual_seed(0)
model = torchvision.models.resnet18()
gpubench.run(model, backend="torch-eager", batch_size=1, repeats=1, duration_s=2.0, device="cpu",
             output={out!r}, cache_dir={cache!r}, progress=False)
"""
BARE = """
import time, torch, torchvision
torch.set_num_threads({threads})
model, times = torchvision.models.resnet18().eval(), []
images = torch.randn(1, 3, 224, 224)
with torch.inference_mode():
    end = time.monotonic() + 1
    while time.monotonic() < end:
        model(images)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        begin = time.perf_counter_ns()
        model(images)
        times.append(time.perf_counter_ns() - begin)
print(sorted(times)[len(times) // 2])
"""


def main(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    cache, threads = str(root / "cache"), len(os.sched_getaffinity(0))
    seconds: dict[str, list[float]] = {"call": [], "command": [], "bare": []}
    p50_ns: dict[str, list[float]] = {name: [] for name in seconds}
    for number in range(ROUNDS + 1):
        out, typed = root / f"call-{number}", root / f"typed-{number}"
        command = [sys.executable, "-m", "gpubench", "run", str(out / "ResNet.toml"), "-o",
                   str(typed), "--cache-dir", cache, "-q"]  # fmt: skip
        jobs = {
            "call": [sys.executable, "-c", CALL.format(out=str(out), cache=cache)],
            "command": command,
            "bare": [sys.executable, "-c", BARE.format(threads=threads)],
        }
        for name, words in jobs.items():
            begin = time.monotonic()
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            took = time.monotonic() - begin
            if number == 0:
                print(f"{name}, where the cache is empty for the call: {took:.1f} s", flush=True)
                continue
            seconds[name].append(took)
            where = {"call": out, "command": typed}.get(name)
            found = read(where).records[0].median_ns() if where else float(done.stdout)
            p50_ns[name].append(found or 0.0)
            print(f"{number} {name}: {took:.1f} s, p50 {(found or 0) / 1e6:.2f} ms", flush=True)
    made = {name: {"seconds": median(seconds[name]), "p50_ms": median(p50_ns[name]) / 1e6}
            for name in seconds}  # fmt: skip
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
