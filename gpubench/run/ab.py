"""Interleaved A/B: pairs of fresh processes, each arm active in turn, until no verdict can change.

Of a pair both processes are open before either is timed; each has two turns, in the order ABBA or
BAAB, drawn at random. So a drift of the machine that is linear over the pair cancels, and under
identical arms a pair's difference is as likely d as -d, which is all that the test needs. Where
both do not fit into memory together they follow one another, in the order AB or BA.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import get_args

from msgspec import Struct
from msgspec.structs import replace

from gpubench import environment
from gpubench.analysis import gate
from gpubench.analysis.interleaved import pair_of
from gpubench.backends.base import Backend
from gpubench.errors import RecordError
from gpubench.record import Arm, Header, Record, RecordFile, Stage, Writer, read
from gpubench.run.client import AgentClient
from gpubench.run.driver import MAX_INVALID, Watcher, append
from gpubench.run.messages import Begin, Done, End, Failure, Measure, Reply, Step, Waiting
from gpubench.run.plan import Plan
from gpubench.run.prepare import Ready, prepare
from gpubench.run.results import failed, measured, now, skipped
from gpubench.suite import Rule

ARMS: tuple[Arm, ...] = get_args(Arm)
SCREEN_SHARE = 0.6
"""Of the budget; the rest is for measuring flagged cells again."""
LEAST = 2
"""Pairs of every cell, whatever the budget: fewer have no interval."""


class Side(Struct, frozen=True):
    """One arm."""

    arm: Arm
    plan: Plan
    """Its cells; the n-th of both plans' ``planned`` are compared."""
    header: Header
    python: Path | None = None
    """Its interpreter; None: this one."""
    bundle: int = 1
    """Runs that count as one (`Measure.bundle`)."""


class Job(Struct, frozen=True):
    """Everything an A/B needs."""

    sides: tuple[Side, Side]
    """Baseline, candidate."""
    backends: Mapping[str, Backend]
    rule: Rule
    budget_s: float
    """Wall time since the start of measuring after which no pair begins."""
    out: Path
    cache_dir: Path
    seed: int
    resume: bool = False
    required: tuple[str, ...] = ()


def run(
    job: Job, watcher: Watcher, agent: AgentClient | None = None
) -> tuple[RecordFile, RecordFile]:
    """Measure until every verdict is final or the budget ends; the arms' record files.

    ``agent``: a running one that serves both arms and is not stopped here. KeyboardInterrupt passes
    through after every process of ours was ended; finished pairs stay.
    """
    with ExitStack() as stack:
        job.out.mkdir(parents=True, exist_ok=True)
        watcher.begin(0)
        crew = _Crew(job, agent, stack)
        if agent is None:
            watcher.task(None, "starting workers (imports, once)", 0)
            crew.start()
        headers = {side.arm: _header(side, crew.environments) for side in job.sides}
        done = _resumed(job, headers) if job.resume else []
        writers = {}
        for arm, header in headers.items():
            writer = Writer(job.out / arm, None if job.resume else header)
            writers[arm] = stack.enter_context(writer)
        _Walk(job, crew, writers, watcher, done).measure()
    return read(job.out / "baseline"), read(job.out / "candidate")


def modules(job: Job) -> list[str]:
    """What the workers of both arms import."""
    cells = [cell for side in job.sides for cell in side.plan.cells]
    return sorted({m for cell in cells for m in job.backends[cell.backend].preload})


def _header(side: Side, environments: Mapping[Arm, environment.Environment]) -> Header:
    """With the environment of the arm's own interpreter."""
    found = environments.get(side.arm)
    if not found:
        return side.header
    return replace(side.header, environment=found, fingerprint=environment.fingerprint(found))


def _resumed(job: Job, headers: Mapping[Arm, Header]) -> list[tuple[Record, Record]]:
    """The pairs that both arms have a good record of."""
    files = {arm: read(job.out / arm) for arm in ARMS}
    for arm, file in files.items():
        old, new = file.header, headers[arm]
        if old.fingerprint != new.fingerprint:
            raise RecordError(f"{file.path}: was measured on another machine; start a new run")
        if (old.suite, old.planned) != (new.suite, new.planned) or not (
            old.pairing and new.pairing and old.pairing.rule == new.pairing.rule
        ):
            raise RecordError(f"{file.path}: holds another comparison; resume with its options")
    places = {c.key: i for i, c in enumerate(headers["candidate"].planned)}
    first = headers["baseline"].planned
    before = {(r.cell.key, r.repeat): r for r in files["baseline"].records}
    return [
        (b, c)
        for c in files["candidate"].records
        if (b := before.get((first[places[c.cell.key]].key, c.repeat)))
        and b.status == c.status == "ok"
    ]


