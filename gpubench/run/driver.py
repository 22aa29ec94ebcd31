"""Walks the plan: prepares, measures in rounds, appends records. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from time import monotonic
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.stats import two_way
from gpubench.backends.base import Backend
from gpubench.cache import Cache
from gpubench.errors import ChangedError, GpubenchError, InputError, RecordError
from gpubench.records.reader import begun, read, scan
from gpubench.records.record import WRONG, Header, Record, RecordFile
from gpubench.records.writer import Writer
from gpubench.run import availability
from gpubench.run.agent.client import AgentClient, Asked
from gpubench.run.agent.messages import Done, Failure, Measure, Reply
from gpubench.run.cluster.node_group import Nodes
from gpubench.run.cluster.ray_cluster import Cluster
from gpubench.run.plan import Durations, Plan, task_seconds
from gpubench.run.prepare import Held, Ready, prepare
from gpubench.run.record_builder import check_machine, failed, measured, now, skipped
from gpubench.run.roofline import Ceilings
from gpubench.run.watcher import NOTHING_STORED, Watcher
from gpubench.suite.types import Cell, Policy

T = TypeVar("T")
MAX_INVALID = 2
"""How often a repeat is measured again because outside evidence spoiled it."""


class RunJob(Struct, frozen=True):
    """Everything a run needs."""

    plan: Plan
    backends: Mapping[str, Backend]
    header: Header
    out: Path
    cache_dir: Path
    resume: bool = False
    required: tuple[str, ...] = ()


def run(job: RunJob, watcher: Watcher, cluster: Cluster | None = None) -> RecordFile:
    """Measure every cell of the plan; returns what the record file holds afterwards.

    ``cluster``: the nodes that have joined, where there are several. A job to resume of which
    nothing is stored begins.

    KeyboardInterrupt passes through after every process was ended; finished records stay.
    """
    anew = job.resume and not begun(job.out)
    if anew:
        job = replace(job, resume=False)
    with Writer(job.out, None if job.resume else job.header) as writer:
        walk = _Walk(job, writer, watcher)
        walk.skip()
        cells = [cell for cell in job.plan.cells if walk.open_repeats(cell)]
        watcher.said(_begins(job, len(cells)) + (NOTHING_STORED if anew else ""))
        if cells:
            modules = availability.preload(cells, job.backends)
            with _agent(job, modules, cluster) as agent:
                try:
                    walk.measure(agent, cells)
                finally:
                    walk.seen.save()
    return read(job.out)


def _agent(job: RunJob, modules: list[str], cluster: Cluster | None) -> AgentClient | Nodes:
    if cluster:
        asked_for = "" if job.cache_dir == Cache(None).root else str(job.cache_dir)
        return Nodes(cluster, job.plan, modules, asked_for)
    return AgentClient(modules, job.cache_dir, job.out / "agent.log")


def _begins(job: RunJob, cells: int) -> str:
    done = len(job.plan.cells) - cells
    before = f", {done} measured before" if job.resume else ""
    return (
        f"{job.plan.suite.name}: {units.count(cells, 'cell')} to measure{before}, "
        f"{len(job.plan.skips)} skipped; records go to {job.out}"
    )


class _Walk:
    """The state of one run."""

    def __init__(self, job: RunJob, writer: Writer, watcher: Watcher) -> None:
        self._job, self._plan, self._policy = job, job.plan, job.plan.suite.policy
        self._writer, self._watcher = writer, watcher
        self._done: dict[tuple[str, int], float | None] = {}
        """(cell key, repeat) -> the repeat's value, where the second stage may ask for it."""
        self._ended: set[str] = set()
        """Keys of cells that are not tried again."""
        self._needed: dict[str, int] = {}
        """Cell key -> repeats that the second stage wants, once all pilots are whole."""
        self._gap = ("", 0)
        self.seen = Durations(job.cache_dir)
        self._held = Held()
        if job.resume:  # read only now: whoever wrote to the file before has ended
            self._resume()

    def _resume(self) -> None:
        """Records are taken one at a time, so that those of a long run need no room."""
        out = self._job.out
        header, records = scan(out, [])
        check_machine(out, header, self._job.header)
        if header.suite != self._plan.suite:
            raise RecordError(
                f"{out}: holds suite {header.suite.name!r} with other contents; "
                "resume with the suite and the options it was started with"
            )
        for record in records:
            if record.status == "ok" or record.kind in WRONG:
                self._note(record)
                self._held.check(record.cell, record.contents)

    def skip(self) -> None:
        """Write a record for every cell that cannot run here."""
        for skip in self._plan.skips:
            if (skip.cell.key, 0) not in self._done:
                self._record(skipped(skip, self._job.required))

    def open_repeats(self, cell: Cell) -> list[int]:
        """Repeats that are still to be measured, as far as is known by now."""
        repeats = range(self._policy.max_repeats)
        return [repeat for repeat in repeats if self._wanted(cell, repeat)]

    def measure(self, agent: AgentClient | Nodes, cells: Sequence[Cell]) -> None:
        backends = self._job.backends
        self._watcher.begin(0)
        self._watcher.task(None, "starting workers (imports, once)", 0)
        broken = agent.start().errors
        tasks: dict[str, Ready] = {}
        try:
            for ready in prepare(agent, cells, self._plan, backends, broken, self._watcher,
                                 self._held):  # fmt: skip
                if isinstance(ready, Ready):
                    tasks[ready.cell.key] = ready
                else:
                    self._record(failed(ready.cell, 0, ready.why, self._job.required))
        except InputError:
            if not self._job.resume:
                self._writer.path.unlink(missing_ok=True)  # nothing was measured
            raise
        ceilings = Ceilings(agent, self._plan.cores_of, backends)
        ceilings.measure([task.cell for task in tasks.values()], self._watcher)
        measuring = Measuring(agent, self._plan, self._watcher, ceilings, self.seen,
                              self._job.required)  # fmt: skip
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
            last = pilot if repeat < pilot else repeat + 1
            ahead = {k: self._ahead(task.cell, repeat, last) for k, task in tasks.items()}
            left = sum(ahead.values())
            for cell in cells:
                words = f"repeat {repeat + 1}"
                self._record(measuring.one(tasks[cell.key], self._policy, repeat, words, left))
                left += self._ahead(cell, repeat + 1, last) - ahead[cell.key]

    def _ahead(self, cell: Cell, first: int, last: int) -> float:
        """Seconds that the cell's repeats from ``first`` to before ``last`` will take."""
        seconds = task_seconds(cell, self._policy, self.seen)
        return seconds * sum(self._wanted(cell, repeat) for repeat in range(first, last))

    def _wanted(self, cell: Cell, repeat: int) -> bool:
        if cell.key in self._ended or (cell.key, repeat) in self._done:
            return False
        return repeat < self._policy.repeats or repeat < self._repeats(cell.key)

    def _repeats(self, key: str) -> int:
        """As far as is known by now: the pilot's, then as many as the spread of all asks for."""
        pilot = self._policy.repeats
        if self._policy.max_repeats > pilot and not self._needed and not self._missing():
            alike: dict[str, dict[str, dict[int, float]]] = {}
            for c in self._plan.cells:
                values = {n: v for n in range(pilot) if (v := self._done.get((c.key, n)))}
                alike.setdefault(c.scenario, {})[c.key] = values
            for cells in alike.values():
                fit = two_way(cells, pilot)
                target = self._policy.target_half_width
                self._needed |= {cell: fit.needed(cell, target) for cell in cells}
        return max(pilot, self._needed.get(key, pilot))

    def _missing(self) -> bool:
        """Whether the pilot is not whole yet, of what is still tried. The last gap is looked at
        first: there are many cells, and this is asked for each."""
        gaps = ((c.key, n) for c in self._plan.cells for n in range(self._policy.repeats))
        for key, repeat in chain([self._gap], gaps):
            if key and key not in self._ended and (key, repeat) not in self._done:
                self._gap = key, repeat
                return True
        return False

    def _record(self, record: Record) -> None:
        record = append(self._writer, record)
        self._note(record)
        self._watcher.recorded(record)

    def _note(self, record: Record) -> None:
        """A cell that did not end well is not tried again."""
        asked = record.repeat < self._policy.repeats < self._policy.max_repeats
        self._done[record.cell.key, record.repeat] = record.value() if asked else None
        if record.status != "ok":
            self._ended.add(record.cell.key)


