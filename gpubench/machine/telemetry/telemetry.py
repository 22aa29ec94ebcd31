"""What happened to the machine while a task ran: clocks, heat, power, memory, other processes.

Runs in the agent, never in a worker. GPUs are sampled by a thread through NVML; of the CPU only
counters are read, at the start and at the end, because an observer costs what it observes. Where
its energy counter can be read, a thread does that ten times a second: a file for each package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any, Self

from gpubench.machine import gpu as gpus
from gpubench.machine.telemetry.cpu_monitor import CpuWindow
from gpubench.machine.telemetry.energy import Board, Rapl, Readings, used
from gpubench.machine.telemetry.gpu_monitor import POWER_CAP, THROTTLED, Watch

JOIN_LIMIT_S = 10.0
STEAL_LIMIT = 0.02
BUSY_LIMIT = 0.10
TURN_S = 1.0
"""Of several turns: counters move ten times a second, so a shorter one would get its rival's."""
IDLE_S = 1.0
"""How long a GPU, or the CPU, is looked at before the first task there."""


class Telemetry:
    """Observes ``gpu_indices`` (as CUDA numbers them here) and ``cores`` ([]: all of them).

    ``pids`` gives the task's own processes, of which a GPU holds ``residents()`` at once. Enter
    when they have started; ``result``, ``flags`` and ``invalid`` are for after the exit, the first
    of which counts. GPUs are sampled ``hz`` times a second, the processes on them once a second.
    ``root`` is where /proc and /sys are. ``rivals``: those of ``pids`` that are not this team's.
    ``idle_watts``: what was drawn before, for `energy`.
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
        rivals: Callable[[], set[int]] = set,
        idle_watts: float | None = None,
    ) -> None:
        self._indices = gpu_indices
        self._pids, self._root = pids, root
        self._residents, self._rivals = residents, rivals
        self._idle_watts = idle_watts
        self._nvml = nvml
        self._period = 1 / hz
        self._cpu = CpuWindow(cores, pids, root)
        self._watches: list[Watch] = []
        self._rapl, self._board = Rapl(root), Board(root)
        self._source = "rapl"
        self._host = Readings()
        """Of the CPU's packages, or of the module that CPU and GPU are on."""
        if not gpu_indices:
            self._read_host()
        self._stop = Event()
        self._thread: Thread | None = None
        self._ticks = 0
        self._error = ""
        self.lost = ""
        """Which GPU fell off its bus meanwhile: no result of it means anything."""
        self._start = self._seconds = 0.0
        self._turns: list[float] = []
        self._look = False
        self.running = False

    def __enter__(self) -> Self:
        self.running = True
        self._start = monotonic()
        self._cpu.begin()
        if self.counts:
            self._read_host()
        if self._indices or self.counts:
            self._thread = Thread(target=self._watch, name="telemetry", daemon=True)
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
        self._look = self._look or not self._turns  # short ones follow one another closely
        self._turns.append(at_ns / 1e9)

    def _watch(self) -> None:
        """What ends it early is told, and ends nothing else."""
        try:
            self._observe()
        except Exception as error:  # noqa: BLE001  # NVML's own, and what its Python module raises
            self._error = f"{type(error).__name__}: {error}"
        self.lost = self.lost or next((w.lost for w in self._watches if w.lost), "")

    def _observe(self) -> None:
        if not self._indices:
            while not self._stop.wait(self._period):
                self._read_host()
            self._read_host()
            return
        with gpus.session(self._nvml) as nvml:
            if nvml is None:
                self._error = "NVML cannot be initialised"
                return
            try:
                visible = {gpu.index: gpu for gpu in gpus.visible_gpus(nvml)}
                told = (self._pids, self._residents, self._rivals, self._root)
                shown = [visible[index] for index in self._indices if index in visible]
                self._watches = [Watch(nvml, gpu, *told) for gpu in shown]
            except nvml.NVMLError_GpuIsLost as error:
                self.lost = str(error)
                return
            for index in (index for index in self._indices if index not in visible):
                self.lost = f"GPU {index}: NVML no longer shows it"
            self._sample()

    @property
    def counts(self) -> bool:
        """Whether the CPU's energy can be read."""
        return len(self._host) > 0

    def _read_host(self) -> None:
        at = monotonic()
        if not self._indices and (joules := self._rapl.read()) is not None:
            self._host.add(at, joules)
        elif (watts := self._board.watts()) is not None:
            self._source = "board"
            self._host.draw(at, watts)

    def _sample(self) -> None:
        """Until told to stop, and once more then."""
        per_second = max(1, round(1 / self._period))
        due, last = monotonic(), False
        while not last:
            last = self._stop.is_set()
            look = last or self._look or self._ticks % per_second == 0
            self._look = False
            for watch in self._watches:
                watch.sample(processes=look)
            if not any(len(watch.energy) for watch in self._watches):
                self._read_host()
            self._ticks += 1
            due = max(due + self._period, monotonic())
            self._stop.wait(due - monotonic())

    def energy(self, windows: Sequence[tuple[int, int] | None]) -> dict[str, Any] | None:
        """{joules, seconds, source, idle_watts} inside ``windows``: of each turn (begin, end), in
        ns from the common start that `turn` told. None where nothing counts, and of short turns.

        ``source``: 'nvml' (counters of the task's GPUs, whole ones also of slices), 'nvml-power'
        (an older GPU: its power readings, added up), 'rapl' (all CPU packages) or 'board' (a module
        with CPU and GPU: its sensors' readings, added up).
        """
        turns = zip(self._turns, windows, strict=False)
        spans = [(at + w[0] / 1e9, at + w[1] / 1e9) for at, w in turns if w]
        short = len(spans) > 1 and min(end - begin for begin, end in spans) < TURN_S
        found = None if short else self._used(spans)
        if found is None:
            return None
        joules, seconds = found
        return {"joules": joules, "seconds": seconds, "source": self._meters()[1],
                "idle_watts": self._idle_watts}  # fmt: skip

    def watts(self) -> float | None:
        """Mean over all the time that it observed."""
        found = self._used([(self._start, self._start + self._seconds)])
        return found and found[0] / found[1]

    def _used(self, spans: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
        return used(self._meters()[0], spans)

    def _meters(self) -> tuple[list[Readings], str]:
        """Whose readings count, and what a record calls their source."""
        gpus_tell = any(len(watch.energy) for watch in self._watches)
        if not self._indices or (self.counts and not gpus_tell):
            return [self._host], self._source
        whole = {watch.whole: watch.energy for watch in self._watches}  # slices share a GPU
        meters = list(whole.values()) if len(self._watches) == len(self._indices) else []
        return meters, "nvml" if all(watch.counts for watch in self._watches) else "nvml-power"

    def result(self) -> dict[str, Any]:
        """JSON-able; a field that the machine does not offer is left out."""
        found: dict[str, Any] = {"seconds": self._seconds, "cpu": self._cpu.result()}
        if self._indices:
            found["gpu_samples"] = self._ticks
            begin = self._turns[0] if self._turns else None
            found["gpus"] = [watch.result(begin) for watch in self._watches]
            found["turns_s"] = [at - self._turns[0] for at in self._turns]
        if self._error or self.lost:
            found["gpu_error" if self._indices else "error"] = self._error or self.lost
        return found

    def flags(self) -> list[str]:
        """Keys of `gpubench.records.record.FLAGS`."""
        cpu = self._cpu.result()
        seen = {name for watch in self._watches for name in watch.reasons}
        truth = {
            "CPU-STEAL": cpu.get("steal_share", 0.0) > STEAL_LIMIT,
            "CPU-BUSY": cpu.get("other_busy_share", 0.0) > BUSY_LIMIT,
            "THROTTLED": not seen.isdisjoint(THROTTLED),
            "POWER-CAP": POWER_CAP in seen,
            "CO-TENANT": any(watch.computing or watch.drawing for watch in self._watches),
            "UNWATCHED": bool(self._indices and self._error),
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


def idle_watts(gpu_indices: list[int], nvml: Any = None, root: Path = Path("/")) -> float | None:
    """What these GPUs, or the CPU, draw while nothing of a task runs; None where nothing counts.

    Takes `IDLE_S`, in which counters that are brought up to date ten times a second move enough.
    """
    seen = Telemetry(gpu_indices, [], set, nvml, root=root)
    if not gpu_indices and not seen.counts:
        return None
    with seen:
        sleep(IDLE_S)
    return seen.watts()
