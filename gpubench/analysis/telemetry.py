"""What the machine went through while a cell was measured, from peaks and telemetry in records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from msgspec import Struct

from gpubench.analysis.stats import Estimate
from gpubench.analysis.summary import Summary
from gpubench.records.record import ENERGY_S, Record


class Gauge(Struct, frozen=True):
    """One reading; of several, ``worst`` (min or max) is shown."""

    name: str
    unit: str
    worst: Callable[[list[float]], float]
    read: Callable[[Record], Iterable[float | None]]
    help: str


def number(value: Any, *path: str) -> float | None:
    """What lies at ``path`` in plain JSON, where that is a finite number."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def _host(r: Record) -> Iterable[float | None]:
    yield float(r.host_bytes() or 0) or None


def _start(r: Record) -> Iterable[float | None]:
    seconds = number(r.telemetry, "start_s")
    yield None if seconds is None else seconds * 1e9


def _skew(r: Record) -> Iterable[float | None]:
    late = [x.late_ns for visit in r.visits for x in visit]
    yield float(max(late)) if r.cell.replicas > 1 and any(late) else None


def _gpu(*path: str) -> Callable[[Record], Iterable[float | None]]:
    """The value at ``path`` of every GPU."""
    return lambda r: [number(gpu, *path) for gpu in r.telemetry.get("gpus", [])]


def _own(name: str) -> Callable[[Record], Iterable[float | None]]:
    return lambda r: [number(r.facts, "device_time_ns", name)]


GAUGES = (
    Gauge("GPU time", "ns", max, _own("run"),
          "of one batch by the GPU's clock, from its first piece of work to its last"),
    Gauge("GPU copy in", "ns", max, _own("copy_in"), "of one batch by the GPU's clock"),
    Gauge("outside the GPU", "ns", max, _own("outside"),
          "of one batch that is waited for: the launch before, the wait after"),
    Gauge("cost of GPU time", "ns", max, _own("cost"),
          "what reading the GPU's clock added to a batch; no sample has it"),
    Gauge("GPU busy", "fraction", min, _gpu("utilisation"),
          "share of the time in which anything ran on a GPU, of the idlest; NVML's"),
    Gauge("PCIe in", "bytes", max, _gpu("pcie_in_bytes_per_s"), "most that came in a second"),
    Gauge("start", "ns", max, _start, "until every replica had started and opened its session"),
    Gauge("start skew", "ns", max, _skew,
          "how long after the common start the last replica went on"),
    Gauge("host memory", "bytes", max, _host, "peak resident set, all replicas added up"),
    Gauge("GPU memory", "bytes", max, _gpu("memory_used_bytes_peak"),
          "most that was in use on a GPU, by whomever"),
    Gauge("replicas' GPU memory", "bytes", max, _gpu("own_memory_bytes_peak"),
          "most that the cell's own processes used on a GPU"),
    Gauge("SM clock min", "MHz", min, _gpu("sm_mhz", "min"), "lowest SM clock seen"),
    Gauge("SM clock max", "MHz", max, _gpu("sm_mhz", "max"), "highest SM clock seen"),
    Gauge("temperature", "°C", max, _gpu("temperature_c_max"), "highest of a GPU"),
    Gauge("mean power", "W", max, _gpu("power_w", "mean"),
          "of the GPU and repeat that drew most; NVML averages over up to a second"),
    Gauge("peak power", "W", max, _gpu("power_w", "max"), "highest reading of a GPU"),
)  # fmt: skip


def peak(s: Summary, gauge: Gauge) -> float | None:
    """The worst reading of all repeats; None where there is none."""
    seen = [value for r in s.timed for value in gauge.read(r) if value is not None]
    return gauge.worst(seen) if seen else None


def energy(s: Summary, *, above_idle: bool = False) -> Estimate | None:
    """Joules per image: mean of logs over repeats. None where no repeat's energy was counted."""
    counted = [r for r in s.timed if r.telemetry.get("energy")]
    if not counted:
        return None
    if _joules(s, above_idle):
        return s.level(f"energy {above_idle}", partial(_joules, above_idle=above_idle))
    if max(r.telemetry["energy"]["seconds"] for r in counted) < ENERGY_S:
        return Estimate(
            why=f"under {ENERGY_S:g} s: energy needs longer windows "
            "(policy.duration_s, max_samples)"
        )
    if above_idle and all(r.telemetry["energy"].get("idle_watts") is None for r in counted):
        return Estimate(why="no idle power known")
    return Estimate(why="no more than idle" if above_idle else "the counter stood still")


def _joules(s: Summary, above_idle: bool) -> dict[int, float]:
    counted = {r.repeat: r.joules_per_image(above_idle=above_idle) for r in s.timed
               if r.telemetry.get("energy")}  # fmt: skip
    return {n: j for n, j in counted.items() if j and j > 0}
