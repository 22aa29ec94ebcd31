"""What happened to the machine while a task ran: clocks, heat, power, memory, other processes.

Runs in the agent, never in a worker. GPUs are sampled by a thread through NVML; of the CPU only
counters are read, at the start and at the end, because an observer costs what it observes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from threading import Event, Thread
from time import monotonic
from typing import Any, Self

from gpubench import gpu as gpus
from gpubench.run.cpu import CpuWindow

THROTTLED = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""Clock event reasons that invalidate a repeat."""
POWER_CAP = "SwPowerCap"
REASONS = (*THROTTLED, POWER_CAP, "GpuIdle", "ApplicationsClocksSetting", "SyncBoost")
JOIN_LIMIT_S = 10.0
SERIES = 120
"""Readings of a GPU that are kept over time, for one task."""
STEAL_LIMIT = 0.02
BUSY_LIMIT = 0.10

Spread = dict[str, float]


class Telemetry:
    """Observes ``gpu_indices`` (as CUDA numbers them here) and ``cores`` ([]: all of them).

    ``pids`` gives the task's own processes, of which a GPU holds ``residents()`` at once. Enter
    when they have started; ``result``, ``flags`` and ``invalid`` are for after the exit, the first
    of which counts. GPUs are sampled ``hz`` times a second, the processes on them once a second.
    ``root`` is where /proc and /sys are.
    """

    def __init__(
        self,
        gpu_indices: list[int],
        cores: list[int],
        pids: Callable[[], set[int]],
        nvml: Any = None,
        hz: float = 10,
        root: Path = Path("/"),
        residents: Callable[[], int] = lambda: 1,
    ) -> None:
        self._indices = gpu_indices
        self._pids = pids
        self._residents = residents
        self._nvml = nvml
        self._period = 1 / hz
        self._root = root
        self._cpu = CpuWindow(cores, pids, root)
        self._watches: list[_Watch] = []
        self._stop = Event()
        self._thread: Thread | None = None
        self._ticks = 0
        self._error = ""
        self.lost = ""
        """Which GPU fell off its bus meanwhile: no result of it means anything."""
        self._start = self._seconds = 0.0
        self._turns: list[float] = []
        self.running = False

    def __enter__(self) -> Self:
        self.running = True
        self._start = monotonic()
        self._cpu.begin()
        if self._indices:
            self._thread = Thread(target=self._observe, name="telemetry", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.running:  # a second exit would count the task's CPU time twice
            return
        self.running = False
        self._cpu.end()  # first: the workers are about to vanish
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_LIMIT_S)
            if self._thread.is_alive():
                self._error = f"NVML has not answered for {JOIN_LIMIT_S:g} s"
        self._seconds = monotonic() - self._start

    def turn(self, at_ns: int) -> None:
        """The replicas begin to sample together when the monotonic clock reads ``at_ns``.

        Offsets in the records' samples count from there. Call it for every turn of the task.
        """
        self._turns.append(at_ns / 1e9)

    def _observe(self) -> None:
        with gpus.session(self._nvml) as nvml:
            if nvml is None:
                self._error = "NVML cannot be initialised"
                return
            try:
                visible = {gpu.index: gpu for gpu in gpus.visible_gpus(nvml)}
                self._watches = [
                    _Watch(nvml, visible[index], self._pids, self._residents, self._root)
                    for index in self._indices
                    if index in visible
                ]
            except nvml.NVMLError_GpuIsLost as error:
                self.lost = str(error)
                return
            except nvml.NVMLError as error:
                self._error = str(error)
                return
            for index in [index for index in self._indices if index not in visible]:
                self.lost = f"GPU {index}: NVML no longer shows it"
            self._sample()

    def _sample(self) -> None:
        """Until told to stop, and once more then."""
        per_second = max(1, round(1 / self._period))
        for watch in self._watches:
            watch.read_energy()
        due, last = monotonic(), False
        while not last:
            last = self._stop.is_set()
            for watch in self._watches:
                watch.sample(processes=last or self._ticks % per_second == 0)
            self._ticks += 1
            due = max(due + self._period, monotonic())
            self._stop.wait(due - monotonic())
        for watch in self._watches:
            watch.read_energy()
            self.lost = self.lost or watch.lost

    def result(self) -> dict[str, Any]:
        """JSON-able; a field that the machine does not offer is left out."""
        found: dict[str, Any] = {"seconds": self._seconds, "cpu": self._cpu.result()}
        if self._indices:
            found["gpu_samples"] = self._ticks
            begin = self._turns[0] if self._turns else None
            found["gpus"] = [watch.result(begin) for watch in self._watches]
            found["turns_s"] = [at - self._turns[0] for at in self._turns]
        if self._error or self.lost:
            found["gpu_error"] = self._error or self.lost
        return found

    def flags(self) -> list[str]:
        """Keys of `gpubench.record.FLAGS`."""
        cpu = self._cpu.result()
        seen = {name for watch in self._watches for name in watch.reasons}
        truth = {
            "CPU-STEAL": cpu.get("steal_share", 0.0) > STEAL_LIMIT,
            "CPU-BUSY": cpu.get("other_busy_share", 0.0) > BUSY_LIMIT,
            "THROTTLED": not seen.isdisjoint(THROTTLED),
            "POWER-CAP": POWER_CAP in seen,
            "CO-TENANT": any(watch.computing or watch.drawing for watch in self._watches),
        }
        return [flag for flag, holds in truth.items() if holds]

    @property
    def invalid(self) -> bool:
        """Outside evidence against this repeat: throttled, or another process computed here.

        A desktop that draws on the GPU is flagged but does not invalidate: it would every repeat.
        """
        return any(
            watch.computing or not watch.reasons.keys().isdisjoint(THROTTLED)
            for watch in self._watches
        )


