"""The roofline of each cell: asked for once, between preparing and measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from msgspec.structs import replace

from gpubench.backends.base import Backend
from gpubench.limits import Ceiling, Work
from gpubench.record import Record
from gpubench.run.client import Asked
from gpubench.run.messages import Count, Counted, Failure, Gauge, Gauged, Request
from gpubench.suite import Cell, Workload

CPU = {
    "fp32": ("fp32",), "fp16": ("fp16", "fp32"), "bf16": ("bf16", "fp32"),
    "amp": ("bf16", "fp32"), "int8": ("int8", "fp32"),
}  # fmt: skip
"""Precision -> what its products may be computed in: where one is emulated, another is faster."""
CUDA = {
    "fp32": ("fp32",), "tf32": ("tf32",), "fp16": ("fp16",), "bf16": ("bf16",),
    "amp": ("fp16",), "int8": ("int8", "fp16"),
}  # fmt: skip
_Answer = TypeVar("_Answer", Counted, Gauged)
NOTE = "no_ceiling"
"""In `Record.facts`: why there is no roofline."""


class Ceilings:
    """What an agent counts and measures, kept for the run. Nothing that fails here fails a run."""

    def __init__(
        self,
        agent: Asked,
        cores_of: Callable[[Cell], list[tuple[int, ...]]],
        backends: Mapping[str, Backend],
    ) -> None:
        """``cores_of``: `Plan.cores_of`."""
        self._agent, self._cores_of, self._backends = agent, cores_of, backends
        self._work: dict[Workload, Work | str] = {}
        self._rates: dict[tuple[str, tuple[int, ...], str], float] = {}
        self._memory: dict[tuple[str, tuple[int, ...]], Gauged | str] = {}
        self._found: dict[str, Ceiling | str] = {}
        """By cell; text: why there is none."""

    def of(self, cell: Cell) -> Ceiling | None:
        """The roofline of all replicas of ``cell`` together; see `why` where it is None."""
        found = self._of(cell)
        return found if isinstance(found, Ceiling) else None

    def why(self, cell: Cell) -> str:
        """Why there is none; '' where there is one, or none is due."""
        found = self._of(cell)
        return found if isinstance(found, str) else ""

    def fill(self, record: Record) -> Record:
        """With its ceiling, or why it has none."""
        found = self._of(record.cell)
        if isinstance(found, Ceiling):
            return replace(record, ceiling=found)
        return replace(record, facts=record.facts | {NOTE: found}) if found else record

    def _of(self, cell: Cell) -> Ceiling | str:
        if cell.key not in self._found:
            try:
                self._found[cell.key] = self._ask(cell)
            except Exception as error:  # noqa: BLE001  # a run must not fail for its roofline
                self._found[cell.key] = f"{type(error).__name__}: {error}"
        return self._found[cell.key]

    def _ask(self, cell: Cell) -> Ceiling | str:
        backend = self._backends[cell.backend]
        if not (getattr(backend, "computes", True) and getattr(backend, "roofline", True)):
            return ""
        types = (CUDA if cell.device == "cuda" else CPU).get(cell.precision)
        if types is None:
            return f"no peak of {cell.precision} is measured on {cell.device}"
        work = self._counted(cell.workload)
        if isinstance(work, str):
            return work
        cores = tuple(sorted({core for own in self._cores_of(cell) for core in own}))
        memory = self._gauged(cell.device, cores, types)
        if isinstance(memory, str):
            return memory
        rates = {t: r for t in types if (r := self._rates[cell.device, cores, t])}
        if not rates:
            return f"no product of {' or '.join(types)} could be computed on {cell.device}"
        fastest, many = max(rates, key=rates.__getitem__), 1
        if cell.device == "cuda":
            many = cell.devices  # one was measured
        return Ceiling(
            work=work,
            flops_per_s=many * rates[fastest],
            bytes_per_s=many * memory.bytes_per_s,
            precision=fastest,
            cache_bytes=many * memory.cache_bytes,
        )

    def _counted(self, workload: Workload) -> Work | str:
        same = replace(workload, images="", labels="", calibration="")
        if same not in self._work:
            reply = self._reply(Count(workload), Counted)
            self._work[same] = reply.work if isinstance(reply, Counted) else reply
        return self._work[same]

    def _gauged(self, device: str, cores: tuple[int, ...], types: tuple[str, ...]) -> Gauged | str:
        """Memory's part; the rates of ``types`` are known afterwards."""
        place = device, cores
        lacking = tuple(t for t in types if (*place, t) not in self._rates)
        known = self._memory.get(place)
        if isinstance(known, str) or (known and not lacking):
            return known
        found = self._reply(Gauge(device, cores, lacking, memory=known is None), Gauged)
        if not isinstance(found, Gauged):
            return self._memory.setdefault(place, found) if known is None else found
        for name in lacking:
            self._rates[(*place, name)] = found.flops_per_s.get(name, 0.0)
        return self._memory.setdefault(place, found)

    def _reply(self, request: Request, wanted: type[_Answer]) -> _Answer | str:
        reply = self._agent.ask(request)
        if isinstance(reply, wanted):
            return reply
        return reply.reason if isinstance(reply, Failure) else f"unexpected answer: {reply!r}"
