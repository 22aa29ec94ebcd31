"""Interleaved A/B: pairs of fresh processes, each arm active in turn, until every cell is decided.

Of a pair both processes are open before either is timed; then they take short turns, in an order
drawn at random (`pair_runner.sequence`): what the machine does for longer than a few turns hits
both alike, and under identical arms a pair's difference is as likely d as -d, which is all that the
test needs. Where both do not fit into memory together they follow one another, AB or BA.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from statistics import fmean
from time import monotonic

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.compare import metrics, sequential_test
from gpubench.analysis.compare.paired import pair_of
from gpubench.backends.base import Backend
from gpubench.errors import InputError, RecordError
from gpubench.machine import environment
from gpubench.records.parity import Changed
from gpubench.records.reader import begun, read, scan
from gpubench.records.record import RECORDS, Arm, Header, Record, RecordFile
from gpubench.records.writer import Writer, check_free
from gpubench.run import availability
from gpubench.run.ab.arms import Stored
from gpubench.run.ab.pair_runner import ARMS, Crew, most_turns, sequence
from gpubench.run.agent.client import AgentClient
from gpubench.run.agent.messages import Failure, Measure, Prepared, Reply
from gpubench.run.driver import append, outcome, spoilt, valid
from gpubench.run.plan import Durations, Plan, task_seconds
from gpubench.run.prepare import Held, Ready, prepare
from gpubench.run.record_builder import check_machine, failed, now, skipped
from gpubench.run.roofline import Ceilings
from gpubench.run.watcher import NOTHING_STORED, Watcher
from gpubench.suite.types import Rule
from gpubench.workload import reference

STEADY_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Of both arms' processes, where the user says nothing else: glibc keeps the memory of a batch for
the next. By its own rule the place of an arm's blocks decides, drawn once for all forks of one
process: where arms have one each, equal ones would differ by a third in every pair. 32 MiB is the
most that the threshold grows to by itself."""
LEAST_LIMIT_S = 60.0
"""Of one step, whatever the budget: a sound one may take so long."""


class Side(Struct, frozen=True):
    """One arm."""

    arm: Arm
    plan: Plan
    """Its cells; the n-th of both plans' ``planned`` are compared."""
    header: Header
    python: Path | None = None
    """Its interpreter; None: this one."""
    directory: Path | None = None
    """The working directory of its processes, which own code may be imported from; None: this
    one's."""
    commit: str = ""
    """What its environment was made from."""
    stored: Stored | None = None
    """A deployment that it is."""


class ABJob(Struct, frozen=True):
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
    """Of the orders; kept in the headers, so that a resumed A/B goes on drawing."""
    left_out: tuple[str, ...] = ()
    """Labels of cells that have no counterpart in the other arm."""
    notes: tuple[str, ...] = ()
    """What is to be told of the arms."""
    pairs: int = 0
    """So many of every cell, whatever they say; 0: until every verdict is final."""
    same_input: bool = False
    """Networks whose inputs differ in size are not compared: nobody has asked for another one."""
    resume: bool = False
    required: tuple[str, ...] = ()


