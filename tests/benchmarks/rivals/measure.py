"""The same commits through gpubench's gate and through the rules that people use.

    python -m tests.benchmarks.rivals.measure run --condition shared --action .../index.js -o OUT
    python -m tests.benchmarks.rivals.measure run --condition reserved --core 0 --action ... -o OUT
    python -m tests.benchmarks.rivals.measure report -o OUT      # reports/reference/trust

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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpubench.machine.environment import cpu_model
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


def reserve(core: int | None) -> tuple[str, ...]:
    """What precedes a command that has the core for itself: other work gets 5 % of its time."""
    return () if core is None else ("chrt", "-r", "1", "taskset", "-c", str(core))


def run(
    condition: str, only: str, seed: int, core: int | None, action: Path, out: Path, end: float
) -> None:
    """Append one JSON line a commit to ``out``/rivals.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / "rivals.jsonl"
    finished = {
        row["number"]
        for row in machine.kept(target)
        if (row["condition"], row["seed"]) == (condition, seed)
    }
    prefix = reserve(core)
    with TemporaryDirectory(prefix="rivals-") as scratch, target.open("a") as file:
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
                "cpu": cpu_model(), "load": round(os.getloadavg()[0], 1),
                "base_age_s": round(time.monotonic() - at), "rules": {},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    measure = commands.add_parser("run")
    measure.add_argument("--condition", choices=table.CONDITIONS, required=True)
    measure.add_argument("--only", default="", choices=tuple(LAYERS), help="this kind of commit")
    measure.add_argument("--seed", type=int, default=0)
    measure.add_argument("--action", type=Path, required=True)
    measure.add_argument("--minutes", type=float, default=600)
    show = commands.add_parser("report")
    measure.add_argument("--core", type=int, help="that others are kept from (needs root)")
    for command in (measure, show):
        command.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "run":
        end = time.monotonic() + 60 * given.minutes
        run(given.condition, given.only, given.seed, given.core, given.action, given.output, end)
    else:
        table.write(given.output)


if __name__ == "__main__":
    main()
