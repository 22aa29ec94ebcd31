"""One GPU while a task runs: clocks, heat, power, energy, memory, and who else is on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from time import monotonic
from typing import Any

from gpubench.machine import gpu as gpus
from gpubench.machine.cores import read
from gpubench.machine.telemetry.energy import Readings

THROTTLED = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""Clock event reasons that invalidate a repeat."""
POWER_CAP = "SwPowerCap"
REASONS = (*THROTTLED, POWER_CAP, "GpuIdle", "ApplicationsClocksSetting", "SyncBoost")
MPS_SERVER = "nvidia-cuda-mps"
"""How the program of MPS's server is called, in which its clients' work used to run."""
ENOUGH = 5
"""Readings from which a clock that does not move is called so."""
SERIES = 120
"""Readings of a GPU that are kept over time, for one task."""


class Watch:
    """One GPU. A query that the driver refuses for good is not asked again."""

    def __init__(
        self,
        nvml: Any,
        gpu: gpus.Gpu,
        pids: Callable[[], set[int]],
        residents: Callable[[], int],
        rivals: Callable[[], set[int]],
        root: Path,
    ) -> None:
        self._nvml, self._gpu, self._root = nvml, gpu, root
        self._pids, self._residents, self._rivals = pids, residents, rivals
        device = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        whole = gpus.physical(nvml, device)
        self._handle, self._board = device, whole
        self.whole: str = nvml.nvmlDeviceGetUUID(whole)
        """UUID of the GPU that this is, or is a slice of."""
        self._queries: dict[str, Callable[[], float]] = {
            "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(whole) / 1e3,
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(whole, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(whole, nvml.NVML_CLOCK_MEM),
            "reasons": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(whole),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                whole, nvml.NVML_TEMPERATURE_GPU
            ),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(whole) / 1e3,
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(device).used,
            "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(whole).gpu / 100,
            "memory_utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(whole).memory / 100,
            "pcie_generation": lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(whole),
            "pcie_width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(whole),
        }
        # the driver watches the bus for 20 ms to answer: only as often as processes are looked for
        self._slow: dict[str, Callable[[], float]] = {
            "pcie_out_bytes_per_s": lambda: self._crossed(nvml.NVML_PCIE_UTIL_TX_BYTES),
            "pcie_in_bytes_per_s": lambda: self._crossed(nvml.NVML_PCIE_UTIL_RX_BYTES),
        }
        self._most_mhz = gpus.asking(nvml)("nvmlDeviceGetMaxClockInfo", whole, nvml.NVML_CLOCK_SM)
        self._values: dict[str, list[float]] = {}
        self._readings: list[tuple[float, float | None, float | None]] = []
        """Clock, SM MHz, degrees C."""
        self._errors: dict[str, str] = {}
        self.lost = ""
        self._counted, self._drawn = Readings(), Readings()
        self._own_bytes = 0
        self.reasons: dict[str, int] = {}
        """Clock event reason -> samples that showed it."""
        self.computing: set[int] = set()
        self.drawing: set[int] = set()
        """Processes that are not the task's."""
        self.mps: set[int] = set()
        """MPS's server, and the processes that it serves."""

    def _crossed(self, counter: int) -> float:
        return 1e3 * float(self._nvml.nvmlDeviceGetPcieThroughput(self._board, counter))

    def _ask(self, name: str, query: Callable[[], Any]) -> Any | None:
        """The answer; None when it failed, or failed for good before."""
        if self.lost or name in self._errors:
            return None
        try:
            return query()
        except self._nvml.NVMLError_GpuIsLost as error:
            self.lost = f"GPU {self._gpu.index} ({self._gpu.uuid}): {error}"
            self._errors["gpu"] = str(error)
        except (
            self._nvml.NVMLError_NotSupported,
            self._nvml.NVMLError_NoPermission,
            self._nvml.NVMLError_FunctionNotFound,
        ) as error:
            self._errors[name] = str(error)
        except self._nvml.NVMLError:  # it may answer the next time
            pass
        return None

    @property
    def counts(self) -> bool:
        """Whether the GPU has an energy counter (Volta and later)."""
        return len(self._counted) > 1

    @property
    def energy(self) -> Readings:
        """Of the whole GPU: its counter's, else what its power readings add up to."""
        return self._counted if self.counts else self._drawn

    def sample(self, *, processes: bool) -> None:
        now: dict[str, float] = {}
        nvml, at = self._nvml, monotonic()
        for name, query in (self._queries | (self._slow if processes else {})).items():
            value = self._ask(name, query)
            if value is not None:
                now[name] = value
                self._values.setdefault(name, []).append(value)
        if "energy_j" in now:
            self._counted.add(at, now["energy_j"])
        for name in REASONS:
            if int(now.get("reasons", 0)) & getattr(nvml, f"nvmlClocksEventReason{name}"):
                self.reasons[name] = self.reasons.get(name, 0) + 1
        self._readings.append((at, now.get("sm_mhz"), now.get("temperature_c")))
        if "power_w" in now:
            self._drawn.draw(at, now["power_w"])
        if processes:
            running = self._ask(
                "processes", lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)
            )
            drawing = self._ask(
                "graphics", lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses_v3(self._handle)
            )
            served = self._ask(
                "MPS", lambda: nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3(self._handle)
            )
            known = self._pids()
            servers = self._servers(running or [], served or [], known)
            self.mps |= {*servers, *(p.pid for p in served or [])}
            each = {p.pid: p for p in [*(running or []), *(served or [])] if p.pid not in servers}
            running = list(each.values())
            computing = self._others(running, known)
            self.computing |= computing
            self.drawing |= self._others(drawing or [], known)
            self._own([p for p in running if p.pid not in computing], known)

    def _servers(self, running: list[Any], served: list[Any], known: set[int]) -> set[int]:
        """Those of MPS, which compute nothing themselves, by the name of their program.

        In a container it has none here: while MPS serves somebody, one stranger is taken for it.
        """
        clients = {p.pid for p in served}
        strange = sorted({p.pid for p in running} - known - clients)
        names = {pid: self._program(pid) for pid in strange}
        found = {pid for pid, name in names.items() if name.startswith(MPS_SERVER)}
        nameless = [pid for pid, name in names.items() if not name]
        return found or set(nameless[:1] if clients else [])

    def _program(self, pid: int) -> str:
        """What a process runs; '' where /proc here does not know it."""
        return read(self._root / "proc" / str(pid) / "comm") or ""

    def _own(self, ours: list[Any], known: set[int]) -> None:
        """Note the memory of the task's own processes, where the driver tells them apart."""
        rivals = self._rivals()
        if rivals:  # under numbers of the host, theirs cannot be told from ours
            ours = [p for p in ours if p.pid in known - rivals]
        if all(p.usedGpuMemory is not None for p in ours):
            self._own_bytes = max(self._own_bytes, sum(p.usedGpuMemory for p in ours))

    def _others(self, running: list[Any], known: set[int]) -> set[int]:
        """Processes on the GPU that are not the task's.

        In a container the driver may name ours by the host's number, which /proc here does not
        know. So when none of ours is listed, as many such unknown processes as we have on a GPU
        are taken to be ours: replicas that share it, an idle rival of an A/B.
        """
        listed = {p.pid for p in running}
        others = listed - known
        if others == listed:
            unknown = sorted(p for p in others if not (self._root / "proc" / str(p)).exists())
            others -= set(unknown[: self._residents()])
        return others

    def result(self, begin: float | None) -> dict[str, Any]:
        """``begin``: the clock when the first turn began; without it no series is kept."""

        def of(name: str, figure: Callable[[list[float]], Any]) -> Any:
            values = self._values.get(name)
            return figure(values) if values else None

        found = {
            "index": self._gpu.index,
            "uuid": self._gpu.uuid,
            "sm_mhz": of("sm_mhz", spread),
            "memory_mhz": of("memory_mhz", spread),
            "throttle": of("reasons", lambda r: {k: n / len(r) for k, n in self.reasons.items()}),
            "temperature_c_max": of("temperature_c", max),
            "series": self._series(begin),
            "power_w": of("power_w", lambda watts: {"mean": mean(watts), "max": max(watts)}),
            "clock": self._clock(begin),
            "utilisation": of("utilisation", mean),
            "memory_utilisation": of("memory_utilisation", mean),
            "pcie_generation": of("pcie_generation", max),
            "pcie_width": of("pcie_width", max),
            "pcie_out_bytes_per_s": of("pcie_out_bytes_per_s", max),
            "pcie_in_bytes_per_s": of("pcie_in_bytes_per_s", max),
            "mps": bool(self.mps) or None,
            "memory_used_bytes_peak": of("memory_used_bytes", max),
            "own_memory_bytes_peak": self._own_bytes or None,
            "other_processes": sorted(self.computing | self.drawing) or None,
            "not_measured": dict(self._errors) or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _clock(self, begin: float | None) -> str | None:
        """Whether the SM clock was locked, as far as it shows: NVML does not say it.

        'held': it stayed below its maximum and never moved, nor did heat or power hold it.
        'moved': it was not locked. None: always at its maximum, or seen too little.
        """
        seen = [mhz for at, mhz, _ in self._readings if mhz and (begin is None or at >= begin)]
        if len(seen) < ENOUGH or not self._most_mhz:
            return None
        if min(seen) < max(seen):
            return "moved"
        capped = self.reasons.keys() & {*THROTTLED, POWER_CAP}
        return None if capped or seen[0] >= self._most_mhz else "held"

    def _series(self, begin: float | None) -> dict[str, Any] | None:
        if begin is None or not (kept := thinned([r for r in self._readings if r[0] >= begin])):
            return None
        clocks, mhz, degrees = zip(*kept, strict=True)
        return {"t_s": [round(at - begin, 3) for at in clocks], "sm_mhz": [*mhz],
                "temperature_c": [*degrees]}  # fmt: skip


def thinned(
    readings: list[tuple[float, float | None, float | None]],
) -> list[tuple[float, float | None, float | None]]:
    """At most SERIES: of each bucket the one with the lowest clock, which explains slow samples."""
    width = -(-len(readings) // SERIES) or 1
    buckets = [readings[n : n + width] for n in range(0, len(readings), width)]
    return [min(bucket, key=lambda r: math.inf if r[1] is None else r[1]) for bucket in buckets]


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}