class _Watch:
    """One GPU. A query that the driver refuses for good is not asked again."""

    def __init__(
        self,
        nvml: Any,
        gpu: gpus.Gpu,
        pids: Callable[[], set[int]],
        residents: Callable[[], int],
        root: Path,
    ) -> None:
        self._nvml, self._gpu, self._root = nvml, gpu, root
        self._pids, self._residents = pids, residents
        device = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        whole = gpus.physical(nvml, device)
        self._handle, self._whole = device, whole
        self._queries: dict[str, Callable[[], float]] = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(whole, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(whole, nvml.NVML_CLOCK_MEM),
            "reasons": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(whole),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                whole, nvml.NVML_TEMPERATURE_GPU
            ),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(whole) / 1e3,
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(device).used,
        }
        self._values: dict[str, list[float]] = {}
        self._readings: list[tuple[float, float | None, float | None]] = []
        """Clock, SM MHz, degrees C."""
        self._errors: dict[str, str] = {}
        self.lost = ""
        self._energy: list[tuple[float, float]] = []
        self.reasons: dict[str, int] = {}
        """Clock event reason -> samples that showed it."""
        self.computing: set[int] = set()
        self.drawing: set[int] = set()
        """Processes that are not the task's."""

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

    def read_energy(self) -> None:
        """Read the GPU's energy counter: at the begin and at the end."""
        millijoules = self._ask(
            "energy_j", lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._whole)
        )
        if millijoules is not None:
            self._energy.append((monotonic(), millijoules / 1e3))

    def sample(self, *, processes: bool) -> None:
        now: dict[str, float] = {}
        at = monotonic()
        for name, query in self._queries.items():
            value = self._ask(name, query)
            if value is not None:
                now[name] = value
                self._values.setdefault(name, []).append(value)
                if name == "reasons":
                    self._note(int(value))
        self._readings.append((at, now.get("sm_mhz"), now.get("temperature_c")))
        if processes:
            nvml = self._nvml
            self.computing |= self._others("processes", nvml.nvmlDeviceGetComputeRunningProcesses)
            self.drawing |= self._others("graphics", nvml.nvmlDeviceGetGraphicsRunningProcesses)

    def _note(self, mask: int) -> None:
        for name in REASONS:
            if mask & getattr(self._nvml, f"nvmlClocksEventReason{name}"):
                self.reasons[name] = self.reasons.get(name, 0) + 1

    def _others(self, name: str, query: Callable[[Any], Any]) -> set[int]:
        """Processes on the GPU that are not the task's.

        In a container the driver may name ours by the host's number, which /proc here does not
        know. So when none of ours is listed, as many such unknown processes as we have on a GPU
        are taken to be ours: replicas that share it, an idle rival of an A/B.
        """
        listed = {p.pid for p in self._ask(name, lambda: query(self._handle)) or []}
        others = listed - self._pids()
        if others == listed:
            unknown = sorted(p for p in others if not (self._root / "proc" / str(p)).exists())
            others -= set(unknown[: self._residents()])
        return others

    def result(self, begin: float | None) -> dict[str, Any]:
        """``begin``: the clock when the first turn began; without it no series is kept."""
        values = dict(self._values)
        reasons = values.pop("reasons", [])
        found: dict[str, Any] = {"index": self._gpu.index, "uuid": self._gpu.uuid}
        for name in ("sm_mhz", "memory_mhz"):
            if name in values:
                found[name] = spread(values[name])
        if reasons:
            found["throttle"] = {k: n / len(reasons) for k, n in self.reasons.items()}
        if "temperature_c" in values:
            found["temperature_c_max"] = max(values["temperature_c"])
        if begin is not None and (kept := thinned([r for r in self._readings if r[0] >= begin])):
            found["series"] = {
                "t_s": [round(at - begin, 3) for at, _, _ in kept],
                "sm_mhz": [mhz for _, mhz, _ in kept],
                "temperature_c": [degrees for _, _, degrees in kept],
            }
        if "power_w" in values:
            watts = values["power_w"]
            found["power_w"] = {"mean": mean(watts), "max": max(watts)}
        if len(self._energy) == 2:
            (begin, before), (end, after) = self._energy
            found |= {"energy_j": after - before, "energy_seconds": end - begin}
        if "memory_used_bytes" in values:
            found["memory_used_bytes_peak"] = max(values["memory_used_bytes"])
        others = self.computing | self.drawing
        if others:
            found["other_processes"] = sorted(others)
        if self._errors:
            found["not_measured"] = dict(self._errors)
        return found


def thinned(
    readings: list[tuple[float, float | None, float | None]],
) -> list[tuple[float, float | None, float | None]]:
    """At most SERIES: of each bucket the one with the lowest clock, which explains slow samples."""
    width = -(-len(readings) // SERIES) or 1
    buckets = [readings[n : n + width] for n in range(0, len(readings), width)]
    return [min(bucket, key=lambda r: math.inf if r[1] is None else r[1]) for bucket in buckets]


def spread(values: list[float]) -> Spread:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": median(values), "max": max(values)}
