"""A search on this machine: records, going on with them, the proof, and `best.toml`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gpubench import units
from gpubench.analysis.tune import racing
from gpubench.analysis.tune.racing import Standing
from gpubench.backends.base import Backend
from gpubench.errors import InputError, RecordError
from gpubench.records.reader import EVIDENCE, begun, read, read_arms
from gpubench.records.record import Header, Record, RecordFile
from gpubench.records.writer import Writer
from gpubench.run import availability
from gpubench.run.ab import driver as ab_driver
from gpubench.run.agent.client import AgentClient
from gpubench.run.driver import append
from gpubench.run.plan import Plan
from gpubench.run.record_builder import now, skipped
from gpubench.run.tune import space, verify
from gpubench.run.tune.proposals import Proposals
from gpubench.run.tune.search import SEARCH, search
from gpubench.run.tune.trials import AgentBench
from gpubench.run.watcher import NOTHING_STORED, Watcher
from gpubench.suite.goal import Search
from gpubench.suite.types import Cell, Policy, title

BEST = "best.toml"
FINISHED = "result.json"
"""Written last: a search that has it is over."""
LATER = 0.1
"""Of the budget: what a proof has at least, after one that spoke against what was recommended."""
TRIAL = ("repeats", "max_repeats", "warmup_iterations", "warmup_s", "duration_s", "block_s",
         "budget_s", "timeout_s", "prepare_timeout_s")  # fmt: skip
"""What the policy of a trial has of its own; `best.toml` has an ordinary suite's."""


class TuneJob(Struct, frozen=True):
    """Everything a search needs."""

    header: Header
    search: Search
    plan: Plan
    backends: Mapping[str, Backend]
    out: Path
    cache_dir: Path
    resume: bool = False


class Outcome(Struct, frozen=True):
    """What a search came to."""

    file: RecordFile
    evidence: tuple[RecordFile, RecordFile] | None
    """The A/B of the recommendation, baseline first; None: there is none to be had."""
    best: Cell | None
    """What it recommends; None: nothing keeps the limits."""


def run(job: TuneJob, watcher: Watcher) -> Outcome:
    """Search, prove, and say what is best. A job to resume of which nothing is stored begins.

    KeyboardInterrupt passes through after every process was ended; whatever was recorded stays.
    Raises InputError, and leaves no record file, for what can be told before anything is measured.
    """
    anew = job.resume and not begun(job.out)
    if anew:
        job = replace(job, resume=False)
    with Writer(job.out, None if job.resume else job.header) as writer:
        walk = _Walk(job, writer, watcher)
        many = units.count(len(job.header.planned), "configuration")
        watcher.said(
            f"{job.search.goal.objective.name} of {title(job.plan.suite.workload.model)}: {many}, "
            f"{units.clock(job.search.budget_s)}; records go to {job.out}"
            f"{NOTHING_STORED if anew else ''}"
        )
        modules = availability.preload(job.plan.cells, job.backends)
        with AgentClient(modules, job.cache_dir, job.out / "agent.log") as agent:
            try:
                best = walk.go(agent)
            except InputError:
                if not job.resume and all(r.status not in ("ok", "failed") for r in walk.records):
                    writer.path.unlink(missing_ok=True)
                raise
    return Outcome(read(job.out), read_arms(job.out / EVIDENCE), best)


def finished(job: TuneJob) -> bool:
    """Whether the search in ``job.out`` is over, so that there is only its result to show."""
    return job.resume and (job.out / FINISHED).exists()


def outcome(job: TuneJob) -> Outcome:
    """Of a search that is over."""
    file = checked(job)
    best = racing.recommended(racing.judge(file.header.planned, file.records, job.search))
    return Outcome(file, read_arms(job.out / EVIDENCE), best.cell if best else None)


def checked(job: TuneJob) -> RecordFile:
    """The records of the search to go on with. Raises RecordError where it was another one."""
    file, new = read(job.out), job.header
    old = file.header
    if old.search is None:
        raise RecordError(f"{file.path}: not a search; gpubench run --resume goes on with a run")
    if old.fingerprint != new.fingerprint:
        raise RecordError(
            f"{file.path}: was measured on another machine or with other library versions; "
            "start a new search"
        )
    if (old.search, old.suite, old.planned) != (new.search, new.suite, new.planned):
        raise RecordError(
            f"{file.path}: holds another search; resume with the model and the options that it "
            "was started with"
        )
    return file