def run(
    job: ABJob,
    watcher: Watcher,
    agent: AgentClient | None = None,
    broken: Mapping[str, str] | None = None,
    ceilings: Ceilings | None = None,
    held: Held | None = None,
) -> tuple[RecordFile, RecordFile]:
    """Measure until every verdict is final or the budget ends; the arms' record files.

    ``agent``: a running one that serves both arms and is not stopped here; ``broken``: the modules
    that it cannot import; ``ceilings``: what was measured with it. KeyboardInterrupt passes through
    after every process of ours was ended; finished pairs stay.
    """
    with ExitStack() as stack:
        asked, job = job, _placed(job)
        if agent is None:
            _tell(job, watcher, NOTHING_STORED if asked.resume and not job.resume else "")
        job.out.mkdir(parents=True, exist_ok=True)
        watcher.begin(0)
        log, policy = job.out / "agent.log", job.sides[0].plan.suite.policy
        made = {
            place: agent
            or stack.enter_context(
                AgentClient(modules(job), job.cache_dir, log, *place, environ=STEADY_MEMORY)
            )
            for place in {(side.python, side.directory) for side in job.sides}
        }
        crew = Crew({side.arm: made[side.python, side.directory] for side in job.sides},
                    min(policy.timeout_s, _limit_s(job)))  # fmt: skip
        if agent is None:
            watcher.task(None, "starting workers (imports, once)", 0)
            crew.start()
        else:
            crew.broken = {arm: dict(broken or {}) for arm in ARMS}
        more = STEADY_MEMORY if agent is None else {}
        headers = {side.arm: _header(side, job, crew.environments, more) for side in job.sides}
        writers = {}
        for arm, header in headers.items():
            writer = Writer(job.out / arm, None if job.resume else header)
            writers[arm] = stack.enter_context(writer)
        seed, pairs = _resumed(job, headers) if job.resume else (job.seed, [])
        _Walk(job, crew, writers, watcher, seed, pairs, ceilings, held or Held()).measure()
    return read(job.out / "baseline"), read(job.out / "candidate")


def _tell(job: ABJob, watcher: Watcher, more: str) -> None:
    first, second = (side.header.pairing for side in job.sides)
    seen = Durations(job.cache_dir)
    each = [[task_seconds(cell, side.plan.suite.policy, seen) for cell in side.header.planned]
            for side in job.sides]  # fmt: skip
    outlook = metrics.outlook([*map(sum, zip(*each, strict=True))], job.budget_s, job.rule)
    watcher.said(
        f"A/B of {units.count(len(each[0]), 'cell')}: "
        f"baseline {first and first.differs}, candidate {second and second.differs}; {outlook}; "
        f"records go to {job.out}{more}"
    )
    if job.left_out:
        watcher.said(f"without a counterpart: {'; '.join(job.left_out)}")
    for note in job.notes:
        watcher.said(note)


def _placed(job: ABJob) -> ABJob:
    """The job; one to resume of which nothing is stored begins. Raises RecordError where ``out``
    holds what it must not."""
    places = [job.out / arm / RECORDS for arm in ARMS]
    there = [place for place in places if begun(place)]
    if job.resume and len(there) == 1 and next(scan(there[0], [])[1], None) is None:
        with Writer(there[0].parent, None):  # killed between the two headers, and not at it still
            there.pop().unlink()
    if job.resume and not there:
        return replace(job, resume=False)
    for place, side in zip(places, job.sides, strict=True):
        if begun(place) != job.resume:
            lack = "there is no A/B to go on with" if job.resume else "holds an A/B already"
            raise RecordError(f"{place}: {lack}; --resume goes on with one, -o names another")
        if job.resume:
            old, new = scan(place, [])[0], side.header
            same = old.pairing and new.pairing and replace(old.pairing, session=new.pairing.session)
            if (old.suite, old.planned, same) != (new.suite, new.planned, new.pairing):
                raise RecordError(f"{place}: holds another comparison; resume with its options")
    if not job.resume:
        check_free(job.out)
    return job


def _limit_s(job: ABJob) -> float:
    """Of one step, building or measuring: whatever hangs in it must not outlast the budget."""
    return max(LEAST_LIMIT_S, job.budget_s)


def modules(job: ABJob) -> list[str]:
    """What the workers of both arms import."""
    cells = [cell for side in job.sides for cell in side.plan.cells]
    return sorted(availability.preload(cells, job.backends))


def _header(
    side: Side, job: ABJob, environments: Mapping[Arm, environment.Environment],
    more: Mapping[str, str],
) -> Header:  # fmt: skip
    """With the environment of the arm's own interpreter; ``more``: variables of its agent's."""
    header = replace(side.header, seed=job.seed)
    found = environments.get(side.arm)
    if not found:  # our own, which does not know what its agent was given beside
        found = header.environment | {"variables": more | header.environment.get("variables", {})}
    elif side.commit:
        found = {**found, "directory": {"commit": side.commit, "dirty": False}}
    return replace(header, environment=found, fingerprint=environment.fingerprint(found))


