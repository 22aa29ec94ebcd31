"""Walks the plan: prepares, measures in rounds, appends records. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from gpubench.backends.base import Backend
from gpubench.errors import GpubenchError, RecordError
from gpubench.measure.protocol import repeats_needed
from gpubench.record import Header, Record, RecordFile, Writer, read
from gpubench.run.client import AgentClient, Asked
from gpubench.run.cluster import Cluster
from gpubench.run.messages import Done, Measure, Progress
from gpubench.run.nodes import Nodes
from gpubench.run.plan import Durations, Plan, task_seconds
from gpubench.run.prepare import Ready, prepare
from gpubench.run.results import failed, measured, now, skipped
from gpubench.suite import Cell

MAX_INVALID = 2
"""How often a repeat is measured again because outside evidence spoiled it."""


class Watcher(Protocol):
    """Whoever shows the run to a person; every method returns at once."""

    def begin(self, total: int) -> None:
        """Preparing (``total`` 0) or measuring so many tasks starts."""

    def task(self, cell: Cell | None, words: str, remaining_s: float) -> None:
        """This is now in hand."""

    def step(self, cell: Cell, progress: Progress) -> None:
        """A live figure of the task in hand."""

    def recorded(self, record: Record) -> None:
        """A record was written."""


class Job(Struct, frozen=True):
    """Everything a run needs besides its plan."""

    header: Header
    out: Path
    cache_dir: Path
    resume: bool = False
    required: tuple[str, ...] = ()


def run(
    plan: Plan,
    job: Job,
    backends: Mapping[str, Backend],
    watcher: Watcher,
    cluster: Cluster | None = None,
) -> RecordFile:
    """Measure every cell of ``plan``; returns what the record file holds afterwards.

    ``cluster``: the nodes that have joined, where there are several.

    KeyboardInterrupt passes through after every process was ended; finished records stay.
    """
    done = _resumed(plan, job) if job.resume else {}
    with Writer(job.out, None if job.resume else job.header) as writer:
        walk = _Walk(plan, job, writer, watcher, done)
        walk.skip()
        cells = [cell for cell in plan.cells if walk.open_repeats(cell)]
        if cells:
            modules = {m: None for cell in cells for m in backends[cell.backend].preload}
            own = AgentClient(list(modules), job.cache_dir, job.out / "agent.log")
            with Nodes(cluster, plan, own) if cluster else own as agent:
                walk.measure(agent, cells, backends)
    return read(job.out)


def _resumed(plan: Plan, job: Job) -> dict[tuple[str, int], Record]:
    """Records that need not be measured again, by (cell key, repeat)."""
    old = read(job.out)
    if old.header.fingerprint != job.header.fingerprint:
        raise RecordError(
            f"{old.path}: was measured on another machine or with other library versions; "
            "start a new run"
        )
    if old.header.suite != plan.suite:
        raise RecordError(
            f"{old.path}: holds suite {old.header.suite.name!r} with other contents; "
            "resume with the suite and the options it was started with"
        )
    return {
        (r.cell.key, r.repeat): r for r in old.records if r.status == "ok" or r.kind == "parity"
    }


class _Walk:
    """The state of one run."""

    def __init__(
        self,
        plan: Plan,
        job: Job,
        writer: Writer,
        watcher: Watcher,
        done: dict[tuple[str, int], Record],
    ) -> None:
        self._plan, self._job = plan, job
        self._policy = plan.suite.policy
        self._writer, self._watcher = writer, watcher
        self._done = done
        self._ended = {key for (key, _), record in done.items() if record.status == "failed"}
        self._seen = Durations(job.cache_dir)

    def skip(self) -> None:
        """Write a record for every cell that cannot run here."""
        for skip in self._plan.skips:
            if (skip.cell.key, 0) not in self._done:
                self._record(skipped(skip, self._job.required))

    def open_repeats(self, cell: Cell) -> list[int]:
        """Repeats that are still to be measured, as far as is known by now."""
        repeats = range(self._policy.max_repeats)
        return [repeat for repeat in repeats if self._wanted(cell, repeat)]

    def measure(self, agent: Asked, cells: Sequence[Cell], backends: Mapping[str, Backend]) -> None:
        self._watcher.begin(0)
        self._watcher.task(None, "starting workers (imports, once)", 0)
        broken = agent.start().errors
        tasks: dict[str, Ready] = {}
        for ready in prepare(agent, cells, self._plan, backends, broken, self._watcher):
            if isinstance(ready, Ready):
                tasks[ready.cell.key] = ready
            else:
                self._end(failed(ready.cell, 0, ready.why, self._job.required))
        begin, pilot = monotonic(), self._policy.repeats
        due = [(c.key, r) for c in cells for r in self.open_repeats(c) if r < pilot]
        self._watcher.begin(sum(key in tasks for key, _ in due))
        for repeat in range(self._policy.max_repeats):
            cells = [c for c in self._plan.round(repeat) if self._wanted(c, repeat)]
            cells = [cell for cell in cells if cell.key in tasks]
            if not cells:
                continue
            if repeat >= pilot:
                if monotonic() - begin > self._policy.budget_s:
                    break
                self._watcher.begin(len(cells))
            for cell in cells:
                last = pilot if repeat < pilot else repeat + 1
                left = self._estimate(tasks, range(repeat, last))
                self._task(agent, tasks[cell.key], repeat, left)

    def _estimate(self, tasks: Mapping[str, Ready], repeats: range) -> float:
        return sum(
            task_seconds(task.cell, self._policy, self._seen)
            for task in tasks.values()
            for repeat in repeats
            if self._wanted(task.cell, repeat)
        )

    def _wanted(self, cell: Cell, repeat: int) -> bool:
        if cell.key in self._ended or (cell.key, repeat) in self._done:
            return False
        if repeat < self._policy.repeats:
            return True
        pilot = [self._done.get((cell.key, index)) for index in range(self._policy.repeats)]
        if None in pilot:
            return False
        values = [value for record in pilot if record and (value := record.value())]
        return repeat < repeats_needed(values, self._policy.target_half_width)

    def _task(self, agent: Asked, task: Ready, repeat: int, left_s: float) -> None:
        cell = task.cell
        words = f"repeat {repeat + 1}"
        request = Measure(
            cell, self._policy, task.artefact, task.reference, self._plan.cores_of(cell)
        )
        begin, started, invalidated = monotonic(), now(), 0
        while True:
            self._watcher.task(cell, words, left_s)
            reply = agent.ask(request, lambda progress: self._watcher.step(cell, progress))
            if not isinstance(reply, Done) or not reply.invalid or invalidated == MAX_INVALID:
                break
            invalidated += 1
        wall = monotonic() - begin
        if isinstance(reply, Done):
            self._seen.note(cell, self._policy, wall / (invalidated + 1))
            record = measured(cell, repeat, reply, task.prepare_ns)
        else:
            record = failed(cell, repeat, reply, self._job.required)
        self._end(replace(record, invalidated=invalidated, started=started, wall_s=wall))

    def _end(self, record: Record) -> None:
        """Write a record; a cell that did not end well is not tried again."""
        if record.status != "ok":
            self._ended.add(record.cell.key)
        self._record(record)

    def _record(self, record: Record) -> None:
        append(self._writer, record)
        self._done[record.cell.key, record.repeat] = record
        self._watcher.recorded(record)


def append(writer: Writer, record: Record) -> None:
    """Write ``record``; a full disk is an error that says how to go on."""
    try:
        writer.append(record)
    except OSError as error:
        raise GpubenchError(
            f"{writer.path}: cannot be written: {error.strerror}; every earlier record "
            "is kept: make room, then go on with --resume"
        ) from error