class Measuring(Struct, frozen=True):
    """How the rounds of a run, and the trials of a search, measure a cell."""

    agent: Asked
    plan: Plan
    watcher: Watcher
    ceilings: Ceilings
    seen: Durations
    required: tuple[str, ...] = ()

    def one(self, task: Ready, policy: Policy, repeat: int, words: str, left_s: float) -> Record:
        """One repeat in fresh processes, again while outside evidence speaks against it."""
        cell = task.cell
        cores = self.plan.cores_of(cell)
        request = Measure(cell, policy, task.artefact, task.reference, cores, repeat=repeat)
        begin, started = monotonic(), now()

        def ask() -> Reply:
            self.watcher.task(cell, words, left_s)
            return self.agent.ask(request, lambda progress: self.watcher.step(cell, progress))

        reply, invalidated = valid(ask, spoilt)
        wall = monotonic() - begin
        if isinstance(reply, Done):
            self.seen.note(cell, policy, wall / (invalidated + 1))
        record = outcome(task, repeat, reply, self.ceilings, self.required)
        return replace(record, invalidated=invalidated, started=started, wall_s=wall)


def outcome(
    task: Ready, repeat: int, reply: Reply, ceilings: Ceilings, required: Sequence[str] = ()
) -> Record:
    """What became of a repeat of ``task``. Raises ChangedError for pictures that are others now."""
    if isinstance(reply, Done):
        record = measured(task.cell, repeat, reply, task.prepare_ns)
        return ceilings.fill(replace(record, contents=task.contents))
    if isinstance(reply, Failure) and reply.kind == ChangedError.kind:
        raise ChangedError(reply.reason)
    return failed(task.cell, repeat, reply, required)


def valid(ask: Callable[[], T], spoilt: Callable[[T], bool]) -> tuple[T, int]:
    """What a measurement gave, and how often before outside evidence had ``spoilt`` it."""
    for invalidated in count():
        found = ask()
        if invalidated == MAX_INVALID or not spoilt(found):
            break
    return found, invalidated


def spoilt(reply: Reply) -> bool:
    """Whether outside evidence speaks against it."""
    return isinstance(reply, Done) and reply.invalid


def append(writer: Writer, record: Record) -> Record:
    """Write ``record``; what is stored of it. A full disk is an error that says how to go on."""
    try:
        return writer.append(record)
    except OSError as error:
        raise GpubenchError(
            f"{writer.path}: cannot be written: {error.strerror}; every earlier record "
            "is kept: make room, then go on with --resume"
        ) from error
