"""Energy over exactly the time in which replicas sampled, from counters read again and again.

What counts is the difference of a counter between two moments, interpolated between its readings:
nobody has to wake up at the moment itself. Linux's powercap (RAPL; Khan et al., "RAPL in Action",
ACM TOMPECS 3, 2018) counts whole CPU packages, whoever keeps them busy; NVML whole GPUs; the
sensors of a Jetson the whole module, with CPU, GPU and memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from gpubench.machine.cores import number, read

POWERCAP = "sys/class/powercap"
INA3221 = "sys/bus/i2c/drivers/ina3221"
"""Linux's driver of a chip that watches three supply rails; Jetsons have one or two."""
SUPPLIES = (
    ("VDD_IN",), ("POM_5V_IN",), ("VIN",),  # Orin NX and Nano, Xavier NX; Nano; Thor
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)  # fmt: skip
"""Rails, as their makers name them, that make up what a module draws; none is behind another."""


class Readings:
    """Joules that one counter had counted, by the clock (s)."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self._joules: list[float] = []
        self._watts = 0.0

    def __len__(self) -> int:
        return len(self.clock)

    def add(self, at: float, joules: float) -> None:
        """``joules`` since any moment, but always the same one."""
        if not self.clock or at > self.clock[-1]:
            self.clock.append(at)
            self._joules.append(joules)

    def draw(self, at: float, watts: float) -> None:
        """Where there is no counter: power, whose area (trapezoids) is the energy."""
        joules = 0.0
        if self.clock:
            joules = self._joules[-1] + (at - self.clock[-1]) * (watts + self._watts) / 2
        self._watts = watts
        self.add(at, joules)

    def at(self, moment: float) -> float:
        """Joules at ``moment``, which lies between the first reading and the last; needs two."""
        n = min(max(1, bisect_right(self.clock, moment)), len(self.clock) - 1)
        begin, end = self.clock[n - 1], self.clock[n]
        share = (moment - begin) / (end - begin)
        return self._joules[n - 1] + share * (self._joules[n] - self._joules[n - 1])


def used(
    meters: Sequence[Readings], spans: Sequence[tuple[float, float]]
) -> tuple[float, float] | None:
    """(joules of all ``meters``, seconds) in the parts of ``spans`` that have been read.

    None when one of them has not been read twice, or went backwards: a driver that was restarted.
    """
    if not meters or min(map(len, meters)) < 2:
        return None
    first, last = max(m.clock[0] for m in meters), min(m.clock[-1] for m in meters)
    joules = seconds = 0.0
    for begin, end in ((max(begin, first), min(end, last)) for begin, end in spans):
        if end > begin:
            each = [m.at(end) - m.at(begin) for m in meters]
            if min(each) < 0:
                return None
            joules, seconds = joules + sum(each), seconds + end - begin
    return (joules, seconds) if seconds else None


class Rapl:
    """The counters of all CPU packages, Intel's and AMD's (which Linux shows as intel-rapl too)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._zones = {path: number(path / "max_energy_range_uj") for path in packages(root)}
        self._before: dict[Path, int] = {}
        self._total = 0

    def read(self) -> float | None:
        """Joules since the first reading; None where there is no counter, or one is not readable.

        To be read before a counter wraps around twice: each quarter of an hour at full power.
        """
        if not self._zones:
            return None
        for zone, most in self._zones.items():
            now = number(zone / "energy_uj")
            if now is None:
                return None
            more = now - self._before.get(zone, now)
            self._total += more if more >= 0 else more + (most or 0)
            self._before[zone] = now
        return self._total / 1e6


def packages(root: Path = Path("/")) -> list[Path]:
    """Powercap's zones of whole packages; not the parts of one, and not the platform's."""
    found = sorted((root / POWERCAP).glob("intel-rapl:*"))
    return [zone for zone in found if (read(zone / "name") or "").startswith("package")]


class Board:
    """What a whole module draws, by its own sensors; nothing where its rails are not known."""

    def __init__(self, root: Path = Path("/")) -> None:
        found = {
            read(label): (label.with_name(f"in{n}_input"), label.with_name(f"curr{n}_input"))
            for n in "123"
            for label in sorted((root / INA3221).glob(f"*/hwmon/hwmon*/in{n}_label"))
        }
        self.rails = next((s for s in SUPPLIES if found.keys() >= set(s)), ())
        self._files = [found[rail] for rail in self.rails]

    def watts(self) -> float | None:
        """None where there are no such sensors, or one cannot be read."""
        each = [(number(volts), number(amperes)) for volts, amperes in self._files]
        known = [mv * ma / 1e6 for mv, ma in each if mv is not None and ma is not None]
        return sum(known) if each and len(known) == len(each) else None