def _resumed(job: ABJob, headers: Mapping[Arm, Header]) -> tuple[int, list[tuple[Record, Record]]]:
    """Of an earlier run of this A/B its seed, and the pairs that both arms measured well."""
    files = {arm: read(job.out / arm) for arm in ARMS}
    for arm, file in files.items():
        check_machine(file.path, file.header, headers[arm])
    first, second = (headers[arm].planned for arm in ARMS)
    rival = {c.key: b.key for b, c in zip(first, second, strict=True)}
    before = {(r.cell.key, r.repeat): r for r in files["baseline"].records}
    pairs = [
        (b, c)
        for c in files["candidate"].records
        if (b := before.get((rival[c.cell.key], c.repeat))) and b.status == c.status == "ok"
    ]
    return files["baseline"].header.seed, pairs


class _Walk:
    """The state of one A/B. Cells are known by their place in the plans."""

    def __init__(
        self,
        job: ABJob,
        crew: Crew,
        writers: Mapping[Arm, Writer],
        watcher: Watcher,
        seed: int,
        earlier: list[tuple[Record, Record]],
        ceilings: Ceilings | None,
        held: Held,
    ) -> None:
        self._job, self._crew, self._writers, self._watcher = job, crew, writers, watcher
        pairing = job.sides[0].header.pairing
        self._rates = bool(pairing and pairing.rates)
        self._sides = {side.arm: side for side in job.sides}
        self._cells = list(zip(*(side.header.planned for side in job.sides), strict=True))
        self._ready: dict[str, dict[Arm, Ready]] = {}
        self._ceilings: dict[Arm, Ceilings] = {"baseline": ceilings} if ceilings else {}
        self._rule = metrics.rules(job.rule)["speed"]
        self._pairs: dict[str, tuple[sequential_test.Pair, ...]] = {}
        self._others: dict[str, dict[str, list[sequential_test.Pair]]] = {
            name: {} for name in metrics.paired(job.rule)
        }
        """What the pairs say of other metrics than speed."""
        self._said: set[str] = set()
        self._broken: set[str] = set()
        """Cells of which an arm failed: they are not tried again."""
        self._held = dict.fromkeys(ARMS, held)
        if crew.apart:  # two versions may draw, and describe, pictures differently
            self._held["baseline"] = Held()
        self._apart: set[str] = set()
        """Cells whose two processes do not fit into memory together."""
        self._spent: dict[str, list[float]] = {}
        """Seconds of each pair of a cell."""
        self._seed = seed
        self._next: dict[str, int] = {}
        """Number of the next pair."""
        for b, c in earlier:
            for arm, record in zip(ARMS, (b, c), strict=True):
                self._held[arm].check(record.cell, record.contents)
            key = str(self._cells.index((b.cell, c.cell)))
            self._note(key, b, c)
            self._next[key] = max(self._next.get(key, 0), c.repeat + 1)
            self._spent.setdefault(key, []).append(c.wall_s)

    def measure(self) -> None:
        """All rounds."""
        try:
            self._prepare()
        except InputError:
            if not self._job.resume:
                for writer in self._writers.values():
                    writer.path.unlink(missing_ok=True)  # nothing was measured
            raise
        self._pairs = {key: self._pairs.get(key, ()) for key in self._ready}
        begin, expected, round_ = monotonic(), 0, 0
        while keys := self._turn(monotonic() - begin):
            if round_ and self._crew.apart:
                self._crew.start()  # so that no pair shares a server's memory with another
            more = metrics.more(self._others, self._job.rule)
            ahead = sequential_test.needs(self._pairs, self._rule, intervals=True, more=more)
            left = {key: ahead.get(key, 1) for key in keys}
            if sum(left.values()) != expected:
                expected = sum(left.values())
                self._watcher.begin(2 * expected)
            random.Random(f"{self._seed}/{round_}").shuffle(keys)  # noqa: S311
            for key in keys:
                budget_s = self._job.budget_s - (monotonic() - begin)
                if budget_s > 0 or not self._pairs[key]:
                    seconds = sum(n * self._pair_s(k) for k, n in left.items())
                    self._pair(key, max(0.0, min(budget_s, seconds)))
                    left[key] -= 1
                    expected -= 1
            round_ += 1

    def _turn(self, elapsed: float) -> list[str]:
        if most := self._job.pairs:
            going = elapsed < self._job.budget_s
            own = {key for key, pairs in self._pairs.items() if going and len(pairs) < most}
            return sorted(own - self._broken)
        pair_s = {key: self._pair_s(key) for key in self._pairs}
        return sequential_test.turn(
            self._pairs, self._rule, pair_s, self._job.budget_s - elapsed, self._broken,
            metrics.more(self._others, self._job.rule),
        )  # fmt: skip

    def _pair_s(self, key: str) -> float:
        """Seconds that a pair of a cell takes; while nothing is known of it, of all."""
        own = self._spent.get(key) or list(chain(*self._spent.values()))
        return fmean(own or [0.0])

    def _prepare(self) -> None:
        found: dict[Arm, dict[str, Ready]] = {arm: {} for arm in ARMS}
        required = self._job.required
        plans = {arm: side.plan for arm, side in self._sides.items()}
        for arm, plan in plans.items():
            for skip in plan.skips:
                self._lost(arm, skipped(skip, required))
            agent, broken = self._crew.agents[arm], self._crew.broken[arm]
            backends, watcher = self._job.backends, self._watcher
            stored = self._sides[arm].stored
            made = None
            if stored:
                made = Prepared(str(stored.artefact), {}, {"deployment": stored.contents})
            for task in prepare(agent, plan.cells, plan, backends, broken, watcher,
                                self._held[arm], _limit_s(self._job), made):  # fmt: skip
                if isinstance(task, Ready):
                    found[arm][task.cell.key] = task
                else:
                    self._lost(arm, failed(task.cell, 0, task.why, required))
        for place, cells in enumerate(self._cells):
            both = zip(ARMS, cells, strict=True)
            ready = {arm: found[arm][cell.key] for arm, cell in both if cell.key in found[arm]}
            if len(ready) == len(ARMS) and self._comparable(ready):
                self._ready[str(place)] = ready
        for arm, plan in plans.items():  # once where both arms use one interpreter
            ceilings = self._ceilings.get("baseline")
            if ceilings is None or self._crew.apart:
                ceilings = Ceilings(self._crew.agents[arm], plan.cores_of, self._job.backends)
            self._ceilings[arm] = ceilings
            ceilings.measure([one[arm].cell for one in self._ready.values()], self._watcher)

    def _comparable(self, ready: Mapping[Arm, Ready]) -> bool:
        """Whether both arms answer the same question; records where they do not, and says what
        else differs."""
        first, second = (reference.about(Path(ready[arm].reference)) for arm in ARMS)
        if first is None or second is None:  # another version has left another form of it
            return True
        shapes = [" x ".join(map(str, about.spec.shape)) for about in (first, second)]
        if shapes[0] != shapes[1]:
            words = f"the network's input is {shapes[0]} in the baseline, {shapes[1]} here"
            self._told(words)
            if self._job.same_input:
                remedy = (
                    "name both networks, with --baseline model=..., to compare them all the same"
                )
                for arm, one in ready.items():
                    failure = Failure("incomparable", words, remedy)
                    self._lost(arm, failed(one.cell, 0, failure, self._job.required))
                return False
        if first.outputs != second.outputs:
            self._told(f"{first.outputs} classes in the baseline, {second.outputs} here: speed is "
                       "compared, answers cannot be")  # fmt: skip
        images = [one.contents.get("images") for one in ready.values()]
        if images[0] != images[1]:
            self._told("the arms have other pictures: speed is compared, answers cannot be")
        return True

    def _told(self, words: str) -> None:
        """Once."""
        if words not in self._said:
            self._said.add(words)
            self._watcher.said(words)

    def _lost(self, arm: Arm, record: Record) -> None:
        """Record what cannot be measured, and overwrite no earlier pair of it."""
        place = self._sides[arm].header.planned.index(record.cell)
        self._record(arm, replace(record, repeat=self._next.get(str(place), 0)))

    def _pair(self, key: str, left_s: float) -> None:
        ready, repeat = self._ready[key], self._next.get(key, 0)
        begin, started = monotonic(), now()
        draw = f"{self._seed}/{key}/{repeat}"
        first = random.Random(draw).choice("AB")  # noqa: S311
        blocks = random.Random(f"{draw}/blocks")  # noqa: S311

        def ask() -> tuple[dict[Arm, Reply], str]:
            self._watcher.task(ready["candidate"].cell, f"pair {repeat + 1}", left_s)
            apart = key in self._apart
            requests = {arm: self._request(arm, ready[arm], apart, repeat) for arm in ARMS}
            if apart:
                return self._crew.in_sequence(requests, first), sequence(1, first, blocks)
            replies, turns = self._crew.resident(requests, first, blocks)
            if not any(map(_full, replies.values())):
                return replies, turns
            self._apart.add(key)
            return ask()

        (replies, turns), invalidated = valid(ask, lambda got: any(map(spoilt, got[0].values())))
        wall = monotonic() - begin
        self._spent.setdefault(key, []).append(wall)
        self._next[key] = repeat + 1
        records: dict[Arm, Record] = {}
        for arm in sorted(replies):  # the baseline first: the candidate's says what changed
            reply = replies[arm]
            record = outcome(ready[arm], repeat, reply, self._ceilings[arm], self._job.required)
            record = replace(record, order=turns, invalidated=invalidated, started=started,
                             wall_s=wall)  # fmt: skip
            if base := records.get("baseline"):
                record = replace(record, changed=_changed(ready, base, record))
            records[arm] = self._record(arm, record)
        both = len(records) == len(ARMS) and all(r.status == "ok" for r in records.values())
        if not (both and self._note(key, records["baseline"], records["candidate"])):
            self._broken.add(key)

    def _request(self, arm: Arm, ready: Ready, apart: bool, repeat: int) -> Measure:
        plan = self._sides[arm].plan
        policy = plan.suite.policy
        policy = replace(policy, timeout_s=min(policy.timeout_s, _limit_s(self._job)))
        measure = Measure(ready.cell, policy, ready.artefact, ready.reference,
                          plan.cores_of(ready.cell), repeat=repeat)  # fmt: skip
        return measure if apart else replace(measure, turns=most_turns(measure))

    def _note(self, key: str, base: Record, candidate: Record) -> bool:
        """Whether they are a pair."""
        pair = pair_of(base, candidate, self._rates)
        if pair is not None:
            self._pairs[key] = (*self._pairs.get(key, ()), pair)
            for name, cells in self._others.items():
                cells.setdefault(key, []).extend(metrics.pairs(name, [(base, candidate, pair)]))
        return pair is not None

    def _record(self, arm: Arm, record: Record) -> Record:
        record = append(self._writers[arm], record)
        self._watcher.recorded(record, arm)
        return record


def _changed(ready: Mapping[Arm, Ready], base: Record, candidate: Record) -> Changed | None:
    """What the first pair's answers differ in, if the candidate has any."""
    before, after = (r.parity.answers if r.parity else None for r in (base, candidate))
    if before is None or after is None or before.given == after.given:
        return None
    from gpubench.workload import parity, reference

    with suppress(OSError, ValueError):  # another version may have left another form of it
        first, second = (reference.load(Path(ready[arm].reference)) for arm in ARMS)
        return parity.changed(first, second, before, after)
    return None


def _full(reply: Reply) -> bool:
    return isinstance(reply, Failure) and reply.kind == "out-of-memory"