class _Crew:
    """The agents of both arms: one and the same where both use this interpreter."""

    def __init__(self, job: Job, agent: AgentClient | None, stack: ExitStack) -> None:
        self._timeout_s = job.sides[0].plan.suite.policy.timeout_s
        needed, log = modules(job), job.out / "agent.log"
        made = {
            python: agent or stack.enter_context(AgentClient(needed, job.cache_dir, log, python))
            for python in {side.python for side in job.sides}
        }
        self._agents = {side.arm: made[side.python] for side in job.sides}
        self.environments: dict[Arm, environment.Environment] = {}
        """Of the arms' interpreters; empty where it is this one."""
        self.broken: dict[Arm, dict[str, str]] = {arm: {} for arm in ARMS}
        """Modules that cannot be imported, and why."""

    @property
    def apart(self) -> bool:
        """Two interpreters: what one server process has in memory is part of its arm."""
        return self._agents["baseline"] is not self._agents["candidate"]

    def start(self) -> None:
        """Start, or start again."""
        own = list(dict.fromkeys(self._agents.values()))
        for agent in own:
            agent.stop()
            agent.launch()  # the second one's imports run beside the first one's
        replies = {agent: agent.start() for agent in own}
        for arm, agent in self._agents.items():
            self.broken[arm] = replies[agent].errors
            self.environments[arm] = replies[agent].environment

    def agent(self, arm: Arm) -> AgentClient:
        return self._agents[arm]

    def resident(self, requests: Mapping[Arm, Measure], order: str) -> dict[Arm, Reply]:
        """Both at once, turns in ``order`` ('ABBA'). A failure of one ends the other unheard."""
        turns = [ARMS["AB".index(letter)] for letter in order]
        pids: dict[Arm, list[int]] = {arm: [] for arm in ARMS}
        replies: dict[Arm, Reply] = {}
        try:
            for arm in turns[:2]:
                reply = self._agents[arm].ask(Begin(arm, requests[arm]))
                if not isinstance(reply, Waiting):
                    return {arm: reply}
                pids[arm] = reply.pids
            # each warms up, then the turns, then each has its answers checked
            for arm in (*turns[:2], *turns, *turns[:2]):
                others = pids[ARMS[1 - ARMS.index(arm)]]
                reply = self._agents[arm].ask(Step(arm, others, self._timeout_s))
                if isinstance(reply, Done):
                    replies[arm] = reply
                elif not isinstance(reply, Waiting):
                    return {arm: reply}
            return replies
        finally:
            for arm in set(turns) - replies.keys():
                self._agents[arm].ask(End(arm))

    def in_sequence(self, requests: Mapping[Arm, Measure], order: str) -> dict[Arm, Reply]:
        """One after the other."""
        replies: dict[Arm, Reply] = {}
        for letter in order:
            arm = ARMS["AB".index(letter)]
            replies[arm] = self._agents[arm].ask(requests[arm])
            if not isinstance(replies[arm], Done):
                break
        return replies


