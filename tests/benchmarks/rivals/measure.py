"""The same commits through gpubench's gate and through the rules that people use.

    python -m tests.benchmarks.rivals.measure run --condition shared --action .../index.js -o raw/
    python -m tests.benchmarks.rivals.measure run --condition reserved --core 0 --action ... -o raw/
    python -m tests.benchmarks.rivals.measure truth -o raw/
    python -m tests.benchmarks.rivals.measure report raw/ -o reports/reference/trust/

A scratch repository holds a network of 100 equal layers (`project/`). Its commits change the README
only, or add layers, and the model file that the network is exported to: exact extra work. Every
rule judges every commit, one after the other in random order; the base's stored benchmark is an
earlier process's, some commits and at least two minutes before, and serves once. The same command
goes on where it was stopped. Needs hyperfine (of the system's packages) and github-action-benchmark
(`git clone`, `npm ci`, `npx tsc -p tsconfig.build.json`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.rivals import rules, table
from tests.benchmarks.rivals.table import COUNTS, DOCS, LAYERS
from tests.benchmarks.trust import machine

PROJECT = Path(__file__).parent / "project"
AGE_S = 120.0
AHEAD = 6
"""So many results of the base are kept for commits to come."""


def plan(condition: str, seed: int) -> list[tuple[int, str]]:
    """(number, kind) of every commit, in random order."""
    kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
    random.Random(f"{condition}/{seed}").shuffle(kinds)
    return [*enumerate(kinds)]


def git(tree: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b", *words],
        check=True, text=True, capture_output=True,
    ).stdout  # fmt: skip


def repository(place: Path) -> tuple[Path, Path]:
    """(checkout of the base, checkout for the heads) of one new repository."""
    base, head = place / "base", place / "head"
    shutil.copytree(PROJECT, base)
    subprocess.run([sys.executable, "network.py"], cwd=base, check=True)
    git(base, "init", "-q", "-b", "main")
    git(base, "add", "-A")
    git(base, "commit", "-q", "-m", "A small network")
    git(base, "worktree", "add", "-q", "--detach", str(head))
    return base, head


def commit(head: Path, number: int, kind: str) -> None:
    """The head becomes a commit on the base: more layers, or a line of documentation."""
    git(head, "checkout", "-q", "--detach", "main")
    code, readme = head / "network.py", head / "README.md"
    if kind == DOCS:
        readme.write_text(readme.read_text() + f"\nNote {number}.\n")
    else:
        layers = LAYERS[kind]
        code.write_text(code.read_text().replace("LAYERS = 100", f"LAYERS = {layers}"))
        subprocess.run([sys.executable, "network.py"], cwd=head, check=True)
    git(head, "commit", "-q", "-a", "-m", f"{kind} {number}")


def run(
    condition: str, only: str, seed: int, core: int | None, action: Path, out: Path, end: float
) -> None:
    """Append one JSON line a commit to ``out``/CONDITION-SEED.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{condition}-{seed}.jsonl"
    finished = {row["number"] for row in machine.kept(target)}
    prefix = () if core is None else ("taskset", "-c", str(core))
    with ExitStack() as held:
        scratch = held.enter_context(TemporaryDirectory(prefix="rivals-"))
        file = held.enter_context(target.open("a"))
        if condition == "bursts":
            burner = subprocess.Popen(
                [*prefix, sys.executable, "-c", machine.BURSTS], start_new_session=True
            )
            held.callback(burner.wait)
            held.callback(burner.kill)
        place = Path(scratch)
        tools = rules.Tools(prefix, action, place / "cache")
        base, head = repository(place)
        stored = [_store(tools, base, place, at) for at in range(AHEAD)]
        for number, kind in plan(condition, seed):
            if number in finished or only not in ("", kind):
                continue
            if time.monotonic() > end:
                return
            at, path, base_s = stored.pop(0)
            time.sleep(max(0.0, at + AGE_S - time.monotonic()))
            commit(head, number, kind)
            job = rules.Job(base, head, path, base_s, place / f"job-{number}")
            job.place.mkdir()
            row: dict[str, Any] = {
                "number": number, "kind": kind, "condition": condition, "seed": seed,
                "load": round(os.getloadavg()[0], 1), "base_age_s": round(time.monotonic() - at),
                "rules": {},
            }  # fmt: skip
            order = [*rules.RULES]
            random.Random(f"{condition}/{seed}/{number}").shuffle(order)
            row["order"] = [rule.__name__ for rule in order]
            for rule in order:
                row["rules"] |= rule(tools, job)
            print(json.dumps(row), file=file, flush=True)
            shutil.rmtree(job.place)
            stored.append(_store(tools, base, place, AHEAD + number))


def _store(tools: rules.Tools, base: Path, place: Path, at: int) -> tuple[float, Path, float]:
    """(when, where, seconds)."""
    path = place / f"stored-{at}-{time.monotonic_ns()}.json"
    seconds = rules.store(tools, base, path)
    return time.monotonic(), path, seconds


def truth(core: int | None, out: Path, seconds: float) -> None:
    """Write ``out``/truth.json: layers -> medians of one inference in turns of 50 ms, ms."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="rivals-") as scratch:
        base, head = repository(Path(scratch))
        trees = {}
        for kind in LAYERS:
            commit(head, 0, kind)
            trees[kind] = Path(scratch) / f"{LAYERS[kind]}.onnx"
            shutil.copy(head / "model.onnx", trees[kind])
        prefix = [] if core is None else ["taskset", "-c", str(core)]
        said = subprocess.run(
            [*prefix, sys.executable, "-c", TRUTH, str(seconds), *map(str, trees.values())],
            cwd=base, check=True, text=True, capture_output=True,
        ).stdout  # fmt: skip
    turns = dict(zip(trees, json.loads(said), strict=True))
    (out / "truth.json").write_text(json.dumps(turns, indent=1) + "\n")


TRUTH = """
import json, random, sys, time
from pathlib import Path
from statistics import median
import numpy as np
from classify import open_model, picture
arms = [(open_model(Path(path)), []) for path in sys.argv[2:]]
image, end = picture(np.random.default_rng(0)), time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for arm, kept in random.sample(arms, len(arms)):
        until, times = time.perf_counter() + 0.05, []
        while (begin := time.perf_counter()) < until:
            arm.run(None, image)
            times.append(time.perf_counter() - begin)
        kept.append(round(1e3 * median(times), 5))
print(json.dumps([kept for _, kept in arms]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    measure, true = commands.add_parser("run"), commands.add_parser("truth")
    measure.add_argument("--condition", choices=table.CONDITIONS, required=True)
    measure.add_argument("--only", default="", choices=tuple(LAYERS), help="this kind of commit")
    measure.add_argument("--seed", type=int, default=0)
    measure.add_argument("--action", type=Path, required=True)
    measure.add_argument("--minutes", type=float, default=600)
    true.add_argument("--seconds", type=float, default=60)
    show = commands.add_parser("report")
    show.add_argument("raw", type=Path)
    for command in (measure, true):
        command.add_argument("--core", type=int, help="the only one that is used")
    for command in (measure, true, show):
        command.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "run":
        end = time.monotonic() + 60 * given.minutes
        run(given.condition, given.only, given.seed, given.core, given.action, given.output, end)
    elif given.command == "truth":
        truth(given.core, given.output, given.seconds)
    else:
        table.write(given.raw, given.output)


if __name__ == "__main__":
    main()
