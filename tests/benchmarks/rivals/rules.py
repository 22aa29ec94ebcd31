"""What people let a commit pass by: each rule runs its own tool, and says whether it alarms.

Every rule gets the checkouts ``base`` and ``head``, and a folder of its own for this job. What is
measured on its own core, and how, is the tool's default; `Tools.prefix` precedes every command.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PICTURES = 300
"""Of one run of the program that hyperfine times."""
LIMITS = {"median:5%": "median", "mean:10%": "mean"}
RATIOS = (110, 150, 200)
TURNS = 10
"""Of the interleaved medians: each is 0.1 s of one arm, then of the other."""


class Tools(NamedTuple):
    """Where things are."""

    prefix: tuple[str, ...]
    """Such as ('taskset', '-c', '0')."""
    action: Path
    """github-action-benchmark's dist/src/index.js, built from its source."""
    cache: Path

    def run(self, command: list[str], cwd: Path, **env: str) -> tuple[int, str, float]:
        """(exit code, what it printed, seconds)."""
        begin = time.monotonic()
        found = subprocess.run(
            [*self.prefix, *command], cwd=cwd, env=os.environ | env, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return found.returncode, found.stdout, round(time.monotonic() - begin, 2)


class Job(NamedTuple):
    """One commit, and what the base's earlier CI run has left."""

    base: Path
    head: Path
    stored: Path
    """pytest-benchmark's JSON of the base."""
    stored_s: float
    """That it took."""
    place: Path


Answers = dict[str, dict[str, Any]]
"""Rule -> 'alarm' (True, False or None: undecided), 'seconds' of both arms, and what it saw."""


def store(tools: Tools, base: Path, to: Path) -> float:
    """The base's own CI run. Returns its seconds."""
    code, said, seconds = tools.run(_pytest(to), base)
    if code:
        raise RuntimeError(f"pytest-benchmark of the base: exit code {code}:\n{said}")
    return seconds


def _pytest(to: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "speed.py",
            f"--benchmark-json={to}", *more]  # fmt: skip


def pytest_benchmark(tools: Tools, job: Job) -> Answers:
    """`pytest --benchmark-compare-fail` and, of the same two files, github-action-benchmark."""
    now = job.place / "head.json"
    compare = [f"--benchmark-compare={job.stored}", "--benchmark-compare-fail", *LIMITS]
    code, said, seconds = tools.run(_pytest(now, *compare), job.head)
    failed = re.findall(r"Field '(\w+)' has failed", said)
    if bool(code) != bool(failed) or not now.exists():
        raise RuntimeError(f"pytest-benchmark: exit code {code}:\n{said}")
    stats = [_stats(file) for file in (job.stored, now)]
    saw = {
        "seconds": round(seconds + job.stored_s, 2),
        **{f: [s[f] for s in stats] for f in ("mean", "median", "min", "rounds")},
    }
    found: Answers = {
        f"pytest-benchmark {limit}": {"alarm": field in failed, **saw}
        for limit, field in LIMITS.items()
    }
    history = job.place / "history.json"
    _action(tools, job.place, job.stored, history, "base", 200, save=True)
    for limit in RATIOS:
        alarm, own = _action(tools, job.place, now, history, "head", limit, save=False)
        found[f"github-action-benchmark {limit}%"] = {
            "alarm": alarm, "seconds": round(seconds + job.stored_s + own, 2),
        }  # fmt: skip
    return found


def _stats(file: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(file.read_text())["benchmarks"][0]["stats"]
    return found


def _action(
    tools: Tools, place: Path, results: Path, history: Path, commit: str, limit: int, save: bool
) -> tuple[bool, float]:
    """The action's own code, as its runner starts it: (whether it fails, seconds)."""
    event = place / f"{commit}.event"
    event.write_text(json.dumps({"head_commit": {"id": commit, "message": "", "url": ""}}))
    inputs = {
        "name": "network", "tool": "pytest", "output-file-path": str(results),
        "external-data-json-path": str(history), "gh-pages-branch": "gh-pages",
        "benchmark-data-dir-path": "bench", "alert-threshold": f"{limit}%",
        "fail-on-alert": "true", "save-data-file": str(save).lower(),
        **dict.fromkeys(("auto-push", "skip-fetch-gh-pages", "comment-always", "comment-on-alert",
                         "summary-always", "go-force-package-suffix"), "false"),
    }  # fmt: skip
    env = {f"INPUT_{key.upper()}": value for key, value in inputs.items()}
    code, said, seconds = tools.run(
        ["node", str(tools.action)], place, **env,
        GITHUB_EVENT_PATH=str(event), GITHUB_REPOSITORY="a/b", GITHUB_WORKFLOW="ci",
    )  # fmt: skip
    alarm = "::error::# :warning: **Performance Alert**" in said
    if bool(code) != alarm or (not code and "successfully" not in said):
        raise RuntimeError(f"github-action-benchmark: exit code {code}:\n{said}")
    return alarm, seconds


def hyperfine(tools: Tools, job: Job) -> Answers:
    """Both programs in one call; slower if 'ran 1.05 ± 0.03 times faster' excludes 1."""
    results = job.place / "hyperfine.json"
    programs = [f"{sys.executable} {tree}/classify.py {PICTURES}" for tree in (job.base, job.head)]
    code, said, seconds = tools.run(
        ["hyperfine", "-N", "--style", "basic", "--export-json", str(results),
         "-n", "base", programs[0], "-n", "head", programs[1]], job.place,
    )  # fmt: skip
    faster = re.search(r"'?(base|head)'? ran\s+([\d.]+) ± ([\d.]+) times", said)
    if code or not faster:
        raise RuntimeError(f"hyperfine: exit code {code}:\n{said}")
    alarm = faster[1] == "base" and float(faster[2]) - float(faster[3]) > 1
    runs = [run["times"] for run in json.loads(results.read_text())["results"]]
    return {"hyperfine": {
        "alarm": alarm, "seconds": seconds, "said": " ".join(faster[0].split()), "times": runs,
    }}  # fmt: skip


INTERLEAVED = f"""
import sys, time
from pathlib import Path
from statistics import median
import numpy as np
from classify import open_model, picture
arms = [open_model(Path(tree) / "model.onnx") for tree in sys.argv[1:]]
image, times = picture(np.random.default_rng(0)), ([], [])
for turn in range({TURNS}):
    for arm, kept in zip(arms, times):
        end = time.perf_counter() + 0.1
        while (begin := time.perf_counter()) < end:
            arm.run(None, image)
            kept.append(time.perf_counter() - begin)
print(*(median(kept) for kept in times))
"""


def interleaved(tools: Tools, job: Job) -> Answers:
    """Written by hand in a minute: both models in one process, in turns; 10 % between medians."""
    code, said, seconds = tools.run(
        [sys.executable, "-c", INTERLEAVED, str(job.base), str(job.head)], job.base
    )
    if code:
        raise RuntimeError(f"interleaved medians: exit code {code}:\n{said}")
    before, after = map(float, said.split())
    return {"interleaved medians 10 %": {
        "alarm": after / before > 1.1, "seconds": seconds, "median": [before, after],
    }}  # fmt: skip


def gate(tools: Tools, job: Job) -> Answers:
    """`gpubench ab` with its defaults: exit code 1 alarms, 3 is undecided."""
    out = job.place / "ab"
    code, said, seconds = tools.run(
        [sys.executable, "-m", "gpubench", "ab", str(job.head / "gate.toml"), "--json",
         "--baseline", f"model={job.base}/model.onnx",
         "--candidate", f"model={job.head}/model.onnx",
         "--cache-dir", str(tools.cache), "-o", str(out)], job.head,
    )  # fmt: skip
    if code not in (0, 1, 3):
        raise RuntimeError(f"gpubench ab: exit code {code}:\n{said}")
    row = json.loads(said)["comparisons"][0]
    kept = ("verdict", "code", "ratio", "low", "high", "pairs", "pair_sd")
    alarm = {0: False, 1: True}.get(code)
    return {"gpubench ab": {
        "alarm": alarm, "seconds": seconds, **{key: row[key] for key in kept},
    }}  # fmt: skip


RULES: tuple[Callable[[Tools, Job], Answers], ...] = (
    pytest_benchmark, hyperfine, interleaved, gate,
)  # fmt: skip