class _Walk:
    """The state of one A/B. Cells are known by their place in the plans."""

    def __init__(
        self,
        job: Job,
        crew: _Crew,
        writers: Mapping[Arm, Writer],
        watcher: Watcher,
        done: list[tuple[Record, Record]],
    ) -> None:
        self._job, self._crew, self._writers, self._watcher = job, crew, writers, watcher
        self._plans = {side.arm: side.plan for side in job.sides}
        self._cells = list(zip(*(side.header.planned for side in job.sides), strict=True))
        self._ready: dict[str, dict[Arm, Ready]] = {}
        self._pairs: dict[str, gate.Pairs] = {}
        self._broken: set[str] = set()
        """Cells of which an arm failed: they are not tried again."""
        self._apart: set[str] = set()
        """Cells whose two processes do not fit into memory together."""
        self._spent: list[float] = []
        """Seconds of each pair."""
        for b, c in done:
            place = next(i for i, (x, y) in enumerate(self._cells) if (x, y) == (b.cell, c.cell))
            self._note(str(place), c.stage, pair_of(b, c))
        self._next = {k: len(p.screen) + len(p.confirm) for k, p in self._pairs.items()}

    def measure(self) -> None:
        """All rounds."""
        self._prepare()
        self._pairs = {key: self._pairs.get(key, gate.Pairs()) for key in self._ready}
        begin, promised, round_ = monotonic(), ("", 0), 0
        while wanted := self._wanted(monotonic() - begin):
            if round_ and self._crew.apart:
                self._crew.start()  # so that no pair shares a server's memory with another
            stage = next(iter(wanted.values()))[0]
            if promised != (promised := (stage, sum(n for _, n in wanted.values()))):
                self._watcher.begin(2 * self._left(wanted))
            keys = sorted(wanted)
            random.Random(f"{self._job.seed}/{stage}/{round_}").shuffle(keys)  # noqa: S311
            for key in keys:
                if self._open(key, stage, monotonic() - begin):
                    seconds = self._left(wanted) * (sum(self._spent) / max(1, len(self._spent)))
                    self._pair(key, "screen" if stage == "screen" else "confirm", seconds)
            round_ += 1

    def _left(self, wanted: Mapping[str, tuple[str, int]]) -> int:
        """Pairs still to measure in this stage."""
        return sum(max(0, n - self._have(key, stage)) for key, (stage, n) in wanted.items())

    def _have(self, key: str, stage: str) -> int:
        pairs = self._pairs[key]
        return len(pairs.screen if stage == "screen" else pairs.confirm)

    def _open(self, key: str, stage: str, elapsed: float) -> bool:
        """Whether the cell is sound and the budget allows another pair of it."""
        if key in self._broken:
            return False
        have, rule, budget = self._have(key, stage), self._job.rule, self._job.budget_s
        if stage == "confirm":
            return elapsed < budget
        share = 1 if have < rule.pilot else SCREEN_SHARE
        return have < LEAST or elapsed < share * budget

    def _wanted(self, elapsed: float) -> dict[str, tuple[str, int]]:
        """What the rule asks for, as far as the budget goes."""
        rule = self._job.rule
        wanted = gate.wanted(self._pairs, rule)
        wanted = {k: v for k, v in wanted.items() if self._open(k, v[0], elapsed)}
        if wanted or elapsed >= self._job.budget_s:
            return wanted
        # Screening has used up its share of the budget, or waits for a cell that broke: what is
        # flagged by now is measured again. A broken cell counts, as it does for the verdicts.
        flagged = [k for k, pairs in self._pairs.items() if gate.direction(pairs, rule)]
        sizes = {k: gate.confirm_size(self._pairs[k], len(flagged), rule) for k in flagged}
        return {
            k: ("confirm", n)
            for k, n in sizes.items()
            if k not in self._broken and self._have(k, "confirm") < n
        }

    def _prepare(self) -> None:
        found: dict[Arm, dict[str, Ready]] = {arm: {} for arm in ARMS}
        required = self._job.required
        for arm, plan in self._plans.items():
            for skip in plan.skips:
                self._record(arm, skipped(skip, required))
            agent, broken = self._crew.agent(arm), self._crew.broken[arm]
            for ready in prepare(
                agent, plan.cells, plan, self._job.backends, broken, self._watcher
            ):
                if isinstance(ready, Ready):
                    found[arm][ready.cell.key] = ready
                else:
                    self._record(arm, failed(ready.cell, 0, ready.why, required))
        for place, (b, c) in enumerate(self._cells):
            if b.key in found["baseline"] and c.key in found["candidate"]:
                self._ready[str(place)] = {
                    "baseline": found["baseline"][b.key],
                    "candidate": found["candidate"][c.key],
                }

    def _pair(self, key: str, stage: Stage, left_s: float) -> None:
        ready, repeat = self._ready[key], self._next.get(key, 0)
        begin, started = monotonic(), now()
        order = random.Random(f"{self._job.seed}/{key}/{repeat}").choice("AB")  # noqa: S311
        invalidated = 0
        while True:
            self._watcher.task(ready["candidate"].cell, f"{stage} pair {repeat + 1}", left_s)
            apart = key in self._apart
            turns = {"A": "AB" if apart else "ABBA", "B": "BA" if apart else "BAAB"}[order]
            ask = self._crew.in_sequence if apart else self._crew.resident
            replies = ask({arm: self._request(arm, ready[arm], apart) for arm in ARMS}, turns)
            if not apart and any(_full(reply) for reply in replies.values()):
                self._apart.add(key)
                continue
            spoilt = any(isinstance(r, Done) and r.invalid for r in replies.values())
            if not spoilt or invalidated == MAX_INVALID:
                break
            invalidated += 1
        wall = monotonic() - begin
        self._spent.append(wall)
        self._next[key] = repeat + 1
        records: dict[Arm, Record] = {}
        for arm, reply in replies.items():
            cell = ready[arm].cell
            record = failed(cell, repeat, reply, self._job.required)
            if isinstance(reply, Done):
                record = measured(cell, repeat, reply, ready[arm].prepare_ns)
            record = replace(record, stage=stage, order=turns, invalidated=invalidated,
                             started=started, wall_s=wall)  # fmt: skip
            records[arm] = record
            self._record(arm, record)
        pair = None
        if len(records) == len(ARMS) and all(r.status == "ok" for r in records.values()):
            pair = pair_of(records["baseline"], records["candidate"])
        if pair is None:
            self._broken.add(key)
        else:
            self._note(key, stage, pair)

    def _request(self, arm: Arm, ready: Ready, apart: bool) -> Measure:
        side = self._job.sides[ARMS.index(arm)]
        policy = side.plan.suite.policy
        if not apart:
            policy = replace(policy, sample_s=policy.sample_s / 2)  # two turns
        return Measure(ready.cell, policy, ready.artefact, ready.reference,
                       side.plan.cores_of(ready.cell), turns=1 if apart else 2,
                       bundle=side.bundle)  # fmt: skip

    def _note(self, key: str, stage: Stage, pair: gate.Pair | None) -> None:
        if pair is None:
            return
        have = self._pairs.get(key, gate.Pairs())
        if stage == "confirm":
            self._pairs[key] = replace(have, confirm=(*have.confirm, pair))
        else:
            self._pairs[key] = replace(have, screen=(*have.screen, pair))

    def _record(self, arm: Arm, record: Record) -> None:
        append(self._writers[arm], record)
        self._watcher.recorded(record)


def _full(reply: Reply) -> bool:
    return isinstance(reply, Failure) and reply.kind == "out-of-memory"
