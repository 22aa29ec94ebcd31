"""The control groups that this process is in, versions 1 and 2, with all above them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpubench.machine import cores

THROTTLED_NS = {"throttled_usec": 1000, "throttled_time": 1}
"""Where cpu.stat counts what a quota has cost, in version 2 and 1 -> ns of its unit."""


def directories() -> Iterator[Path]:
    """Where their files are; of a container some of these exist on the host only."""
    lines = (cores.read(cores.ROOT / "proc/self/cgroup") or "").splitlines()
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        group = Path(path.strip("/"))
        for up in (group, *group.parents):
            yield cores.ROOT / "sys/fs/cgroup" / controllers / up


def throttled_ns() -> int:
    """For how long a CPU quota has kept what is in them off the cores, all cores added up."""
    words = [line.split() for at in directories()
             for line in (cores.read(at / "cpu.stat") or "").splitlines()]  # fmt: skip
    return sum(THROTTLED_NS.get(name, 0) * int(value) for name, value in words)