def best_toml(job: TuneJob, cell: Cell) -> str:
    """A suite of one cell: `gpubench run` measures it as long as any, and by the same floors."""
    trial, plain = job.plan.suite.policy, Policy()
    policy = replace(trial, **{name: getattr(plain, name) for name in TRIAL})
    words = f"{job.search.goal.objective.name} of {title(cell.model)}: {cell.label}"
    return space.to_toml(cell, policy, "best", f"What gpubench tune recommends for {words}")


class _Walk:
    """The state of one session."""

    def __init__(self, job: TuneJob, writer: Writer, watcher: Watcher) -> None:
        self._job, self._writer, self._watcher = job, writer, watcher
        self._proofs = 0
        # read only now: whoever wrote to the file before has ended
        self.records: list[Record] = list(checked(job).records) if job.resume else []

    def go(self, agent: AgentClient) -> Cell | None:
        """What is recommended in the end."""
        job = self._job
        known = {(r.cell.key, r.repeat) for r in self.records}
        for skip in job.plan.skips:
            if (skip.cell.key, 0) not in known:
                self.records.append(append(self._writer, skipped(skip, ())))
        for (reason, remedy), n in Counter((s.reason, s.remedy) for s in job.plan.skips).items():
            words = f"left out: {units.count(n, 'configuration')}: {reason}"
            self._watcher.said("; ".join(filter(None, (words, remedy))))
        spent = sum(r.wall_s for r in self.records) + verify.spent_s(job.out)
        bench = AgentBench(job, agent, self._watcher, spent, self.records)
        try:
            while True:
                standings = self._search(bench)
                best, base = racing.recommended(standings), racing.today(standings, job.search)
                if best is None or base is None or best.cell == base.cell:
                    return best.cell if best else None
                if not (why := self._fault(bench, agent, base, best.cell)):
                    return best.cell
                # what breaks in the proof is not recommended; why stands in the records
                reason = f"measured again beside today's default: {why}"
                self._note(Record(cell=best.cell, repeat=1 + max(best.repeats), status="failed",
                                  kind="limit", reason=reason, started=now()))  # fmt: skip
        finally:
            bench.seen.save()

    def _search(self, bench: AgentBench) -> list[Standing]:
        job = self._job
        if self.records and bench.elapsed() < job.search.budget_s:
            bench.start()  # the rooflines are known to every proposal, as in the first session
        cells, options = job.plan.planned, {n: b.options for n, b in job.backends.items()}
        proposals = Proposals(cells, job.search, bench.best, options)
        return search(
            cells, job.search, bench, proposals.next, self.records, self._note, self._told
        )

    def _fault(self, bench: AgentBench, agent: AgentClient, base: Standing, best: Cell) -> str:
        """Why the A/B speaks against what is recommended, or ''."""
        job = self._job
        bench.workers()
        least = (LATER if self._proofs else 1 - SEARCH) * job.search.budget_s
        left_s = max(job.search.budget_s - bench.elapsed(), least)
        files = ab_driver.run(verify.job(job, base.cell, best, left_s), self._watcher, agent,
                              bench.broken, bench.ceilings, bench.held)  # fmt: skip
        self._proofs += 1
        bench.mark()
        return verify.fault(*files, job.search, rival=not racing.breaks(base))

    def _note(self, record: Record) -> None:
        record = append(self._writer, record)
        self.records.append(record)
        self._watcher.recorded(record)

    def _told(self, standings: Sequence[Standing]) -> None:
        if any(s.n for s in standings):
            self._watcher.course(*course(standings, self._job.search))


def course(standings: Sequence[Standing], search: Search) -> tuple[str, str]:
    """('12 of 96 measured, 3 failed', 'leads: openvino int8 b8 x2 throughput, 5,120 images/s')."""
    failed = sum(s.status == "failed" and not s.n for s in standings)
    out = sum(s.status == "ruled-out" for s in standings)
    said = f"{sum(s.n > 0 for s in standings)} of {len(standings)} measured"
    said += (f", {failed} failed" if failed else "") + (f", {out} ruled out" if out else "")
    leads = racing.leader(standings)
    if leads is None or not leads.value.value:
        return said, "nothing measured so far keeps the limits"
    value = search.goal.objective.text(leads.value.value)
    return said, f"leads: {leads.cell.label}, {value}"
