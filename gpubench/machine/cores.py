"""The CPU cores a process may use, where they lie, and how the kernel writes sets of them.

Also the small readers of /proc and /sys: whatever a machine does not tell is None.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from gpubench.errors import GpubenchError

Cores = tuple[int, ...]
ROOT = Path("/")
"""Tests point it at a made-up machine."""


def usable_cores() -> list[int]:
    """Logical CPUs this process may use: NUMA nodes contiguous, hyper-threads of a core adjacent.

    So a slice of the list is a set of whole neighbouring cores.
    """
    try:
        cores = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        cores = set(range(os.cpu_count() or 1))
    return sorted(cores, key=lambda core: (*place(core), core))


def pin(cores: Collection[int]) -> None:
    """Let this thread run on ``cores`` only; none: wherever it may. GpubenchError: not on all."""
    if not cores:
        return
    with suppress(OSError):  # none of them is left
        os.sched_setaffinity(0, cores)
    here = os.sched_getaffinity(0)  # the kernel leaves out those that a cpuset forbids
    if here != set(cores):
        raise GpubenchError(
            f"cannot run on cores {cpu_ranges(cores)}, only {cpu_ranges(here)} may be used now: "
            "the cpuset was made smaller, or cores went offline; give them back, or start a new run"
        )


def place(core: int) -> tuple[int, int, int]:
    """(NUMA node, socket, first hyper-thread of its core)."""
    base = ROOT / f"sys/devices/system/cpu/cpu{core}"
    nodes = sorted(path.name for path in base.glob("node[0-9]*"))
    siblings = cpu_list(read(base / "topology/thread_siblings_list") or "")
    package = number(base / "topology/physical_package_id")
    return (
        int(nodes[0].removeprefix("node")) if nodes else 0,
        package or 0,
        min(siblings, default=core),
    )


def cpu_list(text: str) -> list[int]:
    """The kernel's notation: '0-2,8' -> [0, 1, 2, 8]."""
    out: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def cpu_ranges(cores: Iterable[int]) -> str:
    """The same the other way round: (0, 1, 2, 8) -> '0-2,8'."""
    runs: list[list[int]] = []
    for core in sorted(set(cores)):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)


def read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    text = read(path)
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None
