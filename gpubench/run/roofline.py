"""The roofline of each cell: asked for once, between preparing and measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from gpubench.backends.base import Backend
from gpubench.records.record import NO_CEILING, Ceiling, Record, Work
from gpubench.run.agent.client import Asked
from gpubench.run.agent.messages import Count, Counted, Failure, Gauge, Gauged, Request
from gpubench.run.watcher import Watcher
from gpubench.suite.types import Cell, Workload

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
_Place = tuple[str, tuple[int, ...]]
"""Device and cores."""


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
        self._rates: dict[tuple[_Place, str], float] = {}
        self._memory: dict[_Place, Gauged | str] = {}
        self._found: dict[str, Ceiling | str] = {}
        """By cell. Text, here and above: why there is none."""

    def measure(self, cells: Sequence[Cell], watcher: Watcher) -> None:
        """Ask for those of ``cells``, so that nothing is left to be asked for between rounds."""
        wanted: dict[_Place, dict[str, None]] = {}
        for cell in filter(self._due, cells):
            wanted.setdefault(self._place(cell), {}).update(dict.fromkeys(_types(cell)))
        for place, types in wanted.items():
            watcher.task(None, "peaks of the machine", 0)
            self._gauged(place, tuple(types))
        for cell in cells:
            self.of(cell)

    def of(self, cell: Cell) -> Ceiling | None:
        """The roofline of all replicas of ``cell`` together; None where there is none."""
        found = self._of(cell)
        return found if isinstance(found, Ceiling) else None

    def fill(self, record: Record) -> Record:
        """With its ceiling, or why it has none."""
        found = self._of(record.cell)
        if isinstance(found, Ceiling):
            return replace(record, ceiling=found)
        return replace(record, facts=record.facts | {NO_CEILING: found}) if found else record

    def _of(self, cell: Cell) -> Ceiling | str:
        if cell.key not in self._found:
            self._found[cell.key] = self._ask(cell)
        return self._found[cell.key]

    def _due(self, cell: Cell) -> bool:
        """Whether its backend computes anything, and does not refuse (``roofline = False``)."""
        backend = self._backends[cell.backend]
        return backend.computes and backend.roofline

    def _place(self, cell: Cell) -> _Place:
        return cell.device, tuple(sorted({c for own in self._cores_of(cell) for c in own}))

    def _ask(self, cell: Cell) -> Ceiling | str:
        if not self._due(cell):
            return ""
        types, place = _types(cell), self._place(cell)
        if not types:
            return f"no peak of {cell.precision} is measured on {cell.device}"
        work = self._counted(cell.workload)
        if isinstance(work, str):
            return work
        memory = self._gauged(place, types)
        if isinstance(memory, str):
            return memory
        rates = {t: self._rates[place, t] for t in types if self._rates[place, t]}
        if not rates:
            return f"no product of {' or '.join(types)} could be computed on {cell.device}"
        fastest = max(rates, key=rates.__getitem__)
        many = cell.devices if cell.device == "cuda" else 1  # of GPUs one was measured
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

    def _gauged(self, place: _Place, types: tuple[str, ...]) -> Gauged | str:
        """What is known of the memory; the rates of ``types`` are known afterwards, or 0."""
        lacking = tuple(t for t in types if (place, t) not in self._rates)
        known = self._memory.get(place)
        if isinstance(known, str) or (known and not lacking):
            return known
        found = self._reply(Gauge(*place, lacking, memory=known is None), Gauged)
        rates = found.flops_per_s if isinstance(found, Gauged) else {}
        self._rates |= {(place, name): rates.get(name, 0.0) for name in lacking}
        return self._memory.setdefault(place, found)

    def _reply(self, request: Request, wanted: type[_Answer]) -> _Answer | str:
        try:
            reply = self._agent.ask(request)
        except Exception as error:  # noqa: BLE001  # a run must not fail for its roofline
            return f"{type(error).__name__}: {error}"
        if isinstance(reply, wanted):
            return reply
        return reply.reason if isinstance(reply, Failure) else f"unexpected answer: {reply!r}"


def _types(cell: Cell) -> tuple[str, ...]:
    return (CUDA if cell.device == "cuda" else CPU).get(cell.precision, ())
