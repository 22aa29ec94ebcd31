"""What a search measures with: an agent, started when something is to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpubench import units
from gpubench.analysis import roofline
from gpubench.analysis.tune.racing import CHECK
from gpubench.errors import CalibrationError, InputError
from gpubench.records.record import Record
from gpubench.run.agent import messages
from gpubench.run.agent.client import AgentClient, OnProgress
from gpubench.run.agent.messages import Failure, Reply
from gpubench.run.driver import Measuring
from gpubench.run.plan import Durations
from gpubench.run.prepare import Held, NotReady, Ready, prepare
from gpubench.run.record_builder import failed, now
from gpubench.run.roofline import Ceilings
from gpubench.run.tune.search import SEARCH
from gpubench.run.watcher import Watcher
from gpubench.suite.goal import Metric
from gpubench.suite.types import Cell, Policy

if TYPE_CHECKING:
    from gpubench.run.tune.driver import TuneJob

BUILD = 1 / 3
"""Of what is left for the search: the most that one build may take ..."""
LEAST_BUILD_S = 10.0
"""... but never less than this, or nothing could be built."""
TAIL, TAIL_S = 0.9, 3.0
"""Where a percentile above TAIL counts, repeats after the first sample for so long: a p99 needs
hundreds of samples."""


class AgentBench:
    """Measures cells; builds what they need when they are asked for.

    `Record.wall_s` is all that a trial took since the one before it, building too: the part of the
    budget that is gone is the sum over the records.
    """

    def __init__(
        self,
        job: TuneJob,
        agent: AgentClient,
        watcher: Watcher,
        spent_s: float,
        earlier: Sequence[Record] = (),
    ) -> None:
        """``spent_s``: of the budget, by earlier sessions; ``earlier``: their records."""
        self._plan, self._backends, self._watcher = job.plan, job.backends, watcher
        self._agent, self._asked = agent, _Hurried(agent, self._build_s)
        self._search, self._spent_s = job.search, spent_s
        self._began: float | None = None
        """When the trial in hand did; None: nothing has been measured in this session."""
        self._started = ""
        self._tasks: dict[str, Ready | NotReady] = {}
        self._wanted: Cell | None = None
        self.seen = Durations(job.cache_dir)
        self.held = Held(earlier)
        self.ceilings = Ceilings(agent, job.plan.cores_of, job.backends)
        self._measuring = Measuring(agent, job.plan, watcher, self.ceilings, self.seen)
        self.broken: dict[str, str] = {}
        """Modules that the agent cannot import, and why; known once it was started."""

    def workers(self) -> None:
        """Start the agent, unless it runs."""
        if not self._agent.running:
            self._watcher.begin(0)
            self._watcher.task(None, "starting workers (imports, once)", 0)
            self.broken = self._agent.start().errors

    def start(self) -> None:
        """Start the agent, make the references, and measure what hardware can do.

        All of it is before the clock of the budget starts. Raises InputError for a model, weights
        or images that do not serve, for a network that does not answer in time, and for pictures
        that were named to calibrate on and cannot be.
        """
        if self._began is not None:
            return
        self.workers()
        self._prepared = prepare(
            self._asked, self._queue(), self._plan, self._backends, self.broken, self._watcher,
            self.held,
        )  # fmt: skip
        cells = self._plan.cells
        first = self._task(cells[0])
        if isinstance(first, NotReady) and self.held.late:
            assert isinstance(first.why, Failure)  # noqa: S101  # for mypy
            raise InputError(f"{first.why.reason}; {first.why.remedy}")
        if calibrated := [c for c in cells if c.precision == "int8" and c.calibration]:
            self._task(calibrated[0])
        self.ceilings.measure(cells, self._watcher)
        self._watcher.begin(-1)
        self._began, self._started = monotonic(), now()

    def measure(self, cell: Cell, repeat: int) -> Record:
        """One repeat, or why there is none: what the cell needs is built first.

        A run checks all answers in its first one, a search in `CHECK`.
        """
        self.start()
        task = self._task(cell)
        if isinstance(task, NotReady):
            return self._ended(failed(cell, repeat, task.why, ()))
        words = f"round {repeat}" if repeat else "first try"
        left_s = max(0.0, self._search.budget_s - self.elapsed())
        run_repeat = 0 if repeat == CHECK else 1
        record = self._measuring.one(task, self._policy(repeat), run_repeat, words, left_s)
        return self._ended(replace(record, repeat=repeat))

    def best(self, cell: Cell, metric: Metric) -> float | None:
        """By the roofline; None before the start."""
        if self._began is None:
            return None
        return roofline.best(cell, self.ceilings.of(cell), metric)

    def elapsed(self) -> float:
        """Seconds of the budget that are gone."""
        return self._spent_s + (0.0 if self._began is None else monotonic() - self._began)

    def mark(self) -> None:
        """What took place since the last trial is no trial's, but of the budget it is gone."""
        if self._began is not None:
            self._lap()

    # ------------------------------------------------------------------ within

    def _policy(self, repeat: int) -> Policy:
        policy, metrics = self._plan.suite.policy, self._search.goal.metrics
        if repeat and any(m.kind == "latency" and m.quantile > TAIL for m in metrics):
            return replace(policy, duration_s=max(policy.duration_s, TAIL_S))
        return policy

    def _task(self, cell: Cell) -> Ready | NotReady:
        if cell.key not in self._tasks:
            self._wanted = cell
            self._tasks[cell.key] = next(self._prepared)
        return self._tasks[cell.key]

    def _queue(self) -> Iterator[Cell]:
        """What `prepare` is to do next, whenever it asks."""
        while self._wanted is not None:
            yield self._wanted

    def _ended(self, record: Record) -> Record:
        """With all the time that the trial took; the next one begins here."""
        return replace(record, started=self._started, wall_s=self._lap())

    def _lap(self) -> float:
        """Seconds of the budget that went since the last one."""
        moment = monotonic()
        wall = moment - (self._began or moment)
        self._began, self._spent_s, self._started = moment, self._spent_s + wall, now()
        return wall

    def _build_s(self) -> float:
        """How long a build may take now."""
        left = SEARCH * self._search.budget_s - self.elapsed()
        return max(LEAST_BUILD_S, BUILD * left)


class _Hurried:
    """An agent whose builds must not outlast a part of the budget."""

    def __init__(self, agent: AgentClient, build_s: Callable[[], float]) -> None:
        self._agent, self._build_s = agent, build_s

    def ask(self, request: messages.Request, progress: OnProgress | None = None) -> Reply:
        if not isinstance(request, messages.Prepare):
            return self._agent.ask(request, progress)
        limit = min(request.timeout_s, self._build_s())
        reply = self._agent.ask(replace(request, timeout_s=limit), progress)
        if not isinstance(reply, Failure):
            return reply
        if reply.kind == "timeout":
            words = f"not built within {units.clock(limit)}, what the budget left for one build"
            return Failure("timeout", words, "raise --budget")
        if reply.kind == CalibrationError.kind and not request.cell.calibration:
            # no mistake of the user's, who has named no pictures: the search goes on without int8
            return Failure("error", reply.reason, reply.remedy)
        return reply
