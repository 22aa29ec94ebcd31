"""The CPU's side of telemetry: counters of /proc and /sys at the start and the end of a window."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpubench.machine.cores import number, read
from gpubench.machine.telemetry.gpu_monitor import spread

ENOUGH_TICKS = 50
"""The kernel counts in ticks of 10 ms; a share of fewer than this many would be noise."""


_Times = tuple[int, int, int]
"""Kernel ticks over a set of cores since boot: all, idle, stolen."""


class CpuWindow:
    """Steal, load, frequency, and how busy processes other than ``pids()`` kept ``cores``.

    Other processes' time = the cores' busy time less the task's own CPU time. The task's own is the
    time of its living processes plus what their parent has collected from dead ones, so nothing is
    lost when a worker ends before the window does. Time that the task spends on other cores is
    subtracted too: exact for pinned replicas, too kind to the machine otherwise.
    """

    def __init__(
        self, cores: list[int], pids: Callable[[], set[int]], root: Path = Path("/")
    ) -> None:
        self._cores, self._pids = cores, pids
        self._proc, self._cpus = root / "proc", root / "sys/devices/system/cpu"
        self._parents: set[int] = set()
        self._before: _Times | None = None
        self._after: _Times | None = None
        self._own = 0
        self._mhz: list[float] = []
        self._load: float | None = None

    def begin(self) -> None:
        """Start the window; the task's processes must have started."""
        self._parents = {s[1] for pid in self._pids() if (s := self._stat(pid))}
        self._own = -self._own_ticks()
        self._before = self._times()
        self._mhz = self._frequencies()

    def end(self) -> None:
        """End the window; best before the task's processes leave."""
        self._after = self._times()
        self._own += self._own_ticks()
        self._mhz += self._frequencies()
        words = (read(self._proc / "loadavg") or "").split()
        self._load = float(words[0]) if words else None

    def result(self) -> dict[str, Any]:
        """JSON-able; {} where there is no /proc, and no shares when the window was too short."""
        found: dict[str, Any] = {}
        if self._load is not None:
            found["load_1min"] = self._load
        if self._mhz:
            found["mhz"] = spread(self._mhz)
        if self._before is None or self._after is None:
            return found
        total, idle, steal = (b - a for a, b in zip(self._before, self._after, strict=True))
        if total < ENOUGH_TICKS:
            return found
        found["steal_share"] = steal / total
        if self._parents:
            found["own_busy_share"] = self._own / total
            found["other_busy_share"] = max(0, total - idle - steal - self._own) / total
        return found

    def _times(self) -> _Times | None:
        wanted = {f"cpu{core}" for core in self._cores} or {"cpu"}
        lines = (read(self._proc / "stat") or "").splitlines()
        rows = [
            [int(x) for x in words[1:9]]  # guest time is in user time already
            for words in map(str.split, lines)
            if words and words[0] in wanted
        ]
        if not rows:
            return None
        return sum(map(sum, rows)), sum(r[3] + r[4] for r in rows), sum(r[7] for r in rows)

    def _own_ticks(self) -> int:
        """Ticks of the living, and of the dead that a parent has collected.

        Read again when a process was collected meanwhile: it would be missed or counted twice.
        """
        while True:
            dead = self._collected()
            living = sum(s[2] + s[3] for pid in self._pids() if (s := self._stat(pid)))
            if dead == self._collected():
                return living + dead

    def _collected(self) -> int:
        return sum(s[3] for pid in self._parents if (s := self._stat(pid)))

    def _stat(self, pid: int) -> tuple[int, int, int, int] | None:
        """(pid, parent, own ticks, ticks of its collected children) of a process, if it exists."""
        text = read(self._proc / str(pid) / "stat")
        if text is None:
            return None
        words = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
        return pid, int(words[1]), int(words[11]) + int(words[12]), int(words[13]) + int(words[14])

    def _frequencies(self) -> list[float]:
        """MHz of each core now; [] where the kernel (often a virtual machine's) does not say."""
        cores = self._cores or range(os.cpu_count() or 1)
        khz = (number(self._cpus / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores)
        return [each / 1e3 for each in khz if each is not None]
